"""Tools that a request offers, and what it says of their use."""

from typing import Any, NamedTuple

from mmrt.serving.fields import Fields
from mmrt.serving.kinds import Choice, Either, Flag, Kind, List, Record, Tagged, Text
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused


class Tools(NamedTuple):
    """offered: OpenAI's descriptions of functions; None: there are none. most_calls: in an answer;
    None: any number. must: the function that the answer has to call, "" for any; None: it need not.
    strict: the arguments are held to the functions' schemas, also where it need not.
    """

    offered: list[dict[str, Any]] | None = None
    most_calls: int | None = None
    must: str | None = None
    strict: bool = False


_NAMED = Record({"name": Text()}, ("name",))
_FUNCTION: dict[str, Kind] = {"function": _NAMED, "name": Text()}
_ALLOWED: dict[str, Kind] = {
    "mode": Choice("auto", "required"),
    "tools": List(Tagged({"function": Record(_FUNCTION)}, default="function")),
}
_CHOSEN = Tagged(
    {
        "function": Record(_FUNCTION),
        "allowed_tools": Record({"allowed_tools": Record(_ALLOWED), **_ALLOWED}),
    }
)
FUNCTION: dict[str, Kind] = {
    "name": Text(),
    "description": Text(),
    "parameters": Record(),
    "strict": Flag(),
}
CHOICES: dict[str, Kind] = {
    "tool_choice": Either(Choice("none", "auto", "required"), _CHOSEN),
    "parallel_tool_calls": Flag(),
}


def declare(limits: Limits) -> dict[str, Kind]:
    """The fields that tell of tools."""
    described = Record({"function": Record(FUNCTION, ("name",))}, ("function",))
    tool = Tagged({"function": described}, default="function")
    return {"tools": List(tool, limits.tools), **CHOICES}


def read_tools(fields: Fields) -> Tools:
    """The `tools` of a request, `tool_choice` and `parallel_tool_calls`. Raises Refused."""
    return chosen(fields, fields.get("tools", []))


def chosen(fields: Fields, offered: list[dict[str, Any]]) -> Tools:
    """`offered`, as `tool_choice` and `parallel_tool_calls` want them. Raises Refused."""
    must: str | None = None
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        given, choice = fields.object("tool_choice"), choice["type"]
        if choice == "allowed_tools":
            offered, choice = _allowed(_within(given, "allowed_tools"), offered)
        else:
            must = _name(given)
    if choice == "none":
        return Tools()
    elif choice == "required":
        must = ""
    require_offered(must, offered)
    several = fields.get("parallel_tool_calls", True)
    strict = any(tool["function"].get("strict") for tool in offered)
    return Tools(offered, None if several else 1, must, strict) if offered else Tools()


def _within(given: Fields, field: str) -> Fields:
    """What chats have in an object of its own, and responses beside its type."""
    return given.object(field) if given.has(field) else given


def _name(given: Fields) -> str:
    named = _within(given, "function")
    named.require("name")
    name: str = named.get("name")
    return name


def _allowed(
    given: Fields, offered: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """Those of the tools offered that may be called, and whether one has to be. Raises Refused."""
    given.require("tools")
    names = {_name(one) for one in given.objects("tools")}
    for name in names:  # each once: a body has room for a hundred thousand
        require_offered(name, offered)
    allowed = [tool for tool in offered if tool["function"]["name"] in names]
    return allowed, given.get("mode")


def require_offered(must: str | None, offered: list[dict[str, Any]]) -> None:
    """Raises Refused where a tool has to be called that is not there."""
    names = [tool["function"]["name"] for tool in offered]
    if must is not None and (must not in names if must else not names):
        what = f"no tool has the name {must!r:.60}" if must else "there are no tools"
        raise Refused(400, f"tool_choice: {what}", param="tool_choice")
