"""Memory budgets: how much of the models' weights may stay in memory while all else grows.

A budget counts everything: kept weights, the ring that others are streamed through, keys and
values, scratch, page tables, the interpreter and its libraries. What models do not use for other
things is theirs for weights; as keys and values grow, they take it back, a few units at a time.
"""

import os
import random
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mmrt.core.arguments import whole
from mmrt.core.mapping import Mapping
from mmrt.core.program import ALIKE_TOKENS, Part, Program
from mmrt.core.readers import check_reader, probe_reader
from mmrt.core.state import Cache
from mmrt.core.streaming import READERS, Plan
from mmrt.errors import ArgumentError, OutOfMemoryError, UnsupportedError
from mmrt.memory import counters, system
from mmrt.memory.sizes import human, parse_size

MIB = 1 << 20

# Between looks at what the process and its cgroups use, unless something is about to grow.
_LOOK_SECONDS = 0.25

# By how much a model's share must have room to grow before it does: what the process uses goes up
# and down a little all the time.
_WORTH_LOADING = 8 * MIB

# The part of a step's time for which it waited for the disk, from which on longer steps pay: each
# reads all weights once.
_MUCH_STALL = 0.25

# What every budget has room for: a text of so many tokens, what the process loads as it reads and
# writes it, and steps of as many tokens as divide_step() needs.
_FIRST_TEXT = 128
_YET_TO_LOAD = 6 * MIB
_LEAST_STEP = 2 * ALIKE_TOKENS - 1

# A statement of what is needed has room for this as well: the process is not as large in each run.
_RUNS_DIFFER = 12 * MIB

# Of the file, to measure the disk with: enough for a figure within a few per cent.
_PROBE_BYTES = 64 * MIB

# How much faster than reads past the page cache populating must be to be chosen: it costs more CPU.
_CLEARLY_FASTER = 1.15

# Of a range that was let go: the part that may stay in memory for all that.
_STILL_THERE = 0.01


def divide_step(wanted: int, most: int) -> int:
    """How many of `wanted` tokens a step of `most`, at least _LEAST_STEP, takes: never so few, nor
    leaving so few, that they are rounded otherwise than in one step; and if it can take twice as
    many, a multiple of that, where recurrent layers round alike too."""
    if wanted <= most:
        return wanted
    n = min(most, wanted - ALIKE_TOKENS)
    return n - n % ALIKE_TOKENS if n >= 2 * ALIKE_TOKENS else n


def first_text(program: Program) -> int:
    """Bytes that a first text takes beside its scratch."""
    return Cache(program.store).growth(_FIRST_TEXT) + _YET_TO_LOAD


class Share:
    """A model's part of a budget."""

    def __init__(
        self,
        path: str,
        program: Program,
        give_back: Callable[[], None],
        prepare: Callable[[], None],
        step_tokens: int,
        reader: str | None,
        lock: bool,
        whole: bool = False,
    ) -> None:
        self.path = path
        self.program = program
        self.give_back = give_back  # those that it can do without
        self.prepare = prepare  # loads what texts need beside the program
        self.step_tokens = step_tokens  # of a long prompt, at a time
        self.reader = reader  # None: whichever is faster
        self.lock = lock  # what is kept of the weights
        self.whole = whole  # never is less of its weights in memory than all
        self.file_bytes = sum(tensor.nbytes for tensor in program.weights)
        self.extremes: Plan = program.plan(0)
        self.weights: int | None = None  # its bytes for weights; None: all may come as they like

    def unmap_pages(self) -> None:
        """Lets go of what opening the file has mapped: its metadata are not needed any more."""
        for mapping in {id(t.mapping): t.mapping for t in self.program.weights}.values():
            with suppress(ArgumentError):  # of locked pages, which stay
                mapping.advise("dontneed")

    @property
    def ring(self) -> int:
        """Bytes of the buffers and slots that weights are read into."""
        streaming = self.program.streaming
        return streaming.ring + streaming.cache + streaming.column_slots if streaming else 0

    @property
    def kept(self) -> int:
        """Bytes of weights on mapped pages; 0 where others are there too: while all may come as
        they like, and where the ring is made of such pages."""
        if self.whole:
            return 0 if self.weights is None else self.file_bytes
        streaming = self.program.streaming
        if streaming is None or self.weights is None or streaming.reader == "mapped":
            return 0
        return streaming.kept + self.extremes.rest

    @property
    def locked(self) -> int:
        streaming = self.program.streaming
        return streaming.locked if streaming else 0

    @property
    def stall_seconds(self) -> float:
        streaming = self.program.streaming
        return streaming.stall_seconds if streaming else 0.0

    def scratch(self, limited: bool) -> int:
        """What stays taken between steps."""
        return self.program.step_bytes(_LEAST_STEP if limited else self.step_tokens)

    @property
    def least(self) -> int:
        return self.file_bytes if self.whole else self.extremes.least + self.extremes.rest

    @property
    def most(self) -> int:
        return self.file_bytes if self.whole else self.extremes.most + self.extremes.rest

    def set_weights(self, n_bytes: int) -> None:
        if self.whole:
            self.weights = n_bytes
            return
        if self.weights is None:
            mappings = list({id(t.mapping): t.mapping for t in self.program.weights}.values())
            self.program.set_reader(self.reader or choose_reader(mappings))
            if self.lock:
                self.program.lock_kept()
                warn_of_limit(self.path, self.program.plan(n_bytes - self.extremes.rest).kept)
        self.program.set_budget(n_bytes - self.extremes.rest)
        self.weights = n_bytes


class _Step:
    """A step that is about to run, or runs, and what it takes."""

    def __init__(self, share: Share, parts: Sequence[Part]) -> None:
        program = share.program
        self.thread = threading.get_ident()
        self.n_tokens = sum(len(part.tokens) for part in parts)
        self._ends: dict[Cache, int] = {}  # how long each is to become
        self._exact: set[Cache] = set()  # those of exact parts
        for part in parts:
            end = self._ends.get(part.cache, part.cache.length)
            self._ends[part.cache] = end + len(part.tokens)
            if part.exact:
                self._exact.add(part.cache)
        self.pages = self.coming
        # If weights are limited; else it stays taken.
        self.scratch = max(program.step_bytes(self.n_tokens) - share.scratch(limited=True), 0)
        self.takes_more = self.pages > 0 or self.scratch > 0

    @property
    def coming(self) -> int:
        """Bytes of its pages that the caches do not hold yet."""
        return sum(cache.growth(end, cache in self._exact) for cache, end in self._ends.items())


@dataclass(frozen=True)
class Room:
    """Bytes for weights of all models under one of the bounds of a budget."""

    bound: system.Bound
    n_bytes: int


class Budget:
    """Memory that one or several models of this process share.

    size: bytes, or text such as "6.8GiB", that the process is to stay within. None: as much as the
    cgroups around it and the machine leave, watched while it runs. These bound a stated size too.

    Raises ArgumentError for text that is not a size, for 0, and for more than the machine has.
    """

    def __init__(self, size: int | str | None = None) -> None:
        self.size = None if size is None else _checked(size)
        self._lock_anew()
        _budgets.add(self)
        self._running: set[_Step] = set()  # those that take more than stays taken
        self._shares: weakref.WeakSet[Share] = weakref.WeakSet()
        self._looked = 0.0
        self._base_anon = self._base_files = self._files_then = 0
        self._charged: dict[str, int | None] = {}

    def _lock_anew(self) -> None:
        # Of all that follows; told when a step has ended. Entered as the lock itself, in C: what a
        # signal's handler raises amid Condition.__enter__ would leave the lock held for good.
        self._lock = threading.RLock()
        self._changes = threading.Condition(self._lock)

    def __repr__(self) -> str:
        return f"<Budget of {human(self.size) if self.size else 'what there is'}>"

    def begin(self) -> None:
        """To be called before a model is opened: notes what the process takes without any."""
        with self._lock:
            if not self._shares:
                self._note_base()

    def _note_base(self) -> None:
        used = counters.resident()
        self._base_anon, self._files_then = used.anon, used.files
        self._base_files = used.files + used.page_tables
        self._charged = {bound.name: bound.files for bound in system.bounds()}

    def join(self, share: Share) -> None:
        """Gives a model its share, and takes from the others what it is to have.

        Raises OutOfMemoryError, saying what it needs at least, if there is too little.
        """
        text = first_text(share.program)
        try:
            with self._lock:
                self._shares.add(share)
                holds_all = self._hold_all(text)
            if not holds_all:
                share.prepare()
            with self._lock:
                if len(self._shares) == 1:  # so nothing of weights has been read yet
                    share.unmap_pages()
                    self._note_base()
                self._make_room(0, 0, text, f"for a text of {_FIRST_TEXT} tokens")
        except BaseException:
            with self._lock:
                self._shares.discard(share)
            raise

    def leave(self, share: Share) -> None:
        """What the model had is for the others, from their next step on."""
        with self._lock:
            self._shares.discard(share)
            self._looked = 0.0

    @contextmanager
    def step(self, share: Share, parts: Sequence[Part]) -> Iterator[None]:
        """For a step of these parts.

        Waits for steps of other threads to end if there is too little beside them. Raises
        OutOfMemoryError if the step alone leaves too little for the weights.
        """
        about = _Step(share, parts)
        with self._lock:
            if about.takes_more or time.monotonic() - self._looked > _LOOK_SECONDS:
                self._make_room(about.pages, about.scratch, 0, "for this text")
            if about.takes_more:
                self._running.add(about)
        looks = share.weights is not None and about.n_tokens >= share.step_tokens
        before, started = share.stall_seconds if looks else 0.0, time.monotonic()
        try:
            yield
        finally:
            if about.takes_more:
                with self._lock:
                    self._running.discard(about)
                    self._changes.notify_all()
        if looks and share.stall_seconds - before > _MUCH_STALL * (time.monotonic() - started):
            share.step_tokens = min(2 * share.step_tokens, share.program.max_tokens)

    def step_tokens(self, share: Share, wanted: int) -> int:
        """How many of `wanted` tokens one step is to take: what it can without taking too much from
        the weights."""
        most = share.step_tokens
        with self._lock:
            if share.weights is not None:
                least = sum(each.least for each in self._shares)
                free = self.room(0).n_bytes - least
                most = min(most, max(wanted, _LEAST_STEP))
                while most > _LEAST_STEP and share.program.step_bytes(most) > free // 4:
                    most = max(most // 2, _LEAST_STEP)
        return divide_step(wanted, most)

    def room(self, growth: int) -> Room:
        """What there is for weights, kept and on their way, where it is least, when other things
        take `growth` bytes more."""
        with self._lock:
            return self._tightest(growth, limited=True)

    def beside(self, program: Program) -> int:
        """Bytes that it leaves beside all weights of the program."""
        weights = sum(tensor.nbytes for tensor in program.weights)
        return max(self.room(0).n_bytes - weights, 0)

    # ---- what there is ----

    def _tightest(self, growth: int, limited: bool) -> Room:
        """The bound that leaves the least room for weights when other things take `growth` bytes
        more, and that room. Each bound leaves

            room = L - M - U - F - C - G + R

        L: the bound's limit
        M: its margin, which stays free
        U: what counts as used against it now
        F: pages of files that the process needs beside weights
        C: memory that models and steps are yet to touch
        G: growth
        R: rings, which U and C include, but which hold weights

        limited: whether weights are, so that long steps give their scratch back.
        """
        shares = list(self._shares)
        rings = sum(share.ring for share in shares)
        ours = rings + sum(share.program.store.nbytes + share.scratch(limited) for share in shares)
        ours += sum(step.coming + (step.scratch if limited else 0) for step in self._running)
        used = counters.resident()
        # The part of ours that has not been touched yet, but will be.
        coming = max(self._base_anon + ours - used.anon, 0)
        # Libraries loaded after the first model.
        limited_files = used.files - sum(share.kept for share in shares)
        later = max(limited_files - self._files_then, 0) if all(s.kept for s in shares) else 0
        bounds = system.bounds(sum(share.locked for share in shares))
        if self.size is not None:
            bounds.append(system.Bound("the memory budget", self.size, used.anon, 4 * MIB))
        rooms = [
            Room(b, b.limit - b.margin - b.used - files - coming - growth + rings)
            for b, files in ((b, self._files(b) + later) for b in bounds)
        ]
        return min(rooms, key=lambda room: room.n_bytes)

    def _files(self, bound: system.Bound) -> int:
        """Pages of files that the process needs beside weights, and that count against the bound:
        a cgroup is not charged for libraries that others had brought into memory before."""
        charged = self._charged.get(bound.name)
        return self._base_files if charged is None else min(self._base_files, charged)

    def _hold_all(self, growth: int) -> bool:
        """Whether no weights are limited, nor need be."""
        if any(share.weights is not None or share.lock for share in self._shares):
            return False
        room = self._tightest(growth, limited=False).n_bytes
        return room >= sum(share.file_bytes for share in self._shares)

    def _make_room(self, pages: int, scratch: int, reserve: int, purpose: str) -> None:
        """Shares out what there is when keys and values take `pages` bytes more, and for a while
        scratch does. Refuses if `reserve` bytes more could not be had from the weights then."""
        while True:
            try:
                return self._look(pages, scratch, reserve, purpose)
            except OutOfMemoryError:
                # A signal handler whose thread is already in a step would wait for itself.
                here = threading.get_ident()
                if not self._running or any(step.thread == here for step in self._running):
                    raise
            self._changes.wait()

    def _look(self, pages: int, scratch: int, reserve: int, purpose: str) -> None:
        self._looked = time.monotonic()
        if self._hold_all(pages + reserve):
            return
        shares = sorted(self._shares, key=lambda share: share.path)
        tightest = self._tightest(pages + scratch, limited=True)
        least = sum(share.least for share in shares)
        if tightest.n_bytes - reserve < least:
            for share in shares:
                share.give_back()
            tightest = self._tightest(pages + scratch, limited=True)
        room = tightest.n_bytes
        most = sum(share.most for share in shares)
        if room - reserve < least:
            bound = tightest.bound
            needed = bound.limit + least + reserve - room + _RUNS_DIFFER
            raise OutOfMemoryError(
                f"{', '.join(s.path for s in shares)}: {bound.name} of {human(bound.limit)} is too "
                f"small: {purpose} it needs at least {_ceil_mib(needed)}"
            )
        part = min((room - least) / (most - least), 1.0) if most > least else 1.0
        wanted = {s: s.least + int((s.most - s.least) * part) for s in shares}
        # Shrink shares before growing others, so that the sum never exceeds the room.
        for share in sorted(shares, key=lambda s: wanted[s] - (s.weights or 0)):
            had, n_bytes = share.weights, wanted[share]
            if had is None or n_bytes < had or n_bytes >= min(had + _WORTH_LOADING, share.most):
                share.set_weights(n_bytes)


def warn_of_limit(path: str, n_bytes: int) -> None:
    limit = system.memlock_limit()
    if limit is not None and limit < n_bytes:
        warnings.warn(
            f"{path}: of {human(n_bytes)} of weights to be kept, RLIMIT_MEMLOCK lets this process "
            f"lock {human(limit)}; the others stay as long as the system leaves them",
            stacklevel=2,
        )


_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()
_default: Budget | None = None
_default_lock = threading.Lock()


def _unlock() -> None:
    """In a forked child, threads that held a lock or were in a step no longer exist."""
    global _default_lock
    _default_lock = threading.Lock()
    for each in _budgets:
        each._lock_anew()
        each._running = {s for s in each._running if s.thread == threading.get_ident()}


os.register_at_fork(after_in_child=_unlock)


def of(memory: "Budget | int | str | None") -> Budget:
    """The budget that `memory` stands for. All models opened with None share one."""
    global _default
    if isinstance(memory, Budget):
        return memory
    if memory is not None:
        return Budget(memory)
    with _default_lock:
        _default = _default or Budget()
        return _default


def _checked(size: int | str) -> int:
    if isinstance(size, str):
        try:
            n_bytes = parse_size(size)
        except ArgumentError as error:
            raise ArgumentError(f"memory: {error}") from None
    else:
        n_bytes = whole("memory", size, 1)
    machine = system.total_memory()
    if machine and n_bytes > machine:
        raise ArgumentError(
            f"memory: {human(n_bytes)} is more than this machine has, {human(machine)}"
        )
    return n_bytes


def _ceil_mib(n_bytes: int) -> str:
    return f"{-(-n_bytes // MIB)} MiB"


# ---- the disk ----


def choose_reader(mappings: list[Mapping]) -> str:
    """The reader that brings these files fastest, by a short measurement."""
    mapping = max(mappings, key=lambda each: each.size)
    direct = next((name for name in READERS if name != "mapped" and _can(name, mappings)), None)
    if direct is None:
        return "mapped"
    speeds = [probe(mapping, name) for name in (direct, "mapped")]
    return "mapped" if speeds[1] > _CLEARLY_FASTER * speeds[0] else direct


def probe(mapping: Mapping, reader: str) -> float:
    """Bytes a second that `reader` brings from the disk, measured on some part of the file; 0 if
    that part stays in memory, for another process uses it, and so tells nothing of the disk."""
    length = min(_PROBE_BYTES, mapping.size)
    offset = random.randrange(mapping.size - length + 1)
    if reader == "mapped":
        mapping.advise("evict", offset, length)
        if mapping.residency(offset, length).fraction > _STILL_THERE:
            return 0.0
    speed = probe_reader(reader, mapping, offset, length)
    if reader == "mapped":
        mapping.advise("evict", offset, length)  # what it read last
    return speed


def _can(reader: str, mappings: list[Mapping]) -> bool:
    try:
        for mapping in mappings:
            check_reader(reader, mapping)
    except UnsupportedError:
        return False
    return True
