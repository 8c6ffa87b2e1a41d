"""Beginnings of texts that are in memory: a tree of pages of tokens, compared exactly.

A node stands for 32 tokens after those of the nodes above it, as a page of keys and values does.
Texts run through it: those that are being read or written, and those that have ended and stay for
whoever comes next with the same beginning. A new text is a fork of the one that shares most with
it, cut to what they share; so pages are in memory once. Texts of a recurrent model are cut at their
checkpoints alone, and the one whose last checkpoint in what they share is the furthest is forked.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from mmrt.core.state import PAGE_TOKENS, Cache, StateStore
from mmrt.errors import OutOfMemoryError
from mmrt.run.checkpoints import forget_all, forget_one, spare

# What is cut off a text that stays, at a time: the pages of an extent.
_CUT_TOKENS = 8 * PAGE_TOKENS


Ids = Sequence[int] | NDArray[np.int32]


class _Node:
    __slots__ = ("children", "ends", "page", "texts", "uses", "value")

    def __init__(self, page: bytes = b"", value: int = 0) -> None:
        self.page = page  # by which the node above knows it
        self.uses = 0  # by texts that went on from here
        self.value = value  # see Prefixes._use()
        self.children: dict[bytes, _Node] = {}
        self.texts: dict[Kept, None] = {}  # that run through it
        self.ends: dict[Kept, None] = {}  # of them, those whose last whole page it is


class Kept:
    """A text in the tree."""

    def __init__(self, cache: Cache, salt: str, root: _Node) -> None:
        self.cache = cache
        self.salt = salt
        self.in_use = True  # it goes on: only then does it grow, and only else may it be cut
        self.last_use = 0
        self.number = 0  # by which its engine calls it
        self.uses = self.value = 0  # of its last tokens, fewer than a page: see Prefixes._use()
        self.path = [root]  # and a node for each of its whole pages that are in the tree


class Prefixes:
    """The tree. Not for several threads at once.

    Texts of different `salt` share nothing: that one is answered sooner would tell of another.
    """

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.asked_tokens = self.found_tokens = 0  # by take(), so far
        self._roots: dict[str, _Node] = {}
        self._idle: dict[Kept, None] = {}  # the least recently used first
        self.version = 0  # rises as the tree grows, and with new checkpoints
        self._least = 0  # the value of what went last

    def __len__(self) -> int:
        return sum(len(root.texts) for root in self._roots.values())

    def ended(self) -> list[Kept]:
        """Those that have ended, the least recently used first."""
        return list(self._idle)

    # ---- finding ----

    def shared(self, ids: Sequence[int], salt: str = "") -> int:
        """How many of `ids` some text begins with."""
        return self._find(ids, salt)[1]

    def _find(self, ids: Sequence[int], salt: str) -> tuple[Kept | None, int]:
        nodes = self._way(ids, salt)
        if self.store.is_recurrent:
            return _furthest(nodes, ids)
        if not nodes:
            return None, 0
        node, depth = nodes[-1], len(nodes) - 1
        rest = np.asarray(ids[depth * PAGE_TOKENS : (depth + 1) * PAGE_TOKENS], np.int32)
        best, found = (next(reversed(node.texts)) if depth else None), 0
        for text, more in self._continuations(node, depth):
            n = common(rest, more)
            if n > found:
                best, found = text, n
        return best, depth * PAGE_TOKENS + found

    def _way(self, ids: Sequence[int], salt: str) -> list[_Node]:
        """The root, and the nodes of the first whole pages of `ids`, as far as there are some."""
        node = self._roots.get(salt)
        if node is None:
            return []
        nodes = [node]
        for page in _pages(ids):
            node = node.children.get(page)
            if node is None:
                break
            nodes.append(node)
        return nodes

    def _continuations(self, node: _Node, depth: int) -> Iterator[tuple[Kept, Ids]]:
        """What texts have in the next page after a node."""
        for page, below in node.children.items():
            yield next(reversed(below.texts)), np.frombuffer(page, np.int32)
        for text in node.ends:
            yield text, text.cache.tokens[depth * PAGE_TOKENS : (depth + 1) * PAGE_TOKENS]

    def take(self, ids: Sequence[int], salt: str = "", most: int | None = None) -> Cache:
        """A new cache of what some text shares with `ids`, of `most` tokens at most."""
        text, length = self._find(ids[:most], salt)
        self.asked_tokens += len(ids)
        if text is None or not length:
            return self.store.cache()
        self._touch(text)
        for used in _pages_of(text)[: -(-length // PAGE_TOKENS)]:
            used.uses += 1
            self._use(used)
        cache = text.cache.fork()
        reached = cache.truncate(min(length, cache.length))  # a step that failed may have cut it
        with suppress(OutOfMemoryError):
            cache.checkpoint()  # others may go on from here
        self.found_tokens += reached
        return cache

    # ---- keeping ----

    def follow(self, cache: Cache, salt: str = "") -> Kept:
        """The text of `cache` is in the tree from now on, as far as grow() says so."""
        root = self._roots.setdefault(salt, _Node())
        text = Kept(cache, salt, root)
        root.texts[text] = root.ends[text] = None
        self.grow(text)
        return text

    def grow(self, text: Kept) -> None:
        """Enters the pages that were filled since the last time."""
        tokens = text.cache.tokens
        first = (len(text.path) - 1) * PAGE_TOKENS
        for page in _pages(tokens[first : len(tokens) // PAGE_TOKENS * PAGE_TOKENS]):
            node = text.path[-1]
            del node.ends[text]
            below = node.children.setdefault(page, _Node(page, self._least + 1))
            below.texts[text] = below.ends[text] = None
            text.path.append(below)
            self.version += 1

    def release(self, text: Kept) -> None:
        """The text has ended, and stays until its memory is wanted. Those that it begins with are
        not needed any more."""
        self.grow(text)
        text.cache.trim()
        text.in_use = False
        self._touch(text)
        for page in _pages_of(text):
            self._use(page)
        tokens = text.cache.tokens
        for depth, node in enumerate(text.path):
            for other in list(node.ends):
                if other is text or other.in_use:
                    continue
                rest = other.cache.tokens[depth * PAGE_TOKENS :]
                here = tokens[depth * PAGE_TOKENS : depth * PAGE_TOKENS + len(rest)]
                if rest != here:
                    continue
                if self.store.is_recurrent:
                    with suppress(OutOfMemoryError):
                        text.cache.adopt(other.cache)
                self.drop(other)
        if not tokens:
            self.drop(text)

    def drop(self, text: Kept) -> None:
        """Takes a text out of the tree; memory that no other holds is given back."""
        self._shorten(text, 0)
        root = text.path[0]
        del root.texts[text], root.ends[text]
        if not root.texts:
            del self._roots[text.salt]
        self._idle.pop(text, None)
        text.cache.truncate(0)

    def _touch(self, text: Kept) -> None:
        if not text.in_use:
            self._idle.pop(text, None)
            self._idle[text] = None

    def _use(self, page: _Node | Kept) -> None:
        """The page is in use now, and so worth more than what went last: the more, the more often
        texts went on from it, by the bits of that number. All pages are of one size, and take
        nearly as long to be read again; what they differ in is how soon they are wanted. What went
        last was the least, so all others age by that: greedy dual with frequency (Cherkasova,
        1998)."""
        page.value = self._least + 1 + page.uses.bit_length()

    def _shorten(self, text: Kept, n_pages: int) -> None:
        if len(text.path) - 1 <= n_pages:
            return
        del text.path[-1].ends[text]
        while len(text.path) - 1 > n_pages:
            gone = text.path.pop()
            del gone.texts[text]
            if not gone.texts:
                del text.path[-1].children[gone.page]
        text.path[-1].ends[text] = None

    # ---- giving back ----

    def give_back(self, n_bytes: int, sparing: Kept | None = None) -> int:
        """Gives so many bytes back, if texts that have ended, but for `sparing`, hold them: of the
        one whose end is worth least, from its end; of equals, that which was used longest ago.
        Returns how many."""
        before = self.store.nbytes
        while before - self.store.nbytes < n_bytes:
            ended = (text for text in self._idle if text is not sparing)
            text = min(ended, key=_worth, default=None)
            if text is None:
                break
            worth = self._least = max(self._least, _worth(text))
            dearer = sum(node.value > worth for node in text.path[1:])
            last_cut = (len(text.cache.tokens) - 1) // _CUT_TOKENS * _CUT_TOKENS
            left = max(last_cut, dearer * PAGE_TOKENS)
            if not left or not any(len(node.texts) == 1 for node in text.path):
                self.drop(text)  # what is left, others hold too, or it is little
            elif not forget_one(text.cache):
                self._cut(text, left)
        return before - self.store.nbytes

    def _cut(self, text: Kept, length: int) -> None:
        if self.store.is_recurrent:
            length = text.cache.reach(length)
        self._shorten(text, length // PAGE_TOKENS)
        if not text.cache.truncate(length):
            self.drop(text)

    def make_room(self, n_bytes: int) -> int:
        """give_back(); where that is not enough, checkpoints of texts that go on go too."""
        before = self.store.nbytes
        if self.give_back(n_bytes) < n_bytes:
            for root in self._roots.values():
                for text in root.texts:
                    forget_all(text.cache)
        return before - self.store.nbytes

    def drop_damaged(self) -> None:
        """Forgets texts that have ended and whose files have lost pages."""
        for text in list(self._idle):
            if not text.cache.is_whole:
                self.drop(text)

    def clear(self) -> None:
        """Gives all back that no text in use holds."""
        for text in list(self._idle):
            self.drop(text)

    def abandon(self) -> None:
        """Gives all back, also where an interrupt has left the tree changed in part."""
        for root in self._roots.values():
            for text in root.texts:
                text.cache.truncate(0)
        self._roots.clear()
        self._idle.clear()


class Earlier:
    """What texts that have ended have left, for any thread; one that comes while another is at it
    does without."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._here: deque[Prefixes] = deque([Prefixes(store)])  # who pops it has it

    @contextmanager
    def _at_it(self) -> Iterator[Prefixes | None]:
        try:
            tree = self._here.pop()
        except IndexError:
            yield None
            return
        try:
            yield tree
        finally:
            self._here.append(tree)

    def take(self, ids: Sequence[int]) -> Cache:
        """A new cache of what some text shares with `ids`, but for the last few."""
        with self._at_it() as tree:
            return self._store.cache() if tree is None else tree.take(ids, most=spare(ids))

    def keep(self, cache: Cache, most_bytes: int) -> None:
        """Keeps a text that has ended, and others while all take no more than `most_bytes`."""
        with self._at_it() as tree:
            if tree is not None:
                text = tree.follow(cache)
                tree.release(text)
                tree.give_back(self._store.nbytes - most_bytes, sparing=text)

    def clear(self) -> None:
        """Gives all back."""
        with self._at_it() as tree:
            if tree is not None:
                tree.clear()


def _pages_of(text: Kept) -> list[_Node | Kept]:
    """Its pages in order; the last one, if it is not whole, is the text's own."""
    nodes: list[_Node | Kept] = [*text.path[1:]]
    return [*nodes, text] if len(text.cache.tokens) > PAGE_TOKENS * len(nodes) else nodes


def _worth(text: Kept) -> int:
    """What its end is worth."""
    return text.path[-1].value if len(text.cache.tokens) % PAGE_TOKENS == 0 else text.value


def _furthest(nodes: list[_Node], ids: Sequence[int]) -> tuple[Kept | None, int]:
    """Of the texts at these nodes the one that can go back furthest into what it shares with `ids`,
    and to how many tokens."""
    best, found = None, 0
    for depth in reversed(range(len(nodes))):
        first, end = depth * PAGE_TOKENS, (depth + 1) * PAGE_TOKENS
        for text in nodes[depth].texts:
            reached = text.cache.reach(first + common(ids[first:end], text.cache.tokens[first:end]))
            if reached > found:
                best, found = text, reached
        if found >= first:  # others share less
            break
    return best, found


def _pages(ids: Sequence[int]) -> list[bytes]:
    """The whole pages of `ids`, as keys."""
    whole = len(ids) // PAGE_TOKENS * PAGE_TOKENS
    packed = np.asarray(ids[:whole], np.int32).tobytes()
    size = 4 * PAGE_TOKENS
    return [packed[i : i + size] for i in range(0, len(packed), size)]


def common(a: Ids, b: Ids) -> int:
    """How many numbers both begin with."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n
