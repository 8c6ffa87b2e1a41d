"""Server-sent events, as streams of chat clients have them."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def to_json(value: Any) -> str:
    """Compact, and never more than one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def event(data: Any, name: str = "") -> bytes:
    """One event with `data` as JSON, whole characters of UTF-8 alone."""
    head = f"event: {name}\n" if name else ""
    # A lone surrogate, which a client may have sent and is told again, is no character.
    return f"{head}data: {to_json(data)}\n\n".encode("utf-8", "replace")


async def with_pings(
    events: AsyncGenerator[bytes, None], seconds: float, ping: bytes = PING
) -> AsyncIterator[bytes]:
    """`events`, with `ping` wherever nothing else has come for so long."""
    upcoming: asyncio.Future[bytes] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(events.__anext__())
            while not upcoming.done():
                await asyncio.wait({upcoming}, timeout=seconds)
                if not upcoming.done():
                    yield ping
            try:
                came = upcoming.result()
            except StopAsyncIteration:
                return
            yield came
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        await events.aclose()
