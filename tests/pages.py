"""Files and pages for the tests of paging: what is in memory, and what the kernel was told."""

import ctypes
import mmap
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrt.mapping import Mapping

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


def evict(path: Path) -> None:
    """Drops the file from memory, or skips the test where files live in memory alone (tmpfs)."""
    with Mapping(path) as mapping:
        mapping.advise("evict")
        if mapping.residency().resident:
            pytest.skip("this file system does not let pages go")


def told(address: int) -> set[str]:
    """What the kernel was told of the mapping at `address`: the two-letter flags of smaps, among
    them rr (random), sr (sequential), lo (locked), hg and nh (huge pages or not)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if first.endswith(":"):
            if inside and first == "VmFlags:":
                return set(rest)
        else:
            start, end = (int(number, 16) for number in first.split("-"))
            inside = start <= address < end
    pytest.skip("this kernel does not tell the flags of a mapping")


def without_privilege(work: Callable[[], object], memlock: int | None = None) -> None:
    """Runs `work` in a child that is not root, and with that RLIMIT_MEMLOCK; what it raises fails
    the test. A child of root can still open /proc/self/fd/N, wherever the file lies."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if memlock is not None:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # or its /proc/self would be root's
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
