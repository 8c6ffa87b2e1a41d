"""What is answered at which path."""

import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import quote

from mmrt import __version__
from mmrt.serving import about, anthropic, chat, completions, metrics, page, responses, tokens
from mmrt.serving.desk import Desk
from mmrt.serving.http import Handler, Request, Response, json_response
from mmrt.serving.problems import Refused

_POST = {
    "/v1/chat/completions": chat.respond,
    "/v1/completions": completions.respond,
    responses.PATH: responses.respond,
    anthropic.PATH: anthropic.respond,
    f"{anthropic.PATH}/count_tokens": anthropic.count_tokens,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
    "/apply-template": tokens.apply_template,
}
_GET = {
    "/health": about.health,
    "/v1/health": about.health,
    about.MODELS: about.models,
    "/props": about.props,
    "/sight": about.sight,
    "/metrics": metrics.respond,
    **dict.fromkeys(page.PATHS, page.respond),
}


class App:
    """The routes, and what all responses share."""

    def __init__(self, desk: Desk, note: Callable[[str], None], access_log: bool = True) -> None:
        """note: says something to whoever runs the server. access_log: also of each request, but
        nothing of what was asked or answered."""
        self._desk, self._note, self._access_log = desk, note, access_log

    def find(self, request: Request) -> Handler:
        path = request.path.rstrip("/")
        access, methods = self._desk.access, self._methods(path)
        access.check(request, path)
        if request.path == "*" and request.method == "OPTIONS":  # of the server as a whole
            return partial(_options, "GET, HEAD, POST, DELETE, OPTIONS")
        if not methods:
            raise Refused(404, f"there is nothing at {request.path[:80]!r}", code="not_found")
        allowed = ", ".join([*methods, "OPTIONS"])
        if request.method == "OPTIONS":
            return partial(_options, allowed)
        if request.method not in methods:
            raise Refused(
                405,
                f"{path} knows {allowed}",
                code="method_not_allowed",
                headers=(("Allow", allowed),),
            )
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
        if request.method == "POST" and kind.lower() != "application/json":
            # A web page may send other kinds anywhere without asking first.
            raise Refused(415, f"the body must be application/json, not {kind[:60]!r}")
        coding = request.headers.get("content-encoding", "identity").strip()
        if coding.lower() not in ("", "identity"):
            raise Refused(
                415,
                f"the body must not be compressed: Content-Encoding is {coding[:60]!r}",
                headers=(("Accept-Encoding", "identity"),),
            )
        return partial(methods[request.method], self._desk)

    @staticmethod
    def _methods(path: str) -> dict[str, Callable[[Desk, Request], Awaitable[Response]]]:
        if path.startswith(about.MODELS + "/"):
            path = about.MODELS
        if path.startswith(responses.PATH + "/"):
            get = responses.retrieve
            return {"GET": get, "HEAD": get, "DELETE": responses.delete}
        if path in _POST:
            return {"POST": _POST[path]}
        return {"GET": _GET[path], "HEAD": _GET[path]} if path in _GET else {}

    def problem(self, request: Request | None, problem: Refused) -> Response:
        of_anthropic = request is not None and anthropic.is_path(request.path)
        body = anthropic.problem_body(problem) if of_anthropic else problem.body()
        response = json_response(body, problem.status)
        response.headers += problem.headers
        return response

    def headers(self, request: Request | None) -> list[tuple[str, str]]:
        server = [("Server", f"mmrt/{__version__}"), ("X-Content-Type-Options", "nosniff")]
        return server if request is None else server + self._desk.access.headers(request)

    def log(self, request: Request, status: int, sent: int, seconds: float) -> None:
        if self._access_log:
            note = f" {request.note}" if request.note else ""
            self._note(
                f"{request.peer} {request.method} {quote(request.path)[:100]} {status} {sent} B "
                f"{seconds * 1000:.0f} ms{note}"
            )

    def fault(self, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        place = "".join(f" at {frame.filename}:{frame.lineno}" for frame in last)
        self._note(f"error: {type(error).__name__}: {error!s:.300}{place}")


async def _options(allowed: str, request: Request) -> Response:
    return Response(204, headers=[("Allow", allowed)])
