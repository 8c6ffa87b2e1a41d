"""Tools that a request offers, and what it says of their use."""

from typing import Any, NamedTuple

from mmrt.serving.fields import Fields
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused


class Tools(NamedTuple):
    """offered: OpenAI's descriptions of functions; None: there are none. most_calls: in an answer;
    None: any number."""

    offered: list[dict[str, Any]] | None = None
    most_calls: int | None = None


def read_tools(fields: Fields, limits: Limits) -> Tools:
    """The `tools` of a request, `tool_choice` and `parallel_tool_calls`. Raises Refused."""
    given = fields.objects("tools", limits.tools) or []
    for tool in given:
        _check(tool)
    choice = require_auto(fields)
    several = fields.flag("parallel_tool_calls", True)
    if not given or choice == "none":
        return Tools()
    return Tools([tool.plain() for tool in given], None if several else 1)


def require_auto(fields: Fields) -> str:
    """`tool_choice`: "auto" or "none". Raises Refused for others."""
    choice = fields.get("tool_choice") or "auto"
    if choice not in ("none", "auto"):
        raise Refused(
            400,
            "tool_choice: this server knows none and auto: it cannot make a model call a tool",
            param="tool_choice",
            code="unsupported_parameter",
        )
    return str(choice)


def _check(tool: Fields) -> None:
    tool.choice("type", ["function"], "function")
    tool.require("function")
    function = tool.object("function") or Fields({})
    function.require("name")
    function.text("name")
    function.text("description")
    function.object("parameters")
    refuse_strict(function)


def refuse_strict(function: Fields) -> None:
    """Raises Refused for a function whose arguments are to be held to its schema."""
    if function.flag("strict"):
        name = function.name("strict")
        raise Refused(
            400,
            f"{name}: this server does not hold arguments to a schema yet",
            param=name,
            code="unsupported_parameter",
        )
