"""Children that a test forks."""

import os
import signal
import time
import traceback
from collections.abc import Callable

import pytest

SECONDS = 60  # for what takes a hundredth
_SKIPPED = 77


def in_child(work: Callable[[], object]) -> None:
    """Calls work() in a child; what it raises fails the test, or skips it."""
    status = status_in_child(work)
    if status == _SKIPPED:
        pytest.skip("the child says why")
    assert status == 0


def status_in_child(work: Callable[[], object]) -> int:
    """How a child ends that calls work() and is forked right now: 0; 1 where it raises; minus the
    signal that it died of. One that hangs is killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except pytest.skip.Exception as reason:
            print(reason, flush=True)
            status = _SKIPPED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return status_of(child)


def status_of(child: int) -> int:
    """Waits for it, as long as a child may take."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
