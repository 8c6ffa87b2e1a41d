"""What a cache of experts would find in memory, had it been asked what a trace asks for; and how
fast that would be."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from mmrt.sight.routing import RoutingTrace

POLICIES = {
    "score": "by how often and how lately used, as mmrt does it (docs/streaming.md)",
    "lru": "what was used longest ago gives way",
    "belady": "what is used last of all gives way: no cache finds more",
}

# As in csrc/source/score.c, to the last bit.
_FAST, _SLOW, _FAST_WEIGHT = 0.6, 0.98, 0.3
_RECENT_TOKENS = 16

Slots = Mapping[int, int]
"""Bytes of an expert -> how many slots of this size there are."""


@dataclass(frozen=True)
class Replay:
    """wanted, found: experts by [steps][layers]; a step wants each expert once."""

    wanted: NDArray[np.int64]
    found: NDArray[np.int64]
    missed_bytes: NDArray[np.int64]  # likewise

    def hit_rate(self, first: int = 0) -> float:
        """Of the steps from `first` on."""
        wanted = int(self.wanted[first:].sum())
        return float(self.found[first:].sum()) / wanted if wanted else 1.0


def slots(trace: RoutingTrace, part: float) -> dict[int, int]:
    """Slots for so large a part of all experts, of each size alike."""
    n_of_size: dict[int, int] = defaultdict(int)
    for size in trace.expert_bytes:
        n_of_size[size] += trace.n_experts
    return {size: int(min(part, 1.0) * n + 1e-9) for size, n in n_of_size.items()}


def replay(trace: RoutingTrace, policy: str, slots: Slots) -> Replay:
    """What one of POLICIES finds, beginning with empty slots."""
    of_step = _by_step(trace)
    shape = len(of_step), len(trace.layers)
    found = Replay(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))
    for size, n_slots in slots.items():
        columns = [i for i, own in enumerate(trace.expert_bytes) if own == size]
        if policy == "belady":
            results = _belady(of_step, columns, n_slots)
        else:
            results = _online(of_step, columns, trace.n_experts, n_slots, policy == "lru")
        for step, column, wanted, hits in results:
            found.wanted[step, column] = wanted
            found.found[step, column] = hits
            found.missed_bytes[step, column] = (wanted - hits) * size
    return found


def _by_step(trace: RoutingTrace) -> list[NDArray[np.int16]]:
    """Choices of the tokens of each step."""
    return np.split(trace.choices, np.cumsum(trace.steps)[:-1])


Found = list[tuple[int, int, int, int]]  # step, column of the trace's layers, wanted, found


def _online(
    of_step: list[NDArray[np.int16]], columns: list[int], n_experts: int, n_slots: int, lru: bool
) -> Found:
    """The rule of docs/streaming.md; lru: with the time of the last use for a score."""
    shape = len(columns), n_experts
    fast, slow, score = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    held = np.zeros(shape, np.bool_)
    price = np.full(shape, np.inf)  # the score of what can be a victim
    free = n_slots
    results: Found = []
    for step, choices in enumerate(of_step):
        for row, column in enumerate(columns):
            chosen = choices[:, column]
            chosen = chosen[chosen[:, 0] >= 0]
            wanted = np.unique(chosen[chosen >= 0])
            recent = [token[token >= 0] for token in chosen[-_RECENT_TOKENS:]]
            for token in recent:
                fast[row] *= _FAST
                slow[row] *= _SLOW
                fast[row, token] += 1 - _FAST
                slow[row, token] += 1 - _SLOW
            if lru:
                score[row, wanted] = len(results) + 1
            else:
                score[row] = _FAST_WEIGHT * fast[row] + slow[row]
            missing = wanted[~held[row, wanted]]
            results.append((step, column, len(wanted), len(wanted) - len(missing)))
            price[row] = np.where(held[row], score[row], np.inf)
            price[row, wanted] = np.inf
            late = set(np.concatenate(recent).tolist()) if len(missing) else set()
            for expert in missing.tolist():
                if free:
                    free -= 1
                elif expert in late:
                    victim = int(price.argmin())  # of equal ones the first
                    if not score[row, expert] >= price.flat[victim]:
                        continue
                    held.flat[victim], price.flat[victim] = False, np.inf
                else:
                    continue
                held[row, expert] = True
            price[row] = np.where(held[row], score[row], np.inf)
    return results


def _belady(of_step: list[NDArray[np.int16]], columns: list[int], n_slots: int) -> Found:
    """Keeps what is used again the soonest."""
    uses = [
        (step, column, sorted({(column, int(e)) for e in choices[:, column].ravel() if e >= 0}))
        for step, choices in enumerate(of_step)
        for column in columns
    ]
    times: dict[tuple[int, int], list[int]] = defaultdict(list)  # of uses, the last one first
    for time in range(len(uses) - 1, -1, -1):
        for item in uses[time][2]:
            times[item].append(time)
    held: dict[tuple[int, int], int] = {}  # -> when it is used again
    latest: list[tuple[int, tuple[int, int]]] = []  # the same, the last one first; some outdated
    results: Found = []
    for step, column, wanted in uses:
        results.append((step, column, len(wanted), sum(item in held for item in wanted)))
        for item in wanted:
            times[item].pop()
            again = times[item][-1] if times[item] else len(uses)
            held[item] = again
            heappush(latest, (-again, item))
        while len(held) > n_slots:
            time, item = heappop(latest)
            if held.get(item) == -time:
                del held[item]
    return results


# ---- how fast that would be ----

# What a step waits for a batch of reads beside their bytes, in seconds; and which part of a missing
# expert's arithmetic is left when its last bytes have come.
_BATCH, _AFTER = 0.0002, 0.35


def forecast(
    trace: RoutingTrace, found: Replay, disk: float, memory: float, first: int = 0
) -> float:
    """Tokens a second, of the tokens of the steps from `first` on. disk, memory: bytes a second.

    Each layer reads what it needs of the weights from memory, those experts first that are there,
    while the others are read from the disk; nothing is read before its layer has chosen.
    """
    dense = trace.dense_bytes / memory * len(found.wanted[first:])
    sizes = np.array(trace.expert_bytes)
    hits = found.found[first:] * sizes / memory
    missed = found.missed_bytes[first:]
    reading = np.where(missed > 0, _BATCH, 0.0) + missed / disk
    seconds = dense + float((np.maximum(hits, reading) + _AFTER * missed / memory).sum())
    n_tokens = sum(trace.steps[first:])
    return n_tokens / seconds if seconds else 0.0
