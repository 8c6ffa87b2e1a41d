"""All weights are read and locked (mlock2), so that nothing can push them out of memory.

Where RLIMIT_MEMLOCK does not allow as much, that is said before anything is read, and nothing stays
locked.

Beside a memory budget, what the budget keeps is locked as it is loaded, as far as the limit goes,
and this module is not called.
"""

from collections.abc import Sequence

from mmrt.core.tensor import Tensor
from mmrt.files.policies.ranges import ranges, read, require_room


def apply(tensors: Sequence[Tensor], program: object = None) -> None:
    """Reads the tensors' pages and keeps them in memory, as far as RLIMIT_MEMLOCK allows."""
    parts = ranges(tensors)
    # First the promise, then the pages: a lock that reads them itself has the disk wait for it.
    for mapping, offset, length in parts:
        mapping.lock(offset, length, on_fault=True)
    require_room("locked", parts)
    read(parts)
