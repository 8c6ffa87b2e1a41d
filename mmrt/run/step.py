"""Who takes part in a step, with how many tokens, and with what drafts."""

from collections.abc import Callable
from itertools import groupby

import numpy as np

from mmrt.core.program import ALIKE_TOKENS, EXACT_TOKENS, Part
from mmrt.run.cost import StepCost
from mmrt.run.writing import Writing

# Seconds that a step may take while others write, but no less than four readings of the weights;
# and where a prompt is alone.
_GAP = 0.25
_GAP_ALONE = 1.0

# A text is young until it has had so many milliseconds. Beside young ones that write, a step takes
# so many times as long as for them alone, and the prompt of an older one gets what is left of it.
_YOUNG = 1000.0
_SLOWED = 1.5

# Texts that another prompt joins only with so many tokens at least.
_WORTH_JOINING = 8


# Texts of a step, each with its number of tokens.
Chosen = list[tuple[Writing, int]]


def add_drafts(chosen: Chosen, room: int | None) -> None:
    """Gives the texts of a step drafts, as far as it can be exact: not where some read prompts.
    room: bytes that recurrent states after each token of them may take; None: as they come."""
    left = EXACT_TOKENS - len(chosen)
    for job, _ in chosen[:1]:
        assert job.cache is not None
        if room is not None and (state := job.cache.store.block_bytes):
            left = min(left, room // state - len(chosen))
    writes = all(job.writes for job, _ in chosen)
    for i, (job, _) in enumerate(chosen):
        job.draft = []
        if writes and left > 0:
            job.propose(-(-left // (len(chosen) - i)), beside=len(chosen) - 1)
            left -= len(job.draft)


def take_part(
    jobs: list[Writing],
    cost: StepCost,
    max_gap: float | None,
    room: int,
    begin: Callable[[Writing, list[Writing]], bool],
) -> Chosen:
    """The texts of the next step, of `jobs` in order of rank, each with its number of tokens: class
    by class, those that write before those that read.

    max_gap: seconds that it may take; None: what mmrt.Engine says. room: tokens at most. begin:
    whether one that reads its prompt, after those before it, may.
    """
    gap = max(_GAP, 4 * cost.weights) if max_gap is None else max_gap
    within = gap if len(jobs) > 1 else max(gap, _GAP_ALONE)
    chosen: Chosen = []
    parts: list[tuple[int, int]] = []
    has_reader = False
    for _, equals in groupby(enumerate(jobs), lambda place: place[1].rank_class):
        of_class = list(equals)
        for _, job in of_class:
            part = (1, job.length)
            if job.writes and len(chosen) < room:
                if chosen and cost.predict([*parts, part]) > within:
                    break
                chosen.append((job, 1))
                parts.append(part)
        for_writers = _SLOWED * cost.predict(parts)
        for i, job in of_class:
            if job.writes or len(chosen) >= room or not begin(job, jobs[:i]):
                continue
            most = min(job.to_read, room - sum(n for _, n in chosen))
            gives_way = job.had >= _YOUNG and any(is_young_writer(other) for other in jobs[:i])
            until = min(for_writers, within) if gives_way else within
            n = cost.chunk(parts, job.length, most, until) if cost.steps else most
            n = max(n, 0 if has_reader else 1)
            if n < min(_WORTH_JOINING, most) and has_reader:
                break
            n = min(n, most)
            if n < 1:
                break
            n = job.cut(n)
            has_reader = True
            chosen.append((job, n))
            parts.append((n, job.length))
    return chosen


def is_young_writer(job: Writing) -> bool:
    return job.writes and job.had < _YOUNG


class Step:
    """Texts that read tokens together, and the logits that come of it."""

    def __init__(self, chosen: Chosen, vocab_size: int, room: int | None = None) -> None:
        """Some get drafts beside their tokens. room: see add_drafts()."""
        add_drafts(chosen, room)
        self.chosen = chosen
        self.parts = parts_of(chosen)
        self.costs = [(len(part.tokens), part.cache.length) for part in self.parts]
        pairs = zip(chosen, self.parts, strict=True)
        self.ends = [job for (job, _), part in pairs if part.outputs]  # those that get logits
        self.all_write = all(job.writes for job, _ in chosen)
        rows = sum(part.outputs for part in self.parts)
        self.n_drafted = rows - len(self.ends)  # tokens of drafts
        self.logits = np.empty((rows, vocab_size), np.float32) if rows else None


def prompt_key(job: Writing) -> tuple[str, int, tuple[int, ...]]:
    """What texts that have the very same tokens have in common, and few others."""
    return job.salt, len(job.ids), tuple(job.ids[-ALIKE_TOKENS:])


def by_prompt(jobs: list[Writing]) -> dict[tuple[str, int, tuple[int, ...]], list[Writing]]:
    """Texts that have not read all of their prompts, by prompt_key()."""
    found: dict[tuple[str, int, tuple[int, ...]], list[Writing]] = {}
    for job in jobs:
        if not job.writes:
            found.setdefault(prompt_key(job), []).append(job)
    return found


def parts_of(chosen: Chosen) -> list[Part]:
    """What these texts read in the step. Logits are wanted after the last token that a text has,
    and after each of its draft."""
    parts = []
    for job, n in chosen:
        assert job.cache is not None
        end = job.length + n
        tokens = np.array(job.ids[job.length : end] + job.draft, np.int32)
        outputs = (end == len(job.ids)) + len(job.draft)
        parts.append(Part(job.cache, tokens, outputs, exact=bool(job.draft)))
    return parts
