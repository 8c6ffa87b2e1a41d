"""What the suites of bench/ share: roofs that are measured beside each kernel."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmrt
from mmrt.memory.sizes import parse_size


def _more_than_caches_hold() -> int:
    """So many bytes that a round reads them from memory: twice the largest cache."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    caches = (parse_size(size.read_text().strip() + "iB") for size in sizes)
    return max(256 << 20, 2 * max(caches, default=0))


BYTES = _more_than_caches_hold()


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
