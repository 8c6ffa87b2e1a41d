"""What becomes of texts after a step: pieces for those who asked, or their ends."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmrt.core.kernels import Pool
from mmrt.run.generation import Piece, next_tokens
from mmrt.run.writing import Writing

# Texts that have ended, each with what ended it; None: they are whole. An error of one text, of
# whatever kind, is that text's alone.
Ended = Iterator[tuple[Writing, BaseException | None]]


def report_progress(readers: Iterable[Writing]) -> Ended:
    """Tells who asked how much of their prompts was read."""
    for job in readers:
        if job.progress is not None and not job.answer.started:
            try:
                job.progress(job.length, len(job.ids))
            except BaseException as error:  # SystemExit too: the thread is not the caller's
                yield job, error


def verify(jobs: Iterable[Writing], logits: Any) -> Ended:
    """Goes on with texts, some of which had drafts in the step."""
    now, row = time.monotonic(), 0
    for job in jobs:
        pieces: list[Piece] = []
        rows = logits[row : row + 1 + len(job.draft)]
        row += len(rows)
        error, following = None, None
        try:
            following = job.accept(rows, pieces)
        except Exception as raised:
            error = raised
        job.handle.tell(pieces, now)
        if following is None:
            yield job, error


def write(jobs: Sequence[Writing], logits: Any, pool: Pool) -> Ended:
    """Goes on with texts, each by a token drawn from its row of logits."""
    drawn = next_tokens([job.answer for job in jobs], logits, pool)
    now = time.monotonic()
    for job, token in zip(jobs, drawn, strict=True):
        if job.cache is None:  # it has ended over its progress
            continue
        try:
            pieces, following = job.answer.take(token)
        except Exception as error:
            yield job, error
            continue
        job.writes = True
        job.handle.tell(pieces, now)
        if following is None:
            yield job, None
        else:
            job.ids.append(following)
