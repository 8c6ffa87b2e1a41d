"""Conversations in files: JSON with the `messages` of a chat, as requests to servers have them."""

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mmrt.errors import FormatError

_LARGEST = 64 << 20  # bytes


def save(path: str, messages: Sequence[dict[str, Any]]) -> None:
    """Writes a conversation. A file that is there is replaced only if it is one too: FormatError
    otherwise."""
    with suppress(FileNotFoundError):
        load(path)
    beside = f"{path}.{os.getpid()}"
    with open(beside, "x", encoding="utf-8") as file:
        json.dump({"messages": list(messages)}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(beside, path)


def load(path: str) -> list[dict[str, Any]]:
    """The messages in a file, or in an object of it. Raises OSError, and FormatError for others."""
    if "\0" in path:
        raise FormatError("the name of a file has no NUL in it")
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
        raise FormatError(f"{path}: no conversation: no file, or more than 64 MiB")
    with open(path, encoding="utf-8") as file:
        try:
            said = json.load(file)
        except (ValueError, RecursionError):
            said = None
    if isinstance(said, dict):
        said = said.get("messages")
    if not isinstance(said, list) or not all(map(_is_message, said)):
        raise FormatError(f"{path}: no conversation: expected JSON with `messages`")
    return said


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()
