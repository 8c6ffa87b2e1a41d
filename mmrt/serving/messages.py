"""Messages of a chat, from what clients send to what chat templates read."""

import json
from typing import Any

from mmrt.errors import ArgumentError
from mmrt.serving.fields import Fields
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused
from mmrt.text.chat import require_variables

_TEXT_PARTS = ("text", "input_text", "output_text")


def read_messages(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    """The `messages` of a request. Raises Refused for what is none, and for pictures and sounds."""
    fields.require("messages")
    given = fields.objects("messages", limits.messages) or []
    if not given:
        raise Refused(400, "messages: the list is empty", param="messages")
    names: dict[str, str] = {}  # of the tools that calls so far have called
    return [_message(one, names) for one in given]


def _message(fields: Fields, names: dict[str, str]) -> dict[str, Any]:
    fields.require("role")
    role = fields.text("role")
    message = {name: value for name, value in fields.plain().items() if value is not None}
    message["role"] = "system" if role == "developer" else role
    calls = fields.objects("tool_calls", 1 << 10)
    if fields.has("content"):
        message["content"] = _content(fields)
    elif role == "assistant":
        message["content"] = "" if not calls else None
    else:
        fields.require("content")
    if calls:
        message["tool_calls"] = [_call(call, names) for call in calls]
    if role == "tool":
        called = names.get(fields.text("tool_call_id") or "")
        if called is not None:
            message.setdefault("name", called)
    return message


def _content(fields: Fields) -> Any:
    content = fields.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.bad("content", "a string or a list of parts")
    parts = fields.objects("content", 1 << 12) or []
    return [text_part(part) for part in parts]


def text_part(part: Fields) -> dict[str, str]:
    """A part of a message, as templates have it. Raises Refused for what is no text."""
    kind = part.text("type")
    if kind == "refusal":
        return {"type": "text", "text": part.text("refusal") or ""}
    if kind not in _TEXT_PARTS:
        name = part.name("type")
        raise Refused(
            400,
            f"{name}: a part of type {kind!r:.40}, and this server reads text alone",
            param=name,
        )
    part.require("text")
    return {"type": "text", "text": part.text("text") or ""}


def _call(call: Fields, names: dict[str, str]) -> dict[str, Any]:
    call.require("function")
    found = called(call.object("function") or Fields({}), call.text("id") or "")
    names[found["id"]] = found["function"]["name"]
    return found


def called(function: Fields, identity: str) -> dict[str, Any]:
    """A call of a tool, its arguments as an object: so templates write them in their own way."""
    function.require("name")
    name, arguments = function.text("name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            read = arguments
        arguments = read if isinstance(read, dict) else arguments
    arguments = {} if arguments is None else arguments
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def read_template_variables(fields: Fields) -> dict[str, Any]:
    """What else a request tells the chat template."""
    given = fields.object("chat_template_kwargs")
    variables = given.plain() if given else {}
    effort = fields.text("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
    try:
        return require_variables(variables)
    except ArgumentError as error:
        name = fields.name("chat_template_kwargs")
        raise Refused(400, f"{name}: {error}", param=name) from None
