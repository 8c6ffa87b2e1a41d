"""What the commands share for printing: tables, bars, text from strangers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Update = Callable[[int, int], None]
"""update(done, total)"""


def note(text: str) -> None:
    """Says something beside the output proper."""
    print(f"mmrt: {text}", file=sys.stderr, flush=True)


def printable(text: str, limit: int = 72) -> str:
    """`text` on one line, cut at `limit` characters, and with nothing in it that steers a terminal:
    files come from strangers.
    """
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


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
        if done < total and not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
