"""Server-sent events, as streams of chat clients have them."""

import json
from typing import Any

CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


# json.dumps() would make one for each value.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def to_json(value: Any) -> str:
    """Compact, and never more than one line."""
    return _ENCODER.encode(value)


def event(data: Any, name: str = "") -> bytes:
    """One event with `data` as JSON, whole characters of UTF-8 alone."""
    head = f"event: {name}\n" if name else ""
    # A lone surrogate, which a client may have sent and is told again, is no character.
    return f"{head}data: {to_json(data)}\n\n".encode("utf-8", "replace")
