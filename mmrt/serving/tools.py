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
_CHOSEN = Record({"type": Choice("function"), "function": _NAMED, "name": Text()}, ("type",))
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
    if isinstance(choice := fields.get("tool_choice"), dict):
        given = fields.object("tool_choice")
        named = given.object("function") if given.has("function") else given
        named.require("name")
        must = named.get("name")
    elif choice == "none":
        return Tools()
    elif choice == "required":
        must = ""
    require_offered(must, offered)
    several = fields.get("parallel_tool_calls", True)
    strict = any(tool["function"].get("strict") for tool in offered)
    return Tools(offered, None if several else 1, must, strict) if offered else Tools()


def require_offered(must: str | None, offered: list[dict[str, Any]]) -> None:
    """Raises Refused where a tool has to be called that is not there."""
    names = [tool["function"]["name"] for tool in offered]
    if must is not None and (must not in names if must else not names):
        what = f"no tool has the name {must!r:.60}" if must else "there are no tools"
        raise Refused(400, f"tool_choice: {what}", param="tool_choice")
