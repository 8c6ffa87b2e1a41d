"""Files and pages for the tests of paging: what is in memory, and what the kernel was told."""

import ctypes
import errno
import mmap
import os
import platform
import resource
import struct
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

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


def without_advice(*refused: int) -> None:
    """Makes the kernel forget these numbers of madvise(), for this process and for good."""
    calls = {"x86_64": 28, "aarch64": 233}
    if platform.machine() not in calls:
        pytest.skip("the number of madvise() is not known for this machine")

    def step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_so, if_not, value)

    load, compare, leave = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EINVAL
    program = step(load, 0) + step(compare, calls[platform.machine()], 0, len(refused) + 1)
    program += step(load, 16 + 2 * 8)
    for i, number in enumerate(refused):
        program += step(compare, number, len(refused) - i)
    program += step(leave, allow) + step(leave, refuse)
    code = ctypes.create_string_buffer(program, len(program))
    filter = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    if libc.prctl(seccomp, by_filter, filter, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no seccomp")
