"""What is answered at which path."""

import traceback
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from mmrt import __version__
from mmrt.serving import (
    about,
    answered,
    anthropic,
    chat,
    completions,
    metrics,
    openapi,
    page,
    responses,
    tokens,
)
from mmrt.serving.desk import Desk
from mmrt.serving.http import Handler, Request, Response, json_response
from mmrt.serving.openapi import Respond, Route
from mmrt.serving.problems import Refused

_ID = f"{responses.PATH}/{{id}}"

# Where a path ends with a word in braces, anything that is not empty may stand in its place.
ROUTES = [
    Route(
        "POST", "/v1/chat/completions", chat.respond,
        "A chat, whole or as a stream", answered.CHAT, chat.declare, answered.CHAT_CHUNK,
    ),
    Route(
        "POST", "/v1/completions", completions.respond,
        "A text that goes on from a prompt", answered.COMPLETION, completions.declare,
        answered.COMPLETION,
    ),
    Route(
        "POST", responses.PATH, responses.respond,
        "A response, whole or as a stream of events", answered.RESPONSE, responses.declare,
        answered.EVENT,
    ),
    Route(
        "POST", f"{responses.PATH}/input_tokens", responses.count,
        "The length of a response's prompt", answered.INPUT_TOKENS, responses.declare,
    ),
    Route("GET", _ID, responses.retrieve, "A response that was kept", answered.RESPONSE),
    Route("DELETE", _ID, responses.delete, "Forgets a response", answered.DELETED),
    Route(
        "POST", anthropic.PATH, anthropic.respond,
        "A chat, as Anthropic's clients have it", answered.MESSAGE, anthropic.declare,
        answered.EVENT,
    ),
    Route(
        "POST", f"{anthropic.PATH}/count_tokens", anthropic.count_tokens,
        "The length of a chat's prompt", answered.COUNT, anthropic.declare_count,
    ),
    Route(
        "POST", "/tokenize", tokens.tokenize,
        "The tokens of a text or of a chat", answered.TOKENS, tokens.declare_text,
    ),
    Route(
        "POST", "/detokenize", tokens.detokenize,
        "The text of tokens", answered.TEXT, tokens.declare_ids,
    ),
    Route(
        "POST", "/apply-template", tokens.apply_template,
        "The prompt of a chat, as text", answered.PROMPT, tokens.declare_chat,
    ),
    Route("GET", about.MODELS, about.models, "The models", answered.MODELS),
    Route("GET", f"{about.MODELS}/{{name}}", about.models, "A model", answered.MODEL),
    Route("GET", "/health", about.health, "Whether all models are open", answered.HEALTH),
    Route("GET", "/v1/health", about.health, "Whether all models are open", answered.HEALTH),
    Route("GET", "/props", about.props, "The first model's properties", answered.OBJECT),
    Route("GET", "/sight", about.sight, "What the page shows of the models", answered.OBJECT),
    Route("GET", "/metrics", metrics.respond, "Figures for Prometheus", metrics.CONTENT_TYPE),
    *(Route("GET", path, page.respond, "A file of the page", kind) for path, kind in page.KINDS),
]  # fmt: skip


async def _describe(desk: Desk, request: Request) -> Response:
    return json_response(openapi.document(ROUTES, desk.limits, desk.access.without_key))


ROUTES.append(Route("GET", "/openapi.json", _describe, "This document", answered.OBJECT))


class App:
    """The routes, and what all responses share."""

    def __init__(self, desk: Desk, note: Callable[[str], None], access_log: bool = True) -> None:
        """note: says something to whoever runs the server. access_log: also of each request, but
        nothing of what was asked or answered."""
        self._desk, self._note, self._access_log = desk, note, access_log

    def find(self, request: Request) -> Handler:
        path = request.path.rstrip("/")
        if not self._methods(path) and self._methods(f"/v1{path}"):
            # Clients whose base URL lacks the /v1: other servers answer them too.
            request.path = path = f"/v1{path}"
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
    def _methods(path: str) -> dict[str, Respond]:
        own = [route for route in ROUTES if route.path == path]
        fitting = own or [route for route in ROUTES if route.fits(path)]
        found = {route.method: route.respond for route in fitting}
        return found | {"HEAD": found["GET"]} if "GET" in found else found

    def problem(self, request: Request | None, problem: Refused) -> Response:
        of_anthropic = request is not None and anthropic.is_path(request.path)
        body = anthropic.problem_body(problem) if of_anthropic else problem.body()
        response = json_response(body, problem.status)
        response.headers += problem.headers
        return response

    def headers(self, request: Request | None) -> list[tuple[str, str]]:
        server = [("Server", f"mmrt/{__version__}"), ("X-Content-Type-Options", "nosniff")]
        if request is None:
            return server
        # The name that OpenAI's clients read it by, or Anthropic's.
        name = "request-id" if anthropic.is_path(request.path) else "x-request-id"
        return [*server, (name, request.id), *self._desk.access.headers(request)]

    def log(self, request: Request, status: int, sent: int, seconds: float) -> None:
        if self._access_log:
            note = f" {request.note}" if request.note else ""
            self._note(
                f"{request.peer} {request.method} {quote(request.path)[:100]} {status} {sent} B "
                f"{seconds * 1000:.0f} ms{note} {request.id}"
            )

    def fault(self, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        place = "".join(f" at {frame.filename}:{frame.lineno}" for frame in last)
        self._note(f"error: {type(error).__name__}: {error!s:.300}{place}")


async def _options(allowed: str, request: Request) -> Response:
    return Response(204, headers=[("Allow", allowed)])
