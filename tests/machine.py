"""What this machine can do, asked of the kernel and not of mmrt. A test is skipped for want of
something on these answers alone: where the kernel can do a thing and mmrt does not, it fails."""

import ctypes
import mmap
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import pytest

PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for _name in ("munmap", "mlock", "munlock"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# Where x86-64 and aarch64 differ; newer calls have one number for all machines.
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
_IO_URING_SETUP = 425

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25


# ---- pages of files ----


def cached_pages(fd: int) -> int:
    """How many pages of the file are in memory, as mincore() counts them for the file's owner."""
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    try:
        found = (ctypes.c_ubyte * -(-size // PAGE))()
        if _libc.mincore(address, size, found) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(page & 1 for page in found)
    finally:
        _libc.munmap(address, size)


def let_go(fd: int) -> bool:
    """Drops the file from memory by posix_fadvise(); whether no page stayed."""
    os.fsync(fd)  # what is not on the disk yet stays
    for _ in range(200):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if cached_pages(fd) == 0:
            return True
        time.sleep(0.005)  # so do pages that are just being read
    return False


@cache
def _lets_pages_go(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(bytes(64 * PAGE))
        return let_go(probe.fileno())


def needs_eviction(path: Path) -> None:
    """Skips the test where the files of this folder live in memory alone (tmpfs)."""
    if not _lets_pages_go(path.parent):
        pytest.skip("files stay in memory here")


def evict(path: Path) -> None:
    """Drops the file from memory, without mmrt; skips the test where no file can be dropped."""
    needs_eviction(path)
    with path.open("rb") as file:
        assert let_go(file.fileno()), f"pages of {path} stay in memory"


def read_ahead(path: Path) -> int:
    """Bytes that a fault in this file reads at most, by the setting of its device; 0 where the
    system does not tell."""
    device = os.stat(path).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(setting.read_text()) * 1024 if setting.exists() else 0


def needs_read_ahead(path: Path, least: int) -> None:
    if read_ahead(path) < least:
        pytest.skip(f"faults in {path.parent} read less than {least} bytes ahead")


# ---- locked and huge pages ----


@contextmanager
def _memory(size: int) -> Iterator[int]:
    """The address of new private memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    try:
        yield address
    finally:
        _libc.munmap(address, size)


def needs_locking(size: int) -> None:
    """Skips the test where this process may not lock so many bytes."""
    with _memory(size) as address:
        if _libc.mlock(address, size) != 0:
            pytest.skip(f"{size} bytes may not be locked here")


def needs_advice(number: int) -> None:
    """Skips the test where the kernel does not know this number of madvise()."""
    with _memory(PAGE) as address:
        if _libc.madvise(address, PAGE, number) != 0:
            pytest.skip(f"this kernel refuses the advice {number}")


def needs_collapse() -> None:
    """Skips the test where the kernel can make no huge page of small ones."""
    huge = 2 << 20
    with _memory(2 * huge) as address:
        start = address + -address % huge
        ctypes.memset(start, 1, huge)
        _libc.madvise(start, huge, MADV_HUGEPAGE)
        if _libc.madvise(start, huge, MADV_COLLAPSE) != 0:
            pytest.skip("this kernel makes no huge page of small ones")


# ---- reading past the page cache ----


def reads_by(reader: str, path: Path) -> bool:
    """Whether the kernel lets weights be read so (mmrt.core.streaming.READERS) from this file."""
    return reader == "mapped" or (_reads_directly(path) and (reader != "uring" or _has_uring()))


def needs_reader(reader: str, path: Path) -> None:
    if not reads_by(reader, path):
        pytest.skip(f"the kernel does not read {reader} here")


def _reads_directly(path: Path) -> bool:
    with closing(mmap.mmap(-1, PAGE)) as aligned:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            return False
        try:
            return os.preadv(fd, [aligned], 0) > 0
        except OSError:
            return False
        finally:
            os.close(fd)


@cache
def _has_uring() -> bool:
    fd: int = _libc.syscall(_IO_URING_SETUP, 4, ctypes.byref((ctypes.c_uint32 * 30)()))
    if fd < 0:
        return False
    os.close(fd)
    return True


# ---- what the kernel tells ----


def needs_line(path: str, word: str = "") -> None:
    """Skips the test where this file of /proc is not there, or without this word."""
    try:
        text = Path(path).read_text()
    except OSError:
        text = ""
    if not text or word not in text:
        pytest.skip(f"this kernel has no {word or 'text'} in {path}")


def needs_memory_policies() -> None:
    """Skips the test where memory policies are forbidden, as in containers."""
    if platform.machine() not in _GET_MEMPOLICY:
        pytest.skip("the number of get_mempolicy() is not known for this machine")
    number = _GET_MEMPOLICY[platform.machine()]
    if _libc.syscall(number, None, None, ctypes.c_ulong(0), None, ctypes.c_ulong(0)) != 0:
        pytest.skip("memory policies are forbidden here")


def allowed_nodes() -> int:
    """How many memory nodes this process may use, as far as the kernel tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, ranges = line.partition(":")
        if name == "Mems_allowed_list":
            ends = [part.strip().split("-") for part in ranges.split(",")]
            return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
    return 1


# ---- cgroups ----


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the cgroups around this process, inner ones first, with their version."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup" and controller in options.split(","):
            mounts[1] = (root, point, own.get(controller, "/"))
        elif kind == "cgroup2":
            mounts[2] = (root, point, own.get("", "/"))
    for version, (root, point, path) in sorted(mounts.items()):
        inner = Path(point, path.removeprefix(root).lstrip("/"))
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(point):
                yield folder, version


@contextmanager
def cgroup(controller: str, version_1: str, version_2: str) -> Iterator[Path]:
    """A new cgroup, as the file of its limit, which has this name in either version of the
    interface; its other files lie beside that. Skips the test where none can be made."""
    for folder, version in _groups(controller):
        group = folder / f"mmrt_test_{os.getpid()}"
        limit = group / (version_1 if version == 1 else version_2)
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if limit.exists():  # or the controller is not handed down to new groups
                yield limit
                return
        finally:
            group.rmdir()
    pytest.skip(f"no cgroup of the controller {controller} can be made here")


@contextmanager
def memory_cgroup() -> Iterator[Path]:
    with cgroup("memory", "memory.limit_in_bytes", "memory.max") as limit:
        yield limit
