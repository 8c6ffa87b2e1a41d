"""What a request may ask at most, checked before it costs anything."""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from mmrt.serving.problems import Refused

_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_MARKS = b"[]{},:"
_NOT_MARKS = bytes(set(range(256)) - set(_MARKS))


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    header: int = 16 << 10
    body: int = 32 << 20
    bodies: int = 256 << 20  # of all requests at once
    depth: int = 64  # of JSON
    marks: int = 1_000_000  # brackets, commas and colons of JSON
    messages: int = 4096  # and parts and calls of one
    tools: int = 512
    n: int = 8
    stop: int = 16
    stop_bytes: int = 256
    logit_bias: int = 1024
    connections: int = 256
    kept: int = 1024  # responses that later requests may go on from
    kept_bytes: int = 64 << 20  # of all of them, as JSON
    queue: int = 64  # texts under way for one model, those that wait among them
    idle_seconds: float = 75.0  # between two requests on a connection
    header_seconds: float = 10.0
    body_seconds: float = 120.0
    write_seconds: float = 60.0  # for which a client may take nothing
    ping_seconds: float = 10.0  # between comments in a stream that has nothing to say
    stop_seconds: float = 30.0  # for which texts may go on when the server is to end


class Shape:
    """Looks at JSON as it comes, without reading it: raises Refused for what is nested too deeply
    or has too many parts, before a parser has made objects of it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._in_string = False
        self._carried = b""
        self._depth = self._marks = 0

    def feed(self, chunk: bytes) -> None:
        data = (self._carried + chunk).replace(b"\\\\", b"")
        self._carried = b"\\" if data.endswith(b"\\") else b""
        if self._carried:
            data = data[:-1]
        parts = data.replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[1 if self._in_string else 0 :: 2])
        if len(parts) % 2 == 0:
            self._in_string = not self._in_string
        for mark in outside.translate(None, _NOT_BRACKETS):
            self._depth += 1 if mark in b"[{" else -1
            if self._depth > self._limits.depth:
                raise Refused(400, f"the body is nested deeper than {self._limits.depth}")
        self._marks += len(outside.translate(None, _NOT_MARKS))
        if self._marks > self._limits.marks:
            raise Refused(413, f"the body has more than {self._limits.marks} values")


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body that Shape has seen. Raises Refused for anything else."""

    def no_number(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number of JSON")

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=no_number)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error!s:.200}") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is no JSON object")
    return found
