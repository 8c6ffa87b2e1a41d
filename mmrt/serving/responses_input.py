"""Items and tools, from what clients of /v1/responses send to what chat templates read."""

from collections.abc import Sequence
from typing import Any

from mmrt.serving.fields import Fields
from mmrt.serving.limits import Limits
from mmrt.serving.messages import called, text_part
from mmrt.serving.problems import Refused
from mmrt.serving.tools import Tools, chosen

# Tools of OpenAI's own that models need not be told of: without them they answer all the same.
_PASSED_OVER = ("web_search", "web_search_preview")


def read_items(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    """The items of `input`, of which a text is one. Raises Refused."""
    fields.require("input")
    if isinstance(fields.get("input"), str):
        return [{"type": "message", "role": "user", "content": fields.get("input")}]
    items = fields.objects("input", limits.messages) or []
    if not items:
        raise Refused(400, "input: the list is empty", param="input")
    return [item.plain() for item in items]


def read_messages(
    fields: Fields,
    earlier: Sequence[dict[str, Any]],
    items: Sequence[dict[str, Any]],
    limits: Limits,
) -> list[dict[str, Any]]:
    """`instructions` of a request and its items as messages, behind `earlier` ones. Raises
    Refused."""
    found: list[dict[str, Any]] = []
    if instructions := fields.text("instructions"):
        found.append({"role": "system", "content": instructions})
    if len(earlier) + len(items) > limits.messages:
        many = f"{len(earlier) + len(items)} items, earlier ones among them,"
        raise Refused(400, f"input: {many} are more than {limits.messages}", param="input")
    messages = _Messages(found)
    for item in earlier:
        messages.add(Fields(item, "previous_response_id"))
    for i, item in enumerate(items):
        messages.add(Fields(item, f"input[{i}]"))
    return found


class _Messages:
    """Messages that grow by items: an assistant's reasoning, text and calls, which are items of
    their own, make one message."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self._found = found
        self._thoughts = ""
        self._called: set[str] = set()  # ids of the calls so far

    def add(self, item: Fields) -> None:
        kind = item.text("type") or "message"
        if kind == "message":
            self._add_message(item)
        elif kind == "function_call":
            item.require("call_id")
            call = called(item, item.text("call_id") or "")
            self._called.add(call["id"])
            self._assistant().setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            item.require("call_id")
            identity = item.text("call_id") or ""
            if identity not in self._called:
                name = item.name("call_id")
                raise Refused(
                    400, f"{name}: no call before has the id {identity!r:.60}", param=name
                )
            content = self._content(item, "output")
            self._found.append({"role": "tool", "tool_call_id": identity, "content": content})
        elif kind == "reasoning":
            parts = item.objects("content", 1 << 10) or []
            self._thoughts += "".join(part.text("text") or "" for part in parts)
        else:
            name = item.name("type")
            raise Refused(
                400, f"{name}: this server knows no items of type {kind!r:.40}", param=name
            )

    def _add_message(self, item: Fields) -> None:
        item.require("role")
        role = item.choice("role", ["user", "assistant", "system", "developer"])
        content = self._content(item, "content")
        if role == "assistant":
            message = self._assistant()
            if message["content"]:  # it has spoken twice
                message = {"role": "assistant", "content": ""}
                self._found.append(message)
            message["content"] = content
        else:
            role = "system" if role == "developer" else role
            self._found.append({"role": role, "content": content})

    @staticmethod
    def _content(item: Fields, field: str) -> Any:
        item.require(field)
        if isinstance(item.get(field), str):
            return item.text(field)
        return [text_part(part) for part in item.objects(field, 1 << 12) or []]

    def _assistant(self) -> dict[str, Any]:
        """The assistant's message that goes on, or a new one."""
        last = self._found[-1] if self._found else {}
        if last.get("role") != "assistant" or self._thoughts:
            last = {"role": "assistant", "content": ""}
            self._found.append(last)
        if self._thoughts:
            last["reasoning_content"], self._thoughts = self._thoughts, ""
        return last


def read_tools(fields: Fields, limits: Limits) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a request. Raises Refused."""
    found = [
        _tool(tool)
        for tool in fields.objects("tools", limits.tools) or []
        if tool.text("type") not in _PASSED_OVER
    ]
    return chosen(fields, found)


def _tool(tool: Fields) -> dict[str, Any]:
    """A function, as chats describe it."""
    tool.require("type")
    tool.choice("type", ["function"])
    tool.require("name")
    tool.object("parameters")
    names = ("name", "description", "parameters")
    tool.text("name")
    tool.text("description")
    function = {name: tool.get(name) for name in names if tool.has(name)}
    if tool.flag("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def read_format(fields: Fields) -> dict[str, Any]:
    """What the answer has to be, by `text.format`."""
    wanted = (fields.object("text") or Fields({})).object("format") or Fields({})
    kind = wanted.choice("type", ["text", "json_object", "json_schema"], "text")
    if kind == "json_schema":
        wanted.require("schema")
        schema = wanted.object("schema")
        return {"json_schema": schema.plain() if schema else None}
    return {"json_object": True} if kind == "json_object" else {}


def read_variables(fields: Fields) -> dict[str, Any]:
    """What else a request tells the chat template."""
    effort = (fields.object("reasoning") or Fields({})).text("effort")
    return {} if effort is None else {"reasoning_effort": effort}
