"""What is answered at which path, and GET /openapi.json, which says so to programs."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, NamedTuple

from mmrt import __version__
from mmrt.serving import answered
from mmrt.serving.desk import Desk
from mmrt.serving.http import Request, Response
from mmrt.serving.kinds import Record, Schema
from mmrt.serving.limits import Limits
from mmrt.serving.sse import CONTENT_TYPE

Respond = Callable[[Desk, Request], Awaitable[Response]]


class Route(NamedTuple):
    """answer: the schema of its JSON, or the content type of what is none. declare: the fields of
    requests. events: the schema of what a stream tells, where there may be one."""

    method: str
    path: str
    respond: Respond
    summary: str
    answer: Schema | str
    declare: Callable[[Limits], Record] | None = None
    events: Schema | None = None

    def fits(self, path: str) -> bool:
        """Whether `path`, without a slash at its end, is its own."""
        before, brace, _ = self.path.partition("{")
        return path.startswith(before) and path != before if brace else path == before


def document(routes: Iterable[Route], limits: Limits, without_key: Collection[str]) -> Schema:
    """without_key: paths for which nobody needs a key."""
    paths: dict[str, Any] = {}
    for route in routes:
        operation = _operation(route, limits)
        if route.path in without_key:
            operation["security"] = []
        paths.setdefault(route.path or "/", {})[route.method.lower()] = operation
    key = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mmrt serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": answered.ERRORS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}, "key": key},
        },
        # Where the server has no keys, nobody needs one.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(route: Route, limits: Limits) -> dict[str, Any]:
    error = "MessagesError" if route.path.startswith("/v1/messages") else "Error"
    problem = _content("application/json", {"$ref": f"#/components/schemas/{error}"})
    found: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer", **_answer(route)},
            "4XX": {"description": "The request is refused", **problem},
            "503": {"description": "The server has no room, or is not ready", **problem},
        },
    }
    _, brace, name = route.path.partition("{")
    if brace:
        word = {"type": "string", "minLength": 1}
        parameter = {"name": name[:-1], "in": "path", "required": True, "schema": word}
        found["parameters"] = [parameter]
    if route.declare is not None:
        body = _content("application/json", route.declare(limits).schema())
        found["requestBody"] = {"required": True, **body}
    return found


def _answer(route: Route) -> dict[str, Any]:
    if isinstance(route.answer, str):
        return _content(route.answer, {"type": "string"})
    found = _content("application/json", route.answer)
    if route.events is not None:
        # OpenAPI 3.1 has no schema for the parts of a stream.
        events = {"description": "Events, each with JSON as in x-event", "x-event": route.events}
        found["content"][CONTENT_TYPE] = {"schema": events}
    return found


def _content(kind: str, schema: Schema) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema}}}
