"""Has the kernel refuse system calls to a child: for what no file system or disk here does."""

import ctypes
import errno
import platform
import struct

import pytest

# Instructions of classic BPF, and what seccomp answers. The words of a call: its number, then from
# byte 16 on its arguments, of 8 bytes each.
LOAD, EQUAL, GREATER, AND, ADD_X, TO_X, RETURN = 0x20, 0x15, 0x25, 0x54, 0x0C, 0x07, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
_NUMBERS = {"x86_64": (9, 28), "aarch64": (222, 233)}
MMAP, MADVISE = _NUMBERS.get(platform.machine(), (0, 0))

Steps = list[tuple[int, int, int, int]]  # instruction, steps to skip if true, if false, operand


def argument(number: int) -> int:
    """Where its lower half lies."""
    return 16 + 8 * number


def restrict(steps: Steps) -> None:
    """Filters the calls of this process from now on, which should be a child. Skips the test where
    it may not."""
    if platform.machine() not in _NUMBERS:
        pytest.skip("the numbers of this machine's system calls are not known")
    raw = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(raw)))
    libc = ctypes.CDLL(None)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, by_filter, program, 0, 0):
        pytest.skip("this process may not filter its calls")


def without_advice(*refused: int) -> None:
    """Makes the kernel forget these numbers of madvise(), as restrict() does."""
    n = len(refused)
    restrict([
        (LOAD, 0, 0, 0), (EQUAL, 0, n + 1, MADVISE),
        (LOAD, 0, 0, argument(2)), *((EQUAL, n - i, 0, number) for i, number in enumerate(refused)),
        (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | errno.EINVAL),
    ])  # fmt: skip
