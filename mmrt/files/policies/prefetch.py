"""A thread reads the weights into the page cache, while work on them begins.

It reads in the order of the tensors and stops where memory is full, so that it does not push out
what it has just read; the rest comes lazily. One WILLNEED on a whole file would do neither: it
blocks until the disk's queue has room for all of it.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import ref

from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.files.policies.ranges import missing, ranges
from mmrt.memory.system import available_memory

# The kernel reads no more at a time than the disk's read-ahead and drops the rest in silence; this
# is the smallest usual one.
_PIECE = 128 << 10


class _Part(NamedTuple):
    mapping: ref[Mapping]  # so that it can be closed meanwhile, which ends the reading
    fd: int  # the reader's own
    offset: int  # in the file
    length: int


def apply(tensors: Sequence[Tensor], program: object = None) -> None:
    """Starts reading what memory has room for, and returns."""
    wanted = ranges(tensors)
    total = sum(part.length for part in wanted)
    budget = total - max(missing(wanted) - available_memory(), 0)
    fds: dict[Mapping, int] = {}
    with suppress(OSError):  # a model may have more parts than a process may have files open
        for part in wanted:
            if part.mapping not in fds:
                fds[part.mapping] = os.dup(part.mapping.fileno())
    parts = [
        _Part(ref(mapping), fds[mapping], mapping.offset + offset, length)
        for mapping, offset, length in wanted
        if mapping in fds
    ]
    threading.Thread(target=_read, args=(parts, budget), name="prefetch", daemon=True).start()


def _read(parts: Sequence[_Part], budget: int) -> None:
    for part in parts:
        length = min(part.length, budget)
        budget -= length
        with suppress(OSError):  # which is left to those who need the bytes
            for done in range(0, length, _PIECE):
                mapping = part.mapping()
                if mapping is None or mapping.closed:
                    break
                del mapping
                size = min(_PIECE, length - done)
                os.posix_fadvise(part.fd, part.offset + done, size, os.POSIX_FADV_WILLNEED)
    for fd in {part.fd for part in parts}:
        os.close(fd)
