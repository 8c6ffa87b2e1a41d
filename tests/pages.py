"""Files and pages for the tests of paging: what is in memory, and what the kernel was told."""

import ctypes
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from children import in_child

PAGE = mmap.PAGESIZE

NOBODY = 65534
PR_SET_DUMPABLE = 4


def write_file(path: Path, data: bytes) -> Path:
    """A file whose pages can be evicted: they are written back."""
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return path


def _smaps(address: int) -> dict[str, str]:
    """What the kernel says of the mapping at `address`."""
    found, inside = {}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(number, 16) for number in first.split("-"))
            inside = start <= address < end
        elif inside:
            found[first[:-1]] = " ".join(rest)
    if not found:
        pytest.skip("this kernel has no smaps")
    return found


def told(address: int) -> set[str]:
    """What the kernel was told of the mapping at `address`: the two-letter flags of smaps, among
    them rr (random), sr (sequential), lo (locked), hg and nh (huge pages or not)."""
    return set(_smaps(address)["VmFlags"].split())


def smaps(address: int, field: str) -> int:
    """A figure of smaps for the mapping at `address`, in bytes."""
    said = _smaps(address)
    if field not in said:
        pytest.skip(f"this kernel does not tell {field}")
    return int(said[field].split()[0]) * 1024


def without_privilege(work: Callable[[], object], memlock: int | None = None) -> None:
    """Runs `work` in a child that is not root, and with that RLIMIT_MEMLOCK; what it raises fails
    the test. A child of root can still open /proc/self/fd/N, wherever the file lies."""

    def as_nobody() -> None:
        if memlock is not None:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # or its /proc/self would be root's
        work()

    in_child(as_nobody)
