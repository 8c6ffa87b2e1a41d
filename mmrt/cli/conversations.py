"""Conversations in files: JSON with the `messages` of a chat, as requests to servers have them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mmrt.errors import FormatError


def save(path: str, messages: Sequence[dict[str, Any]]) -> None:
    """Writes a conversation. A file that is there is replaced only if it is one too: FormatError
    otherwise."""
    with suppress(FileNotFoundError):
        load(path)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"messages": list(messages)}, file, indent=1, ensure_ascii=False)
        file.write("\n")


def load(path: str) -> list[dict[str, Any]]:
    """The messages in a file, or in an object of it. Raises OSError, and FormatError for others."""
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except (ValueError, RecursionError):
            found = None
    if isinstance(found, dict):
        found = found.get("messages")
    if not isinstance(found, list) or not all(map(_is_message, found)):
        raise FormatError(f"{path}: no conversation: expected JSON with `messages`")
    return found


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()
