"""Texts as a coordinator knows them: tokens are here, what layers keep of them is on the stages."""

import itertools
import weakref
from collections import deque
from typing import NamedTuple

from mmrt.cluster.steps import Fork
from mmrt.core.arguments import whole
from mmrt.core.state import PAGE_TOKENS, Cache, Page, StateStore


class Told(NamedTuple):
    """What stages are told of texts beside what these read."""

    forks: list[Fork]
    gone: list[int]


class Ledger:
    """What the stages are yet to be told of texts, and which texts they have.

    All that is told may be told again: a fork that is there, and a text that is gone, are passed
    over.
    """

    def __init__(self) -> None:
        self.page_bytes = 0  # of 32 tokens, on all stages
        self.known: set[int] = set()  # on all stages, or on their way there
        self._numbers = itertools.count(1)
        self._forks: list[Fork] = []
        self._gone: deque[int] = deque()  # also by the garbage collector, at any time

    def new(self) -> "Text":
        return Text(StateStore([None]), self, next(self._numbers))

    def fork(self, parent: "Text") -> "Text":
        fork = self.new()
        if parent.tokens and parent.number in self.known:
            self._forks.append(Fork(fork.number, parent.number, parent.length))
            self.known.add(fork.number)
        return fork

    def drop(self, number: int) -> None:
        self.known.discard(number)
        self._gone.append(number)

    def take(self, most: int) -> "Told":
        """What is to be told next, at most so many of each; texts are gone only after all forks of
        them."""
        told = Told(self._forks[:most], [])
        del self._forks[:most]
        while self._gone and len(told.gone) < most and not self._forks:
            told.gone.append(self._gone.popleft())
        return told

    def restore(self, told: "Told") -> None:
        """Some stages have not heard it: all are told again, before anything else."""
        self._forks[:0] = told.forks
        self._gone.extendleft(reversed(told.gone))

    def begin_anew(self, page_bytes: int) -> None:
        """The stages have no texts now."""
        self.page_bytes = page_bytes
        self.known.clear()
        self._forks.clear()
        self._gone.clear()


class Text(Cache):
    """The tokens of a text, under the number that stages know it by."""

    def __new__(cls, store: StateStore, ledger: Ledger, number: int) -> "Text":
        return Cache.__new__(cls, store)  # type: ignore[call-arg]

    def __init__(self, store: StateStore, ledger: Ledger, number: int) -> None:
        self.number = number
        self.failure: Exception | None = None  # of a step that nobody has waited for
        self._read: list[int] = []
        self._ledger = ledger
        weakref.finalize(self, ledger.drop, number).atexit = False

    @property
    def tokens(self) -> list[int]:
        return self._read

    @property
    def length(self) -> int:
        return len(self._read)

    def growth(self, length: int) -> int:
        return self._pages_of(length) * self._ledger.page_bytes - self.nbytes

    @property
    def nbytes(self) -> int:
        """Of all stages, as far as no other text shares it."""
        return self._pages_of(self.length) * self._ledger.page_bytes

    @staticmethod
    def _pages_of(length: int) -> int:
        return -(-length // PAGE_TOKENS)

    @property
    def shared_nbytes(self) -> int:
        """Not known here."""
        return 0

    @property
    def mapped_nbytes(self) -> int:
        return 0

    def pages(self) -> list[Page]:
        """Not known here."""
        return []

    def fork(self) -> "Text":
        fork = self._ledger.fork(self)
        fork._read = self._read.copy()
        return fork

    def truncate(self, length: int) -> int:
        del self._read[whole("length", length, 0, self.length) :]
        return length

    @property
    def is_whole(self) -> bool:
        return True
