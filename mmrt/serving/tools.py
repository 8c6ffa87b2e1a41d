"""Tools that a request offers, and what it says of their use."""

from typing import Any, NamedTuple

from mmrt.serving.fields import Fields
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


def read_tools(fields: Fields, limits: Limits) -> Tools:
    """The `tools` of a request, `tool_choice` and `parallel_tool_calls`. Raises Refused."""
    given = fields.objects("tools", limits.tools) or []
    for tool in given:
        _check(tool)
    return chosen(fields, [tool.plain() for tool in given])


def chosen(fields: Fields, offered: list[dict[str, Any]]) -> Tools:
    """`offered`, as `tool_choice` and `parallel_tool_calls` want them. Raises Refused."""
    must: str | None = None
    if isinstance(fields.get("tool_choice"), dict):
        choice = fields.object("tool_choice") or Fields({})
        choice.require("type")
        choice.choice("type", ["function"])
        named = choice.object("function") or choice
        named.require("name")
        must = named.text("name")
    else:
        kind = fields.choice("tool_choice", ["none", "auto", "required"])
        if kind == "none":
            return Tools()
        must = "" if kind == "required" else None
    require_offered(must, offered)
    several = fields.flag("parallel_tool_calls", True)
    strict = any(tool["function"].get("strict") for tool in offered)
    return Tools(offered, None if several else 1, must, strict) if offered else Tools()


def require_offered(must: str | None, offered: list[dict[str, Any]]) -> None:
    """Raises Refused where a tool has to be called that is not there."""
    names = [tool["function"]["name"] for tool in offered]
    if must is not None and (must not in names if must else not names):
        what = f"no tool has the name {must!r:.60}" if must else "there are no tools"
        raise Refused(400, f"tool_choice: {what}", param="tool_choice")


def _check(tool: Fields) -> None:
    tool.choice("type", ["function"], "function")
    tool.require("function")
    function = tool.object("function") or Fields({})
    function.require("name")
    function.text("name")
    function.text("description")
    function.object("parameters")
    function.flag("strict")
