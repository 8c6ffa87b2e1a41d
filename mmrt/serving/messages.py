"""Messages of a chat, from what clients send to what chat templates read."""

import json
from typing import Any

from mmrt.errors import ArgumentError
from mmrt.serving.fields import Fields
from mmrt.serving.kinds import Anything, Either, Kind, List, Record, Tagged, Text
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused
from mmrt.text.chat import require_variables


def said(limits: Limits) -> Kind:
    """What a message says, whole or in parts. This server reads text alone."""
    text = Record({"text": Text()}, ("text",))
    kinds = dict.fromkeys(("text", "input_text", "output_text"), text)
    part = Tagged({**kinds, "refusal": Record({"refusal": Text()})})
    return Either(Text(), List(part, limits.messages))


_FUNCTION = Record({"name": Text(), "arguments": Anything()}, ("name",))
_CALL = Record({"id": Text(), "function": _FUNCTION}, ("function",))


def declare(limits: Limits) -> dict[str, Kind]:
    """The fields that tell a chat."""
    message = Record(
        {
            "role": Text(),
            "content": said(limits),
            "tool_calls": List(_CALL, limits.messages),
            "tool_call_id": Text(),
        },
        ("role",),
    )
    return {
        "messages": List(message, limits.messages, 1),
        "chat_template_kwargs": Record(),
        "reasoning_effort": Text(),
    }


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The `messages` of a request. Raises Refused."""
    called: dict[str, str] = {}  # the names of the tools that calls so far have called, by id
    return [_message(one, called) for one in fields.objects("messages")]


def _message(fields: Fields, called: dict[str, str]) -> dict[str, Any]:
    role, calls = fields.get("role"), fields.objects("tool_calls")
    message = {name: value for name, value in fields.plain().items() if value is not None}
    message["role"] = "system" if role == "developer" else role
    if fields.has("content"):
        message["content"] = content(fields, "content")
    elif role == "assistant":
        message["content"] = "" if not calls else None
    else:
        fields.require("content")
    if calls:
        message["tool_calls"] = [_call(call, called) for call in calls]
    if role == "tool":
        _answer(fields, message, called)
    return message


def _answer(fields: Fields, message: dict[str, Any], called: dict[str, str]) -> None:
    """Gives what a tool has answered the tool's name. Raises Refused where nobody has called it."""
    identity = fields.get("tool_call_id", "")  # as calls without one have it
    if identity not in called:
        fields.require("tool_call_id")
        name = fields.name("tool_call_id")
        raise Refused(400, f"{name}: no call before has the id {identity!r:.60}", param=name)
    message.setdefault("name", called[identity])


def content(fields: Fields, field: str) -> Any:
    """A text, or parts of it, as templates have them."""
    given = fields.get(field)
    if isinstance(given, str):
        return given
    return [
        {"type": "text", "text": part.get("text", part.get("refusal", ""))}
        for part in fields.objects(field)
    ]


def _call(fields: Fields, called: dict[str, str]) -> dict[str, Any]:
    found = call(fields.object("function"), fields.get("id", ""))
    called[found["id"]] = found["function"]["name"]
    return found


def call(function: Fields, identity: str) -> dict[str, Any]:
    """A call of a tool, its arguments as an object: so templates write them in their own way."""
    name, arguments = function.get("name"), function.get("arguments")
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
    variables = fields.object("chat_template_kwargs").plain()
    effort = fields.get("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
    try:
        return require_variables(variables)
    except ArgumentError as error:
        name = fields.name("chat_template_kwargs")
        raise Refused(400, f"{name}: {error}", param=name) from None
