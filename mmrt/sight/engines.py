"""Engines of other processes, or of this one: their snapshots, and who shares which pages."""

import os
import socket
import stat
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

from mmrt.core.state import PAGE_TOKENS, Page
from mmrt.errors import FileError, FormatError
from mmrt.run.phases import Doing, Span
from mmrt.run.snapshot import Snapshot, TextState

_PATIENCE = 30.0  # seconds: an engine answers between two steps
_MOST_BYTES = 1 << 28


def look(path: str) -> Snapshot:
    """The snapshot of the engine that shows itself at the socket `path` (Model.engine(sight=)), or
    the one that Snapshot.to_json() has put into a file.

    Raises FileError, FormatError.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISSOCK(mode):
            data = _ask(path)
        elif stat.S_ISREG(mode):
            with open(path, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
        else:
            raise FileError(f"{path} is neither a socket nor a file")
    except TimeoutError:
        raise FileError(
            f"{path}: the engine has not answered for {_PATIENCE:.0f} seconds: it is in a step"
        ) from None
    except ConnectionRefusedError:
        raise FileError(f"{path}: no engine is there any more") from None
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(error.errno, f"{path}: {error.strerror or error}") from None
    if not data:
        if stat.S_ISSOCK(mode):
            raise FileError(f"{path}: the engine was closed")
        raise FormatError(f"{path}: no snapshot of an engine: the file is empty")
    if len(data) > _MOST_BYTES:
        raise FormatError(f"{path}: more than {_MOST_BYTES} bytes")
    try:
        return Snapshot.from_json(data)
    except FormatError as error:
        raise FormatError(f"{path}: no snapshot of an engine: {error}") from None


def _ask(path: str) -> bytes:
    parts, size = [], 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
        while size <= _MOST_BYTES and (part := connection.recv(1 << 20)):
            parts.append(part)
            size += len(part)
    return b"".join(parts)


def name(text: TextState) -> str:
    """What a text is called."""
    return f"text {text.number}" if text.number else "kept"


class Run(NamedTuple):
    """Pages of a text from its `first` on that are alike in who holds them."""

    first: int
    pages: list[Page]
    owner: int  # the first text of the snapshot that has them, as an index
    holders: int  # texts, of the engine or others

    @property
    def tokens(self) -> tuple[int, int]:
        """The first and the last one that they can hold."""
        return self.first * PAGE_TOKENS, (self.first + len(self.pages)) * PAGE_TOKENS - 1

    @property
    def places(self) -> str:
        """Their numbers, runs of them as one: "8-15, 40"."""
        found: list[list[int]] = []
        for page in self.pages:
            if found and page.number == found[-1][1] + 1:
                found[-1][1] = page.number
            else:
                found.append([page.number, page.number])
        return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def owners(texts: Sequence[TextState]) -> dict[int, int]:
    """Which of the texts, as an index, is the first to hold each page."""
    found: dict[int, int] = {}
    for index, text in enumerate(texts):
        for page in text.pages:
            found.setdefault(page.number, index)
    return found


def runs(text: TextState, owner: dict[int, int]) -> list[Run]:
    """The table of a text's pages."""
    found: list[Run] = []
    for i, page in enumerate(text.pages):
        kind = owner[page.number], page.holders
        if found and found[-1][2:] == kind:
            found[-1].pages.append(page)
        else:
            found.append(Run(i, [page], *kind))
    return found


def stretch(spans: Sequence[Span]) -> tuple[float, float]:
    """From the first start to the last end."""
    return min(span.start for span in spans), max(span.end for span in spans)


def strip(spans: Iterable[Span], begin: float, end: float, n: int) -> list[Doing | None]:
    """What one text did in each of `n` equal parts of the time from `begin` to `end`: in each, what
    it did for the longest; None: nothing."""
    shares: list[dict[Doing, float]] = [{} for _ in range(n)]
    part = (end - begin) / n or 1.0
    for span in spans:
        start, stop = span.start - begin, span.end - begin
        for i in range(max(int(start / part), 0), min(int(stop / part), n - 1) + 1):
            overlap = min(stop, (i + 1) * part) - max(start, i * part)
            if overlap > 0:
                shares[i][span.doing] = shares[i].get(span.doing, 0.0) + overlap
    return [max(share.items(), key=itemgetter(1))[0] if share else None for share in shares]
