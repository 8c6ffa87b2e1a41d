"""Texts on their way to the disk and back, beside the engine's steps."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakMethod

from mmrt.core.state import SAVED_TOKENS, Cache, StateStore
from mmrt.errors import FileError
from mmrt.run.saved import Saved
from mmrt.run.swap import Swap

T = TypeVar("T")


class Moved(NamedTuple, Generic[T]):
    """One that has come back: loaded, with what was found of it, or saved."""

    job: T
    text: Cache
    loaded: bool


class Mover(Generic[T]):
    """Saves texts and loads them on a thread of its own, and tells the engine by its `wake`,
    which does not keep it alive.

    saved: the model's files, which keep all texts; None: files for as long as the engine lives,
    made when a text first has to give its memory up.
    """

    def __init__(
        self, store: StateStore, saved: Saved | None, wake: "WeakMethod[Callable[[], None]]"
    ) -> None:
        self._store = store
        self._wake = wake
        self._files = saved
        self._swap: Swap | None = None
        self._has_disk = store.saved_bytes > 0
        self._moving: set[T] = set()
        self._loading = 0  # of these
        self._moved: deque[Moved[T]] = deque()
        self.keeps_all = saved is not None

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._moving)

    def __contains__(self, job: T) -> bool:
        return job in self._moving

    @property
    def moved_bytes(self) -> tuple[int, int]:
        """Written and read so far."""
        report = None if self._files is None else self._files.report
        return (0, 0) if report is None else (report.written, report.read)

    @property
    def is_waited_for(self) -> bool:
        """Whether some have come back."""
        return bool(self._moved)

    @property
    def is_saving(self) -> bool:
        """Whether texts hold memory until they are written."""
        return self._files is not None and self._files.saves_waiting > 0

    @property
    def coming_bytes(self) -> int:
        """What texts that are being loaded may take: of a recurrent model the state that is read,
        beside the one before."""
        return 2 * self._store.block_bytes * self._loading

    def come_back(self) -> Iterator[Moved[T]]:
        """Those that have come back since the last time."""
        while self._moved:
            moved = self._moved.popleft()
            self._moving.discard(moved.job)
            self._loading -= moved.loaded
            yield moved

    def keep(
        self, cache: Cache, salt: str, *, ends: bool, chance: float, takes: Callable[..., float]
    ) -> None:
        """Saves what the text has got since the last time, if texts are to outlive their memory and
        it is worth it. ends, salt: see Saved.save(); takes: see Saved.attach(); chance: that it is
        asked for again."""
        if self._files is None or not self.keeps_all or not cache.length:
            return
        n = min(cache.length, SAVED_TOKENS)
        seconds = takes(n, cache.length - n)
        n_bytes = self._store.saved_bytes + self._store.block_bytes
        if self._files.worth.saving(n_bytes, seconds, chance):
            self._files.save_later(cache, salt, ends)

    def park(self, job: T, cache: Cache, salt: str, seconds: float) -> bool:
        """Begins to save a text that is to give its memory up; False: it is quicker to read it
        again, which takes `seconds`, or there is no disk."""
        files = self._place()
        frees = cache.nbytes - cache.shared_nbytes
        if files is None or not files.worth.saving(frees, seconds, 1.0):
            return False
        text = cache.fork()
        return self._begin(files, job, text, False, partial(files.save, text, salt))

    def length(self, ids: list[int], salt: str) -> int:
        """How many of `ids` some saved text begins with."""
        return 0 if self._files is None else self._files.length(ids, salt)

    def load(
        self,
        job: T,
        text: Cache,
        ids: list[int],
        salt: str,
        most: int,
        takes: Callable[[int, int], float] | None,
    ) -> bool:
        """Begins to lengthen `text` by what is saved of `ids`; False: too much is on its way."""
        files = self._files
        if files is None:
            return False
        return self._begin(
            files, job, text, True, partial(files.attach, text, ids, salt, most, takes)
        )

    def _place(self) -> Saved | None:
        if self._files is None and self._has_disk:
            try:
                self._files = self._swap = Swap(self._store)
            except FileError:
                self._has_disk = False
        return self._files

    def _begin(
        self, files: Saved, job: T, text: Cache, loads: bool, move: Callable[[], Any]
    ) -> bool:
        def work() -> None:
            try:
                move()
            finally:
                self._moved.append(Moved(job, text, loads))
                if (wake := self._wake()) is not None:
                    wake()

        if not files.later(work, saves=not loads):
            return False
        self._moving.add(job)
        self._loading += loads
        return True

    def close(self) -> None:
        """Ends what was begun, and removes files that nobody asked to keep."""
        if self._swap is not None:
            self._swap.close()
