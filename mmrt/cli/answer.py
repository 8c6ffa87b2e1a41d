"""Showing what a model writes: the text as it comes, and what there is to say of it."""

import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from mmrt.cli.live import Live, live
from mmrt.cli.output import Update, note, progress, write

if TYPE_CHECKING:
    from mmrt.run.generation import Finish, Piece
    from mmrt.run.model import Model


class Written(NamedTuple):
    """n_read, n_written: tokens. finish: as the last piece's."""

    text: str
    n_read: int
    n_written: int
    finish: "Finish | None"
    read_seconds: float
    write_seconds: float

    def note_speed(self, model: "Model") -> None:
        note(f"prompt: {self.n_read} tokens, {_rate(self.n_read, self.read_seconds)}")
        # The first token comes with the prompt's last step.
        after = max(self.n_written - 1, 0)
        note(f"answer: {self.n_written} tokens, {_rate(after, self.write_seconds)}")
        if model.drafts.record.steps:
            note(f"drafts so far: {model.drafts.record}")

    def note_cut(self, model: "Model", limit: int | None, is_answer: bool = True) -> None:
        """Says it where the text was to go on; one that is no answer always ends by `limit`, the
        tokens that were allowed."""
        if self.finish == "length" and limit != 0:
            if limit is None or self.n_written < limit:
                note(f"cut: the context of {model.context} tokens is full")
            elif is_answer:
                note(f"cut at {limit} tokens: -n {2 * limit} allows more, -n -1 any number")


def show(
    model: "Model", start: "Callable[[Update], Iterator[Piece]]", hide_reasoning: bool = False
) -> Written:
    """Prints the pieces that `start` gives, and ends the line, also after Ctrl-C. `start` takes
    what the progress of reading the prompt is told to. Reasoning is for terminals alone, dim, and
    may be hidden there too.
    """
    n_read = 0

    def update(done: int, total: int) -> None:
        nonlocal n_read
        n_read = total
        bar(done, total)

    with live(model) as line:
        began = time.perf_counter()
        with progress("reading the prompt") as bar:
            pieces = start(update)
            first = next(pieces)
        read = time.perf_counter()
        text, n_written, finish = _write(chain([first], pieces), line, hide_reasoning)
        return Written(text, n_read, n_written, finish, read - began, time.perf_counter() - read)


def _write(
    pieces: "Iterator[Piece]", line: Live, hide_reasoning: bool
) -> "tuple[str, int, Finish | None]":
    """(the answer, the number of tokens, how it ended)."""
    hide_reasoning = hide_reasoning or not sys.stdout.isatty()
    text, n_tokens, finish = "", 0, None
    shown = channel = ""  # of what was written: its end, and where it belongs
    try:
        for piece in pieces:
            line.begin()
            n_tokens += piece.token is not None
            finish = piece.finish
            reasoning = piece.channel == "reasoning"
            if not reasoning:
                text += piece.text
            if not piece.text or (reasoning and hide_reasoning):
                continue
            if channel not in ("", piece.channel):
                write("\n\n")
            shown, channel = piece.text, piece.channel
            write(piece.text, dim=reasoning)
    finally:
        line.begin()
        if shown and not shown.endswith("\n"):
            print(flush=True)
    return text, n_tokens, finish


def _rate(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens / seconds:.1f} tokens/s"
