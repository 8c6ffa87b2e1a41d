"""Has the kernel refuse system calls to a child: for what no file system or disk here does."""

import ctypes
import os
import platform
import struct
import traceback
from collections.abc import Callable

import pytest

# Instructions of classic BPF, and what seccomp answers. The words of a call: its number, then from
# byte 16 on its arguments, of 8 bytes each.
LOAD, EQUAL, GREATER, AND, ADD_X, TO_X, RETURN = 0x20, 0x15, 0x25, 0x54, 0x0C, 0x07, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
MMAP, MADVISE = 9, 28  # on x86-64

Steps = list[tuple[int, int, int, int]]  # instruction, steps to skip if true, if false, operand


def argument(number: int) -> int:
    """Where its lower half lies."""
    return 16 + 8 * number


def restrict(steps: Steps) -> None:
    """Filters the calls of this process from now on; ends it with status 77 if it may not."""
    raw = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(raw)))
    libc = ctypes.CDLL(None)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
        os._exit(77)


def in_child(work: Callable[[], object]) -> None:
    """Calls work() in a child; what it raises fails the test. Skips it where calls cannot be
    filtered."""
    if platform.machine() != "x86_64":
        pytest.skip("the filters are made of x86-64's numbers")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended == 77:
        pytest.skip("this process may not filter its calls")
    assert ended == 0
