"""GET /: a page to chat with the models, from files in page/.

It holds nothing secret and needs no key; what it asks of the server does. It asks nothing of any
other host, which its Content-Security-Policy makes the browser hold it to.
"""

from functools import cache
from importlib.resources import files

from mmrt.serving.http import Request, Response

_SCRIPT = "text/javascript; charset=utf-8"

# Paths without a slash at their end, the files behind them, and what those are.
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", _SCRIPT)
        for name in ("page", "conversation", "messages", "markdown", "server", "sight")
    },
}
PATHS = frozenset(_FILES)
KINDS = [(path, kind) for path, (_, kind) in _FILES.items()]

_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("Referrer-Policy", "same-origin"),
    ("Cache-Control", "no-cache"),  # or an old page would ask a new server
]


async def respond(desk: object, request: Request) -> Response:
    name, content_type = _FILES[request.path.rstrip("/")]
    return Response(200, _content(name), content_type, list(_HEADERS))


@cache
def _content(name: str) -> bytes:
    return files("mmrt.serving").joinpath("page", name).read_bytes()
