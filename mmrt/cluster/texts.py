"""A cluster's texts as its coordinator knows them: what layers keep of them is on the stages."""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mmrt.cluster.steps import Fork
from mmrt.core.arguments import whole
from mmrt.core.state import PAGE_TOKENS, Cache, Page, Sharing, StateStore


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
        self.known: set[int] = set()  # on all stages, or on their way there
        self._numbers = itertools.count(1)
        self._forks: list[Fork] = []
        self._gone: deque[int] = deque()  # also by the garbage collector, at any time

    def number(self) -> int:
        """Of a new text."""
        return next(self._numbers)

    def fork(self, parent: "Text", fork: "Text") -> None:
        if parent.tokens and parent.number in self.known:
            self._forks.append(Fork(fork.number, parent.number, parent.length))
            self.known.add(fork.number)

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

    def begin_anew(self) -> None:
        """The stages have no texts now."""
        self.known.clear()
        self._forks.clear()
        self._gone.clear()


class _Held:
    """A page, which is on all stages: each has its own layers' part of it."""

    __slots__ = ("holders", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.holders = 1


class TextStore(StateStore):
    """The pages that texts have on the stages, told from what these do: a fork shares all pages of
    its text, and whoever goes on in one that others hold copies it. Of layers that see a window
    alone, stages hold less."""

    def __new__(cls) -> "TextStore":
        return StateStore.__new__(cls, [None])  # type: ignore[call-arg]

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._page_bytes = 0
        self._lock = threading.Lock()  # of all that follows; never held as garbage is collected
        self._numbers = itertools.count()
        self._held = self._logical = self._copies = 0  # pages
        self._left: deque[list[_Held]] = deque()  # by texts that are gone

    def cache(self) -> "Text":
        return Text(self)

    def begin_anew(self, page_bytes: int) -> None:
        """The stages have no texts now. page_bytes: of 32 tokens, on all of them."""
        self._page_bytes = page_bytes
        self.ledger.begin_anew()

    @property
    def page_bytes(self) -> int:
        return self._page_bytes

    @property
    def is_recurrent(self) -> bool:
        return False

    @property
    def saved_bytes(self) -> int:
        """Not in files of this machine."""
        return 0

    @property
    def nbytes(self) -> int:
        return self.sharing.held

    @property
    def sharing(self) -> Sharing:
        with self._lock:
            self._settle()
            held, logical = self._held * self._page_bytes, self._logical * self._page_bytes
            return Sharing(held, logical, self._copies)

    def _settle(self) -> None:
        while self._left:
            self._let_go(self._left.popleft(), 0)

    def _let_go(self, pages: list[_Held], n: int) -> None:
        for page in pages[n:]:
            page.holders -= 1
            self._held -= not page.holders
        self._logical -= len(pages) - n
        del pages[n:]

    def _new(self) -> _Held:
        self._held += 1
        return _Held(next(self._numbers))

    # ---- what a text does with its list of pages ----

    def grow(self, pages: list[_Held], length: int, n: int) -> None:
        """A text of `length` tokens reads n more."""
        with self._lock:
            if length % PAGE_TOKENS and pages[-1].holders > 1:
                pages[-1].holders -= 1
                pages[-1] = self._new()
                self._copies += 1
            more = max(_pages_of(length + n) - len(pages), 0)
            pages += [self._new() for _ in range(more)]
            self._logical += more

    def cut(self, pages: list[_Held], length: int) -> None:
        with self._lock:
            self._let_go(pages, min(_pages_of(length), len(pages)))

    def share(self, pages: list[_Held]) -> list[_Held]:
        """The pages of a fork."""
        with self._lock:
            for page in pages:
                page.holders += 1
            self._logical += len(pages)
            return pages.copy()

    def leave(self, pages: list[_Held]) -> None:
        """The text is gone; at any time, from the garbage collector."""
        self._left.append(pages)


class Text(Cache):
    """The tokens of a text, under the number that stages know it by."""

    def __new__(cls, store: TextStore) -> "Text":
        return Cache.__new__(cls, store)  # type: ignore[call-arg]

    def __init__(self, store: TextStore) -> None:
        self._in = store
        self.number = store.ledger.number()
        self.failure: Exception | None = None  # of a step that nobody has waited for
        self._read: list[int] = []
        self._pages: list[_Held] = []
        weakref.finalize(self, _end, store, self.number, self._pages).atexit = False

    @property
    def tokens(self) -> list[int]:
        return self._read

    @property
    def length(self) -> int:
        return len(self._read)

    def reserve(self, length: int) -> None:
        """It is about to have so many tokens: their pages count from now on."""
        self._in.grow(self._pages, self.length, length - self.length)

    def read(self, tokens: Sequence[int]) -> None:
        """It has these tokens too."""
        self.reserve(self.length + len(tokens))
        self._read.extend(tokens)

    def growth(self, length: int, exact: bool = False) -> int:
        more = _pages_of(length) - len(self._pages)
        copies = length > self.length and self.length % PAGE_TOKENS and self._pages[-1].holders > 1
        return (max(more, 0) + bool(copies)) * self._in.page_bytes

    @property
    def nbytes(self) -> int:
        """Of all stages."""
        return len(self._pages) * self._in.page_bytes

    @property
    def shared_nbytes(self) -> int:
        return sum(page.holders > 1 for page in self._pages) * self._in.page_bytes

    @property
    def mapped_nbytes(self) -> int:
        return 0

    def pages(self) -> list[Page]:
        return [Page(page.number, page.holders) for page in self._pages]

    def fork(self) -> "Text":
        fork = Text(self._in)
        self._in.ledger.fork(self, fork)
        fork._read = self._read.copy()
        fork._pages += self._in.share(self._pages)
        return fork

    def truncate(self, length: int) -> int:
        del self._read[whole("length", length, 0, self.length) :]
        self._in.cut(self._pages, length)
        return length

    @property
    def is_whole(self) -> bool:
        return True


def _end(store: TextStore, number: int, pages: list[_Held]) -> None:
    store.ledger.drop(number)
    store.leave(pages)


def _pages_of(length: int) -> int:
    return -(-length // PAGE_TOKENS)
