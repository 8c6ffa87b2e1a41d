"""What was typed in earlier sessions: a line of JSON a message, readable by the user alone."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

LIMIT = 1000  # messages


def path() -> Path:
    """$XDG_STATE_HOME/mmrt/history, or ~/.local/state/mmrt/history."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification's words: ignore relative ones
        base = os.path.expanduser("~/.local/state")
    return Path(base, "mmrt", "history")


class History:
    """The latest messages, in readline's memory and on the disk. A disk that cannot be written
    is no reason not to talk: then nothing is kept.
    """

    def __init__(self) -> None:
        self._readline: Any = None
        self._last = ""

    def load(self, readline: Any) -> None:
        """Gives the messages of earlier sessions to `readline`, Python's module."""
        self._readline = readline
        readline.set_auto_history(False)  # a message may have several lines
        with suppress(OSError):
            lines = path().read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines[-LIMIT:]:
                self._remember(_decoded(line))
            if len(lines) > 2 * LIMIT:
                self._cut(lines[-LIMIT:])

    def add(self, text: str) -> None:
        """Keeps `text`, if it is another than the last one."""
        if text == self._last or self._readline is None:
            return
        self._remember(text)
        with suppress(OSError):
            path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path(), "a", encoding="utf-8", opener=_private) as file:
                file.write(json.dumps(text) + "\n")

    def _remember(self, text: str) -> None:
        if text and "\0" not in text:  # which readline cannot hold
            self._readline.add_history(text)
            self._last = text

    def _cut(self, lines: list[str]) -> None:
        shorter = path().with_suffix(f".{os.getpid()}")
        with open(shorter, "w", encoding="utf-8", opener=_private) as file:
            file.writelines(f"{line}\n" for line in lines)
        shorter.replace(path())


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _decoded(line: str) -> str:
    """The message of a line; empty for one that is none."""
    try:
        text = json.loads(line)
    except ValueError:
        return ""
    return text if isinstance(text, str) else ""
