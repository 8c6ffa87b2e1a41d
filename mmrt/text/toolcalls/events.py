"""What a parser tells of the text that it is fed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextDelta:
    """More text that is no part of a call."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The model calls the function `name`. index: which call of the text it is, from 0; id: of this
    call alone."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments: all pieces of them together are a JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """The call is whole. One that has no end was cut off, and its arguments with it."""

    index: int


Event = TextDelta | CallBegin | CallArguments | CallEnd


def gather(events: Iterable[Event]) -> tuple[str, list[dict[str, Any]]]:
    """The text and the calls that `events` tell of; calls as messages have them in `tool_calls`."""
    text = ""
    calls: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, CallBegin):
            function = {"name": event.name, "arguments": ""}
            calls.append({"id": event.id, "type": "function", "function": function})
        elif isinstance(event, CallArguments):
            calls[event.index]["function"]["arguments"] += event.text
    return text, calls
