"""Messages and tools, from what Anthropic's clients send to what chat templates read."""

import re
from typing import Any

from mmrt.serving.fields import Fields
from mmrt.serving.kinds import Choice, Either, Flag, Kind, List, Record, Tagged, Text
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused
from mmrt.serving.tools import Tools, require_offered

# A line that Claude Code writes first, with other digits each time: whatever follows it would have
# to be read anew. It tells Anthropic who pays, and a model nothing.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")


_TEXT = Record({"text": Text()}, ("text",))
_USE = Record({"id": Text(), "name": Text(), "input": Record()}, ("id", "name"))


def _texts_of(limits: Limits) -> Kind:
    return Either(Text(), List(Tagged({"text": _TEXT}), limits.messages))


def _message_of(limits: Limits) -> Kind:
    result = {"tool_use_id": Text(), "content": _texts_of(limits), "is_error": Flag()}
    block = Tagged(
        {
            "text": _TEXT,
            "thinking": Record({"thinking": Text()}),
            "redacted_thinking": Record(),
            "tool_use": _USE,
            "tool_result": Record(result, ("tool_use_id",)),
        }
    )
    content = Either(Text(), List(block, limits.messages))
    role = Choice("user", "assistant", "system")
    return Record({"role": role, "content": content}, ("role", "content"))


_TOOL = Record(
    {"name": Text(), "description": Text(), "input_schema": Record(), "strict": Flag()}, ("name",)
)
_CHOICE = {"disable_parallel_tool_use": Flag()}


def declare(limits: Limits) -> dict[str, Kind]:
    """The fields that tell a chat, its tools, and what the answer has to be."""
    choices = dict.fromkeys(("auto", "none", "any"), Record(_CHOICE))
    named = Record({"name": Text(), **_CHOICE}, ("name",))
    kinds = dict.fromkeys(("enabled", "disabled", "adaptive"), Record())
    schema = Tagged({"json_schema": Record({"schema": Record()}, ("schema",))})
    return {
        "system": _texts_of(limits),
        "messages": List(_message_of(limits), limits.messages, 1),
        "tools": List(Tagged({"custom": _TOOL}, default="custom"), limits.tools),
        "tool_choice": Tagged({**choices, "tool": named}, default="auto"),
        "thinking": Tagged(kinds, default="adaptive"),
        "output_config": Record({"effort": Text(), "format": schema}),
    }


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """`system` and `messages` of a request. Raises Refused."""
    found: list[dict[str, Any]] = []
    if system := _system(fields):
        found.append({"role": "system", "content": system})
    called: set[str] = set()
    for one in fields.objects("messages"):
        found += _message(one, called)
    return found


def _system(fields: Fields) -> str:
    kept = [_BILLING.sub("", text) for text in _texts(fields, "system")]
    return "\n".join(text for text in kept if text)


def _texts(fields: Fields, field: str) -> list[str]:
    if isinstance(given := fields.get(field), str):
        return [given]
    return [block.get("text") for block in fields.objects(field)]


# Who may say what is not text.
_SPEAKERS = {
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_result": "user",
}


def _message(fields: Fields, called: set[str]) -> list[dict[str, Any]]:
    """One message, or several: what tools have answered is one of its own for each. called: the ids
    of the calls so far."""
    role = fields.get("role")
    if isinstance(content := fields.get("content"), str):
        return [{"role": role, "content": content}]
    texts: list[dict[str, str]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    thoughts = ""
    for block in fields.objects("content"):
        kind = block.get("type")
        speaker = _SPEAKERS.get(kind, role)
        if speaker != role:
            name = block.name("type")
            raise Refused(
                400, f"{name}: {kind} is said by the {speaker}, not the {role}", param=name
            )
        if kind == "tool_use":
            calls.append(_call(block, called))
        elif kind == "tool_result":
            results.append(_result(block, called))
        elif kind == "thinking":
            thoughts += block.get("thinking", "")
        elif kind != "redacted_thinking":
            texts.append({"type": "text", "text": block.get("text")})
    message: dict[str, Any] = {"role": role, "content": texts}
    if calls:
        message |= {"tool_calls": calls, "content": texts or None}
    if thoughts:
        message["reasoning_content"] = thoughts
    return results + ([message] if texts or calls or not results else [])


def _call(block: Fields, called: set[str]) -> dict[str, Any]:
    identity = block.get("id")
    called.add(identity)
    function = {"name": block.get("name"), "arguments": block.get("input", {})}
    return {"id": identity, "type": "function", "function": function}


def _result(block: Fields, called: set[str]) -> dict[str, Any]:
    identity = block.get("tool_use_id")
    if identity not in called:
        name = block.name("tool_use_id")
        raise Refused(400, f"{name}: no tool_use before has the id {identity!r:.60}", param=name)
    text = "\n".join(_texts(block, "content"))
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": identity, "content": text}


def read_tools(fields: Fields) -> Tools:
    """`tools` and `tool_choice` of a request. Raises Refused."""
    found = [_tool(tool) for tool in fields.objects("tools")]
    choice = fields.object("tool_choice")
    kind = choice.get("type", "auto")
    must = choice.get("name") if kind == "tool" else "" if kind == "any" else None
    require_offered(must, found)
    most_calls = 1 if choice.get("disable_parallel_tool_use") else None
    if not found or kind == "none":
        return Tools()
    return Tools(found, most_calls, must, any(tool["function"].get("strict") for tool in found))


def _tool(tool: Fields) -> dict[str, Any]:
    """A tool, as OpenAI describes it."""
    function: dict[str, Any] = {"name": tool.get("name")}
    if tool.has("description"):
        function["description"] = tool.get("description")
    function["parameters"] = tool.get("input_schema", {"type": "object", "properties": {}})
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def read_variables(fields: Fields) -> dict[str, Any]:
    """What else a request tells the chat template."""
    kind = fields.object("thinking").get("type")
    found: dict[str, Any] = {}
    if kind in ("enabled", "disabled"):
        found["enable_thinking"] = kind == "enabled"
    if effort := fields.object("output_config").get("effort"):
        found["reasoning_effort"] = effort
    return found


def read_format(fields: Fields) -> dict[str, Any]:
    """What the answer has to be."""
    wanted = fields.object("output_config").object("format")
    return {"json_schema": wanted.get("schema")} if wanted.has("schema") else {}
