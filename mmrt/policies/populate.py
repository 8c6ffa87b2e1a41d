"""All weights are read and mapped before the call returns (MADV_POPULATE_READ), so that no fault
disturbs what follows.

More than memory can hold is refused: the first pages would be gone when the last ones come.
"""

from collections.abc import Sequence

from mmrt.errors import OutOfMemoryError
from mmrt.policies.ranges import missing, ranges
from mmrt.system import available_memory
from mmrt.tensor import Tensor


def apply(tensors: Sequence[Tensor]) -> None:
    parts = ranges(tensors)
    needed, available = missing(parts), available_memory()
    if needed > available:
        raise OutOfMemoryError(
            f"policy populate: {needed} bytes of weights are to be read, but memory has room for "
            f"{available}; lazy and prefetch do with less"
        )
    for mapping, offset, length in parts:
        mapping.advise("populate_read", offset, length)
