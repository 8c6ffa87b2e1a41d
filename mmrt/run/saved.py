"""Keys and values in files: they outlive the memory that they were read into, and the process.

A file holds those of up to 256 tokens in a row. Its name is a digest of all tokens up to its last,
its header says which ones it has itself. So files make a tree: what follows a beginning is found by
the name of the file before, and by its tokens, compared one by one. A text goes on in the files as
they lie, mapped: several processes, and several texts, have them in memory once.

A file is written under another name and renamed when it is whole; after a crash it is there or it
is not. Whoever maps it checks its sum. Files that have not been used for longest go when there are
too many of them, ends of texts first.

Of a recurrent model a file also ends at each checkpoint of a text, and holds that too. Only from
there can a text go on.
"""

import contextlib
import errno
import fcntl
import heapq
import os
import queue
import secrets
import shutil
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmrt.core.arguments import path as file_path
from mmrt.core.arguments import whole
from mmrt.core.state import SAVED_TOKENS, Cache, StateStore
from mmrt.errors import ArgumentError, FileError, FormatError, MmrtError
from mmrt.memory.sizes import human, parse_size
from mmrt.run.prefixes import common
from mmrt.run.saved_file import (
    HEADER,
    OPENING,
    Extent,
    content_bytes,
    digest,
    header,
    packed_ids,
    read_ahead,
    read_header,
    sample,
)
from mmrt.run.wear import Wear
from mmrt.run.worth import Worth

# Seconds within which whoever makes a file may not hold it yet.
_JUST_NOW = 60

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# While one file is verified, so many that follow it are read: 100 MB of an 8B model.
_FILES_AHEAD = 3

_SUFFIX = ".kv"
_UNFINISHED = ".new"

# After changes of our own the directory is listed again only so many seconds after the last time:
# they may hide one of another process.
_LISTED_AGAIN = 1.0

# The time of a directory's change is that of a tick of the system's clock: two changes in one look
# like one.
_TICK_NS = 20_000_000

# Texts that may wait to be written; each holds its memory until then.
_MOST_WAITING = 64

_WRITER_STOPS_AFTER = 1.0


@dataclass(frozen=True)
class SavedReport:
    """What was written and read: bytes so far, the files now and their bytes; files that were found
    damaged and left out; what could not be written."""

    written: int
    read: int
    files: int
    bytes: int
    damaged: int
    refused: int


class Saved:
    """The files of one model in a directory of its own, for any thread. close() writes what waits.

    directory: made if it is not there, for this user alone. fingerprint: 16 bytes that say what
    numbers these are: of another model, or laid out otherwise, nothing is found. most_bytes: what
    the files may take, as parse_size() takes it; None: half of what the disk has for them.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        store: StateStore,
        fingerprint: bytes,
        most_bytes: int | str | None = None,
    ) -> None:
        self._parent = os.path.abspath(os.path.expanduser(file_path("kv_dir", directory)))
        self.directory = os.path.join(self._parent, fingerprint.hex())
        self.worth = Worth()
        self._store = store
        self._fingerprint = fingerprint
        _make_private(self._parent, self.directory)
        self._lock = threading.RLock()
        self._names: dict[bytes, Extent] = {}
        self._left_out: set[bytes] = set()  # those that are damaged and cannot be removed
        self._below: dict[bytes, dict[bytes, Extent]] = {}
        self._n_bytes = self._written = self._read = self._damaged = self._refused = 0
        self._seen = -1  # the directory's mtime of which all is known
        self._listed = 0.0  # when
        self._unsure = False  # whether there may be more
        self._ends: list[tuple[float, bytes]] = []  # a heap: see _evict()
        self._process = os.getpid()
        self.saves_waiting = 0  # texts that hold memory until they are written
        self._work: queue.Queue[tuple[Callable[[], object], bool]] = queue.Queue()
        self._writer: threading.Thread | None = None
        self._list()
        self._most_bytes = _room(self.directory, most_bytes, self._n_bytes)
        self._wear = Wear(self._most_bytes, time.monotonic())
        self._evict()

    def __repr__(self) -> str:
        return f"<Saved in {self.directory!r}, {len(self._names)} files>"

    @property
    def report(self) -> SavedReport:
        with self._lock:
            return SavedReport(
                self._written,
                self._read,
                len(self._names),
                self._n_bytes,
                self._damaged,
                self._refused,
            )

    # ---- the tree ----

    def _list(self) -> None:
        """Takes in files that are new, ours or another process's, and leaves out those that are
        gone."""
        with self._lock:
            seen, now = self._changed(), time.monotonic()
            if seen == self._seen and not (self._unsure and now - self._listed > _LISTED_AGAIN):
                return
            try:
                entries = list(os.scandir(self.directory))
            except OSError:
                entries, seen = [], -1
            self._seen, self._listed = seen, now
            self._unsure = time.time_ns() - seen < _TICK_NS
            there = set()
            for entry in entries:
                if entry.name.endswith(_UNFINISHED) and is_abandoned(entry.path):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
                if not entry.name.endswith(_SUFFIX):
                    continue
                with contextlib.suppress(ValueError):
                    name = bytes.fromhex(entry.name.removesuffix(_SUFFIX))
                    there.add(name)
                    if name not in self._names and name not in self._left_out:
                        self._take_in(entry.path, name)
            for name in self._names.keys() - there:
                self._forget(self._names[name])

    def _changed(self) -> int:
        """When a file came into the directory or left it, in nanoseconds; -1: it is not there."""
        try:
            return os.stat(self.directory).st_mtime_ns
        except OSError:
            return -1

    @contextlib.contextmanager
    def _changes(self) -> Iterator[None]:
        """Around changes of our own, for which the directory need not be listed."""
        before = self._changed()
        try:
            yield
        finally:
            with self._lock:
                if self._seen == before:
                    self._seen, self._unsure = self._changed(), True

    def _take_in(self, path: str, name: bytes) -> None:
        try:
            extent = read_header(path, self._fingerprint, self._store)
        except OSError:  # gone, or not to be had now
            return
        except FormatError:
            extent = None
        if extent is not None and extent.name == name:
            self._enter(extent)
        elif not self._damage(path):
            self._left_out.add(name)

    def _enter(self, extent: Extent) -> None:
        self._names[extent.name] = extent
        self._below.setdefault(extent.before, {})[extent.ids] = extent
        self._n_bytes += extent.n_bytes
        self._note_end(extent)

    def _note_end(self, extent: Extent) -> None:
        """It may be the next one to go: see _evict()."""
        if extent.name in self._below:
            return
        heapq.heappush(self._ends, (extent.last_use, extent.name))
        if len(self._ends) > 2 * len(self._names) + 64:
            ends = self._names.keys() - self._below.keys()
            self._ends = [(self._names[name].last_use, name) for name in ends]
            heapq.heapify(self._ends)

    def _forget(self, extent: Extent) -> None:
        if self._names.pop(extent.name, None) is None:
            return
        self._n_bytes -= extent.n_bytes
        below = self._below[extent.before]
        del below[extent.ids]
        if not below:
            del self._below[extent.before]
            if extent.before in self._names:
                self._note_end(self._names[extent.before])

    def _damage(self, path: str) -> bool:
        """The file is not what it should be: it goes, if it can, and that is said."""
        self._damaged += 1
        warnings.warn(f"{path}: saved keys and values are damaged: left out", stacklevel=2)
        return _unlinked(path)

    def _path(self, name: bytes) -> str:
        return os.path.join(self.directory, name.hex() + _SUFFIX)

    def _root(self, salt: str) -> bytes:
        return digest(self._fingerprint, salt.encode("utf-8", "surrogatepass"))

    def _find(self, ids: Sequence[int], salt: str) -> list[tuple[Extent, int]]:
        """The files that `ids` begin with, and how many tokens of each: all, but of the last. Of a
        recurrent model those up to the last checkpoint."""
        if self._store.is_recurrent:
            return self._find_blocks(ids, salt)
        found: list[tuple[Extent, int]] = []
        at, name = 0, self._root(salt)
        while at < len(ids) and (below := self._below.get(name)):
            here = np.asarray(ids[at : at + SAVED_TOKENS], np.int32)
            extent = below.get(here.tobytes())
            n = len(here)
            if extent is None:
                alike = [(common(np.frombuffer(key, np.int32), here), key) for key in below]
                n, key = max(alike)
                extent = below[key]
            if not n:
                break
            found.append((extent, n))
            if n < SAVED_TOKENS:
                break
            at, name = at + n, extent.name
        return found

    def _find_blocks(self, ids: Sequence[int], salt: str) -> list[tuple[Extent, int]]:
        best: list[tuple[Extent, int]] = []
        found: list[tuple[Extent, int]] = []
        at, name = 0, self._root(salt)
        while below := self._below.get(name):
            here = packed_ids(ids[at : at + SAVED_TOKENS])
            ends = [e for key, e in below.items() if e.has_block and here.startswith(key)]
            if ends:
                last = max(ends, key=lambda extent: extent.n)
                best = [*found, (last, last.n)]
            extent = below.get(here)
            if extent is None or extent.n < SAVED_TOKENS:
                break
            found.append((extent, extent.n))
            at, name = at + extent.n, extent.name
        return best

    def length(self, ids: Sequence[int], salt: str = "") -> int:
        """How many of `ids` some saved text begins with; in a forked child, 0."""
        if os.getpid() != self._process:
            return 0
        with self._lock:
            self._list()
            return sum(n for _, n in self._find(ids, salt))

    # ---- reading ----

    def attach(
        self,
        cache: Cache,
        ids: Sequence[int],
        salt: str = "",
        most: int | None = None,
        seconds: Callable[[int, int], float] | None = None,
    ) -> int:
        """Lengthens `cache`, which holds some of `ids`, by what is saved of them, up to `most`
        tokens; returns how many it then has. Tokens that it holds after those of the last whole
        file may be replaced by mapped ones.

        seconds: how long so many tokens after so many others take to be read anew; where that is
        less than reading their files, it stops.
        """
        most = len(ids) if most is None else most
        if os.getpid() != self._process:  # the lock may be one that a parent's thread holds
            return cache.length
        with self._lock:
            self._list()
            found = self._find(ids[:most], salt)
        length = sum(n for _, n in found)
        if length <= cache.length:
            return cache.length
        begin = cache.length // SAVED_TOKENS
        if self._store.is_recurrent:  # all of it, or nothing
            expected = seconds(length - cache.length, cache.length) if seconds else None
            if not self._is_worth([extent for extent, _ in found], expected):
                return cache.length
            begin, seconds = 0, None
        cache.truncate(begin * SAVED_TOKENS)
        for i, (extent, n) in enumerate(found[begin:], begin + 1):
            expected = seconds(n, cache.length) if seconds else None
            if cache.length >= most or not self._is_worth([extent], expected):
                break
            for following, _ in found[i : i + _FILES_AHEAD]:
                read_ahead(self._path(following.name))
            if not self._attach_one(cache, extent, n):
                break
        if self._store.is_recurrent:
            cache.truncate(cache.length if cache.length == length else 0)
            cache.checkpoint()  # where it goes on, others may
        return cache.length

    def _is_worth(self, extents: list[Extent], seconds: float | None) -> bool:
        """Whether reading these files takes less than so many seconds; None: in any case."""
        n_bytes = sum(extent.n_bytes for extent in extents)
        if seconds is not None:
            first = extents[0]
            share = seconds * first.n_bytes / n_bytes
            if found := sample(self._path(first.name), first.n_bytes, share):
                self.worth.have_read(*found)
        return self.worth.loading(n_bytes, seconds)

    def _attach_one(self, cache: Cache, extent: Extent, n: int) -> bool:
        path = self._path(extent.name)
        before = cache.length
        started = time.monotonic()
        try:
            with contextlib.suppress(OSError):  # another user's disk, perhaps
                os.utime(path, follow_symlinks=False)
            ids = np.frombuffer(extent.ids, np.int32).tolist()
            cache.attach(path, HEADER, ids, extent.checksum, extent.has_block)
        except (OSError, MmrtError) as error:
            with self._lock:
                self._forget(extent)
                if isinstance(error, FormatError | ArgumentError):
                    self._damage(path)
            return False
        if n < extent.n:
            cache.truncate(before + n)
        with self._lock:
            extent.last_use = time.time()
            if extent.name in self._names:
                self._note_end(extent)
            self._read += extent.n_bytes
        self.worth.have_read(extent.n_bytes, time.monotonic() - started)
        return True

    # ---- writing ----

    def save(self, cache: Cache, salt: str = "", ends: bool = True) -> None:
        """Writes what is not saved yet of the text in `cache`, which nobody changes meanwhile.
        ends: also its last tokens, fewer than 256, which a file of their own takes. So do those up
        to each checkpoint."""
        tokens, checkpoints = cache.tokens, cache.checkpoints
        before = self._root(salt)
        for at in range(0, len(tokens), SAVED_TOKENS):
            until = min(at + SAVED_TOKENS, len(tokens))
            for end in [*(n for n in checkpoints if at < n < until), until]:
                partial = end < at + SAVED_TOKENS
                if partial and not (ends or end in checkpoints):
                    return
                packed = packed_ids(tokens[at:end])
                name = digest(before, packed)
                if not self._save_one(cache, at, before, name, packed):
                    return
            before = name

    def _save_one(self, cache: Cache, at: int, before: bytes, name: bytes, packed: bytes) -> bool:
        """Whether it is there now."""
        with self._lock:
            if at and before not in self._names:
                return False  # it had no room
            if name in self._names or self._has_longer(before, packed):
                return True
        try:
            self._require_unworn()
            with self._changes():
                extent = self._write(cache, at, before, name, packed)
        except (OSError, MmrtError) as error:
            self._refuse(error)
            return False
        with self._lock:
            if name not in self._names:
                self._enter(extent)
                self._written += extent.n_bytes
                self._drop_shorter(extent)
            self._evict()
        return True

    def _require_unworn(self) -> None:
        with self._lock:
            if not self._wear.allows(self._store.saved_bytes, time.monotonic()):
                a_day = human(self._wear.a_day)
                raise FileError(errno.EDQUOT, f"{a_day} were written within a day, which wears it")

    def _has_longer(self, before: bytes, ids: bytes) -> bool:
        if self._store.is_recurrent:  # from where a text cannot go back
            return False
        return any(key.startswith(ids) for key in self._below.get(before, ()))

    def _drop_shorter(self, extent: Extent) -> None:
        """Ends of texts that are now in a longer file go."""
        for key, other in list(self._below[extent.before].items()):
            if other.has_block:
                continue
            if other is not extent and extent.ids.startswith(key) and other.name not in self._below:
                self._remove(other)

    def _write(self, cache: Cache, at: int, before: bytes, name: bytes, ids: bytes) -> Extent:
        n = len(ids) // 4
        path = os.path.join(self.directory, f"{name.hex()}.{secrets.token_hex(8)}{_UNFINISHED}")
        started = time.monotonic()
        try:
            fd = os.open(path, _NEW, 0o600)
        except FileNotFoundError:  # somebody has removed the directory
            _make_private(self._parent, self.directory)
            fd = os.open(path, _NEW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            checksum = cache.save(at, n, fd, HEADER)
            has_block = at + n in (*cache.checkpoints, cache.length) and self._store.is_recurrent
            os.ftruncate(fd, HEADER + content_bytes(self._store, has_block))
            os.pwrite(fd, header(self._fingerprint, before, name, ids, checksum), 0)
            os.rename(path, self._path(name))
            n_bytes = os.fstat(fd).st_blocks * 512
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(fd)
        self.worth.have_written(n_bytes, time.monotonic() - started)
        return Extent(name, before, ids, checksum, n_bytes, time.time(), has_block)

    def _refuse(self, error: Exception) -> None:
        with self._lock:
            self._refused += 1
            first = self._refused == 1
        if first:
            warnings.warn(f"{self.directory}: keys and values are not saved: {error}", stacklevel=2)

    def _evict(self) -> None:
        """Removes what was not used for longest and nothing follows, down to `most_bytes`. The heap
        has each such file as it was last used, and what others have become since."""
        while self._n_bytes > self._most_bytes and self._ends:
            used, name = heapq.heappop(self._ends)
            extent = self._names.get(name)
            if extent is not None and extent.last_use == used and name not in self._below:
                self._remove(extent)

    def _remove(self, extent: Extent) -> None:
        with self._changes():
            if _unlinked(self._path(extent.name)):
                self._forget(extent)

    # ---- on a thread of its own ----

    def later(self, work: Callable[[], None], saves: bool) -> bool:
        """Has `work`, which saves or attaches, done on the thread that reads and writes. False:
        too much waits already, or that thread is a parent process's."""
        if os.getpid() != self._process:
            return False
        with self._lock:
            if self._work.qsize() >= _MOST_WAITING:
                return False
            if self._writer is None:
                thread = threading.Thread(target=self._do_work, name="mmrt-saved", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # there are too many, or Python is ending
                    return False
                self._writer = thread
            self.saves_waiting += saves
            self._work.put((work, saves))
        return True

    def save_later(self, cache: Cache, salt: str = "", ends: bool = True) -> bool:
        """save() of the text as it is now, on that thread."""
        fork = cache.fork()
        return self.later(lambda: self.save(fork, salt, ends), saves=True)

    def _do_work(self) -> None:
        while True:
            try:
                work, saves = self._work.get(timeout=_WRITER_STOPS_AFTER)
            except queue.Empty:
                with self._lock:
                    if self._work.empty():
                        self._writer = None
                        return
                continue
            try:
                work()
            except Exception as error:  # others wait for the thread
                with contextlib.suppress(Warning):
                    self._refuse(error)
            finally:
                del work  # and the text that it holds
                with self._lock:
                    self.saves_waiting -= saves

    def close(self) -> None:
        """Waits for what is to be written."""
        if os.getpid() != self._process:
            return
        done = threading.Event()
        with self._lock:
            if self._writer is None:
                return
            self._work.put((done.set, False))
        done.wait()


def _unlinked(path: str) -> bool:
    """Whether the file is gone; it may be where nothing can be changed."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _room(directory: str, most_bytes: int | str | None, n_bytes: int) -> int:
    """n_bytes: that the files take now."""
    if most_bytes is None:
        return (shutil.disk_usage(directory).free + n_bytes) // 2
    if not isinstance(most_bytes, str):
        return whole("kv_dir_size", most_bytes, 1)
    try:
        return parse_size(most_bytes)
    except ArgumentError as error:
        raise ArgumentError(f"kv_dir_size: {error}") from None


def _make_private(*directories: str) -> None:
    for directory in directories:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            told = error.strerror
            if isinstance(error, FileExistsError):
                told = "expected a directory to save keys and values in"
            raise FileError(error.errno, told, directory) from None
    made = os.lstat(directories[-1])
    if not stat.S_ISDIR(made.st_mode):
        raise FileError(None, "expected a directory, found a symbolic link", directories[-1])
    if made.st_uid != os.geteuid():
        raise FileError(None, "the saved keys and values are another user's", directories[-1])
    if made.st_mode & 0o077:
        os.chmod(directories[-1], 0o700)


def is_abandoned(path: str) -> bool:
    """Whether nobody holds the file or directory, and it was not made just now either."""
    try:
        fd = os.open(path, OPENING)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(fd).st_mtime > _JUST_NOW
    except OSError:
        return False
    finally:
        os.close(fd)
