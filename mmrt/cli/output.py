"""What the commands share for printing: tables, bars, JSON, text from strangers; and for the files
that they write."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrt.errors import FileError
from mmrt.files.whole_file import whole_file
from mmrt.memory.sizes import human

# Controls, but for tab and newline; separators of lines; what turns the direction of writing.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

Update = Callable[[int, int], None]
"""update(done, total)"""


def note(text: str) -> None:
    """Says something beside the output proper."""
    print(f"mmrt: {tame(text)}", file=sys.stderr, flush=True)


def write(text: str, dim: bool = False) -> None:
    """Prints a part of what a model writes, at once. A terminal gets it without what would steer
    it; unlike in tame(), what joins letters and emoji, and spaces of all widths, stay.
    dim: on a terminal."""
    shown = _STEERING.sub(lambda c: tame(c[0]), text) if sys.stdout.isatty() else text
    if dim and sys.stdout.isatty():
        shown = f"\x1b[2m{shown}\x1b[0m"
    print(shown, end="", flush=True)


def tame(text: str, keep: str = "") -> str:
    """`text` with nothing in it that steers a terminal: files come from strangers. What is not
    printable is spelled as Python does (`\\x1b`), but for the characters in `keep`."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def printable(text: str, limit: int = 72) -> str:
    """`text` tamed, on one line, and cut at `limit` characters."""
    return tame(text if len(text) <= limit else text[: limit - 1] + "…")


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON for any reader: NaN and the infinities, which JSON lacks, as null, and what
    is not printable in names and texts as escapes."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[^\n -~]", _escaped, text)


def _escaped(match: re.Match[str]) -> str:
    c = match[0]
    if c.isprintable():
        return c
    return "\\u007f" if c == "\x7f" else json.dumps(c)[1:-1]  # in two where UTF-16 has two units


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that was asked for, and says so: whole, or what was there stays. `-` is stdout.

    Raises FileError, naming the file.
    """
    if str(path) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    if path.exists() and not path.is_file():  # a device or a FIFO: there is nothing to keep
        try:
            path.write_bytes(data)
        except OSError as error:
            raise FileError(error.errno, error.strerror, str(path)) from None
    else:
        with whole_file(path) as out:
            out.write(data)
    note(f"wrote {path}, {human(len(data))}")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table: drawn on a terminal; elsewhere plain columns, which grep and awk can read."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headers, title=title or None, title_justify="left", show_header=any(headers))
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    lines = [headers, *rows] if any(headers) else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


@contextmanager
def progress(label: str) -> Iterator[Update]:
    """Gives a function update(done, total) that draws a bar on stderr, if that is a terminal.

    The bar comes with the first call that leaves something to do, and goes with the block.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=None)

    def update(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if done < total and not bar.live.is_started:
            bar.start()

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
