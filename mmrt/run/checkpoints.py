"""Where texts of recurrent models can go back to.

Recurrent layers keep of a text what its last token has left, and nothing of what that was before.
So copies are kept on the way, checkpoints: where messages end, and at intervals.
"""

from collections.abc import Container, Sequence
from itertools import pairwise

from mmrt.core.program import ALIKE_TOKENS
from mmrt.core.state import PAGE_TOKENS, Cache, StateStore

# Tokens between two checkpoints at least, but for those where messages end.
_LEAST_INTERVAL = 256

# A step ends early, at a checkpoint, for so many tokens at least that need not be read again.
_WORTH_A_STEP = 64

# Checkpoints that a short text may have.
_FEW = 4


def interval(store: StateStore) -> int:
    """Tokens between two checkpoints at most: so many that one takes no more bytes than their keys
    and values."""
    if not store.page_bytes:
        return _LEAST_INTERVAL
    return max(-(-store.block_bytes * PAGE_TOKENS // store.page_bytes), _LEAST_INTERVAL)


def spare(ids: Sequence[int]) -> int:
    """How many of a prompt's tokens need not be read again: not the last few, which are read as a
    step of their own, so that they are rounded as in longer ones."""
    return max(len(ids) - ALIKE_TOKENS, 0)


def set_one(cache: Cache) -> None:
    """Sets one where the text is. It may have a few, and two for each interval: of more, the one
    goes that leaves the shortest way between those around it."""
    cache.checkpoint()
    most = _FEW + 2 * cache.length // interval(cache.store)
    while len(cache.checkpoints) > most:
        forget_one(cache, cache.length)


def forget_one(cache: Cache, longest: int | None = None) -> bool:
    """Forgets the one that leaves the shortest way between those around it, if that is not longer
    than `longest`, by default two intervals. False: it is, or there is none."""
    lengths = [0, *cache.checkpoints]
    if lengths[-1] < cache.length:
        lengths.append(cache.length)
    longest = 2 * interval(cache.store) if longest is None else longest
    ways = [
        (after - before, length)
        for before, length, after in zip(lengths, lengths[1:], lengths[2:], strict=False)
    ]
    if not ways or min(ways)[0] > longest:
        return False
    cache.forget(min(ways)[1])
    return True


def set_if_due(cache: Cache, coming: int) -> bool:
    """Whether there is one now, as with `coming` tokens more the last would be too far behind."""
    last = max(cache.checkpoints, default=0)
    if last == cache.length or cache.length + coming - last <= interval(cache.store):
        return False
    set_one(cache)
    return True


def forget_all(cache: Cache) -> bool:
    """Whether there were any, which are gone now."""
    lengths = cache.checkpoints
    for length in lengths:
        cache.forget(length)
    return bool(lengths)


class Stops:
    """Where in a prompt a text that reads it sets checkpoints: where messages end, that is before
    control tokens. Steps end at the first and the last of these, and at the others where they would
    end near; and before the last few tokens, which are always read again."""

    def __init__(self, ids: Sequence[int], first: int, controls: Container[int]) -> None:
        """first: how many of `ids` were read before. controls: the tokens that are."""
        end = spare(ids)
        ends = [i for i in range(first, end - ALIKE_TOKENS + 1) if ids[i] in controls]
        self._ends: list[int] = []
        for i, following in pairwise([*ends, end]):
            last = self._ends[-1] if self._ends else first
            # Of control tokens in a row, as between two messages, after the others.
            if i - last >= _WORTH_A_STEP and following - i >= ALIKE_TOKENS:
                self._ends.append(i)
        self.certain = sorted({*self._ends[:1], *self._ends[-1:], *([end] if end > first else [])})

    def cut(self, length: int, n: int) -> int:
        """How many of n tokens, after `length` others, a step is to read."""
        coming = next((stop for stop in self.certain if stop > length), None)
        if coming is not None and coming <= length + n:
            return coming - length
        if coming is not None and coming - length < n + ALIKE_TOKENS:
            n = max(coming - length - ALIKE_TOKENS, 1)
        near = range(length + max(n // 2, ALIKE_TOKENS), length + n)
        return max((stop for stop in self._ends if stop in near), default=length + n) - length

    def reach(self, length: int) -> int:
        """The last place up to `length` where there is one for certain; 0: there is none."""
        return max((stop for stop in self.certain if stop <= length), default=0)

    def __contains__(self, length: int) -> bool:
        return length in self.certain or length in self._ends
