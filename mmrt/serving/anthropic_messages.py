"""Messages and tools, from what Anthropic's clients send to what chat templates read."""

import re
from typing import Any

from mmrt.serving.fields import Fields
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused
from mmrt.serving.tools import Tools, require_offered

# A line that Claude Code writes first, with other digits each time: whatever follows it would have
# to be read anew. It tells Anthropic who pays, and a model nothing.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")


def read_messages(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    """`system` and `messages` of a request. Raises Refused."""
    found: list[dict[str, Any]] = []
    if system := _system(fields):
        found.append({"role": "system", "content": system})
    fields.require("messages")
    given = fields.objects("messages", limits.messages) or []
    if not given:
        raise Refused(400, "messages: the list is empty", param="messages")
    called: set[str] = set()
    for one in given:
        found += _message(one, called)
    return found


def _system(fields: Fields) -> str:
    if isinstance(fields.get("system"), str):
        texts = [fields.text("system") or ""]
    else:
        texts = [_text(block) for block in fields.objects("system", 1 << 10) or []]
    kept = [_BILLING.sub("", text) for text in texts]
    return "\n".join(text for text in kept if text)


def _text(block: Fields) -> str:
    if block.text("type") != "text":
        name = block.name("type")
        raise Refused(400, f"{name}: {block.text('type')!r:.40} is no text", param=name)
    block.require("text")
    return block.text("text") or ""


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
    fields.require("role")
    fields.require("content")
    role = fields.choice("role", ["user", "assistant", "system"])
    if isinstance(fields.get("content"), str):
        return [{"role": role, "content": fields.text("content")}]
    texts: list[dict[str, str]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    thoughts = ""
    for block in fields.objects("content", 1 << 12) or []:
        kind = block.text("type") or ""
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
            thoughts += block.text("thinking") or ""
        elif kind != "redacted_thinking":
            texts.append({"type": "text", "text": _text(block)})
    message: dict[str, Any] = {"role": role, "content": texts}
    if calls:
        message |= {"tool_calls": calls, "content": texts or None}
    if thoughts:
        message["reasoning_content"] = thoughts
    return results + ([message] if texts or calls or not results else [])


def _call(block: Fields, called: set[str]) -> dict[str, Any]:
    block.require("id")
    block.require("name")
    identity = block.text("id") or ""
    called.add(identity)
    arguments = block.object("input")
    function = {"name": block.text("name"), "arguments": arguments.plain() if arguments else {}}
    return {"id": identity, "type": "function", "function": function}


def _result(block: Fields, called: set[str]) -> dict[str, Any]:
    block.require("tool_use_id")
    identity = block.text("tool_use_id") or ""
    if identity not in called:
        name = block.name("tool_use_id")
        raise Refused(400, f"{name}: no tool_use before has the id {identity!r:.60}", param=name)
    if isinstance(block.get("content"), str):
        text = block.text("content") or ""
    else:
        text = "\n".join(_text(part) for part in block.objects("content", 1 << 12) or [])
    if block.flag("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": identity, "content": text}


def read_tools(fields: Fields, limits: Limits) -> Tools:
    """`tools` and `tool_choice` of a request. Raises Refused."""
    found = [_tool(tool) for tool in fields.objects("tools", limits.tools) or []]
    choice = fields.object("tool_choice") or Fields({})
    kind = choice.choice("type", ["auto", "none", "any", "tool"], "auto")
    if kind == "tool":
        choice.require("name")
    must = choice.text("name") if kind == "tool" else "" if kind == "any" else None
    require_offered(must, found)
    most_calls = 1 if choice.flag("disable_parallel_tool_use") else None
    if not found or kind == "none":
        return Tools()
    return Tools(found, most_calls, must, any(tool["function"].get("strict") for tool in found))


def _tool(tool: Fields) -> dict[str, Any]:
    """A tool, as OpenAI describes it."""
    tool.choice("type", ["custom"], "custom")
    tool.require("name")
    schema = tool.object("input_schema")
    function: dict[str, Any] = {"name": tool.text("name")}
    if tool.has("description"):
        function["description"] = tool.text("description")
    function["parameters"] = schema.plain() if schema else {"type": "object", "properties": {}}
    if tool.flag("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def read_variables(fields: Fields) -> dict[str, Any]:
    """What else a request tells the chat template."""
    thinking = fields.object("thinking") or Fields({})
    kind = thinking.choice("type", ["enabled", "disabled", "adaptive"])
    found: dict[str, Any] = {}
    if kind in ("enabled", "disabled"):
        found["enable_thinking"] = kind == "enabled"
    if effort := (fields.object("output_config") or Fields({})).text("effort"):
        found["reasoning_effort"] = effort
    return found


def read_format(fields: Fields) -> dict[str, Any]:
    """What the answer has to be."""
    wanted = (fields.object("output_config") or Fields({})).object("format")
    if wanted is None:
        return {}
    wanted.choice("type", ["json_schema"])
    wanted.require("schema")
    schema = wanted.object("schema")
    return {"json_schema": schema.plain() if schema else None}
