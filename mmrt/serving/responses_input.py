"""Items and tools, from what clients of /v1/responses send to what chat templates read."""

from collections.abc import Sequence
from typing import Any

from mmrt.serving.fields import Fields
from mmrt.serving.kinds import Choice, Either, Kind, List, Record, Tagged, Text
from mmrt.serving.limits import Limits
from mmrt.serving.messages import call, content, said
from mmrt.serving.problems import Refused
from mmrt.serving.tools import CHOICES, FUNCTION, Tools, chosen

# Tools of OpenAI's own that models need not be told of: without them they answer all the same.
_PASSED_OVER = ("web_search", "web_search_preview")

_ROLES = Choice("user", "assistant", "system", "developer")
_CALL = Record({"call_id": Text(), "name": Text(), "arguments": Text()}, ("call_id", "name"))


def _item(limits: Limits) -> Kind:
    content = said(limits)
    thoughts = List(Record({"text": Text()}), limits.messages)
    return Tagged(
        {
            "message": Record({"role": _ROLES, "content": content}, ("role", "content")),
            "function_call": _CALL,
            "function_call_output": Record(
                {"call_id": Text(), "output": content}, ("call_id", "output")
            ),
            "reasoning": Record({"content": thoughts}),
        },
        default="message",
    )


def declare(limits: Limits) -> dict[str, Kind]:
    """The fields that tell what went before, and what the answer has to be."""
    tool = Record(FUNCTION, ("name",))
    passed_over = dict.fromkeys(_PASSED_OVER, Record())
    format_ = Tagged(
        {
            "text": Record(),
            "json_object": Record(),
            "json_schema": Record({"schema": Record()}, ("schema",)),
        },
        default="text",
    )
    return {
        "input": Either(Text(), List(_item(limits), limits.messages, 1)),
        "instructions": Text(),
        "tools": List(Tagged({"function": tool, **passed_over}), limits.tools),
        **CHOICES,
        "text": Record({"format": format_}),
        "reasoning": Record({"effort": Text()}),
    }


def read_items(fields: Fields) -> list[dict[str, Any]]:
    """The items of `input`, of which a text is one. Raises Refused."""
    if isinstance(given := fields.get("input"), str):
        return [{"type": "message", "role": "user", "content": given}]
    items: list[dict[str, Any]] = given
    return items


def read_messages(
    fields: Fields,
    earlier: Sequence[dict[str, Any]],
    items: Sequence[dict[str, Any]],
    limits: Limits,
) -> list[dict[str, Any]]:
    """`instructions` of a request and its items as messages, behind `earlier` ones. Raises
    Refused."""
    found: list[dict[str, Any]] = []
    if instructions := fields.get("instructions"):
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
        kind = item.get("type", "message")
        if kind == "message":
            self._add_message(item)
        elif kind == "function_call":
            made = call(item, item.get("call_id"))
            self._called.add(made["id"])
            self._assistant().setdefault("tool_calls", []).append(made)
        elif kind == "function_call_output":
            identity = item.get("call_id")
            if identity not in self._called:
                name = item.name("call_id")
                raise Refused(
                    400, f"{name}: no call before has the id {identity!r:.60}", param=name
                )
            answer = content(item, "output")
            self._found.append({"role": "tool", "tool_call_id": identity, "content": answer})
        else:
            self._thoughts += "".join(part.get("text", "") for part in item.objects("content"))

    def _add_message(self, item: Fields) -> None:
        role, told = item.get("role"), content(item, "content")
        if role == "assistant":
            message = self._assistant()
            if message["content"]:  # it has spoken twice
                message = {"role": "assistant", "content": ""}
                self._found.append(message)
            message["content"] = told
        else:
            role = "system" if role == "developer" else role
            self._found.append({"role": role, "content": told})

    def _assistant(self) -> dict[str, Any]:
        """The assistant's message that goes on, or a new one."""
        last = self._found[-1] if self._found else {}
        if last.get("role") != "assistant" or self._thoughts:
            last = {"role": "assistant", "content": ""}
            self._found.append(last)
        if self._thoughts:
            last["reasoning_content"], self._thoughts = self._thoughts, ""
        return last


def read_tools(fields: Fields) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a request. Raises Refused."""
    offered = [tool for tool in fields.objects("tools") if tool.get("type") not in _PASSED_OVER]
    return chosen(fields, [_tool(tool) for tool in offered])


def _tool(tool: Fields) -> dict[str, Any]:
    """A function, as chats describe it."""
    names = ("name", "description", "parameters")
    function = {name: tool.get(name) for name in names if tool.has(name)}
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def read_format(fields: Fields) -> dict[str, Any]:
    """What the answer has to be, by `text.format`."""
    wanted = fields.object("text").object("format")
    kind = wanted.get("type", "text")
    if kind == "json_schema":
        return {"json_schema": wanted.get("schema")}
    return {"json_object": True} if kind == "json_object" else {}


def read_variables(fields: Fields) -> dict[str, Any]:
    """What else a request tells the chat template."""
    effort = fields.object("reasoning").get("effort")
    return {} if effort is None else {"reasoning_effort": effort}
