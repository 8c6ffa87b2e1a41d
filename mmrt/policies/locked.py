"""All weights are read and locked (mlock), so that nothing can push them out of memory.

Where RLIMIT_MEMLOCK does not allow as much, that is said, and nothing stays locked.
"""

from collections.abc import Sequence

from mmrt.policies.ranges import ranges
from mmrt.tensor import Tensor


def apply(tensors: Sequence[Tensor], program: object = None) -> None:
    """Reads the tensors' pages and keeps them in memory, as far as RLIMIT_MEMLOCK allows."""
    for mapping, offset, length in ranges(tensors):
        mapping.lock(offset, length)
