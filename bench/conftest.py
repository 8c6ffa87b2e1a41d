"""What the suites of bench/ share: roofs that are measured beside each kernel."""

import mmap
from collections.abc import Iterator

import pytest

import mmrt

# More than any last-level cache holds, so that a round reads from memory.
BYTES = 256 << 20


@pytest.fixture(scope="session")
def pages() -> Iterator[mmap.mmap]:
    """Memory that is there, and larger than the caches."""
    with mmap.mmap(-1, BYTES) as region:
        for at in range(0, BYTES, mmap.PAGESIZE):
            region[at] = 1
        yield region


@pytest.fixture(scope="session", autouse=True)
def _tell_machine() -> None:
    print(f"\n{mmrt.cpu_info()}")
