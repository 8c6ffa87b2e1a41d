"""All weights are read and mapped before the call returns (MADV_POPULATE_READ), so that no fault
disturbs what follows.

More than memory can hold is refused: the first pages would be gone when the last ones come.
"""

from collections.abc import Sequence

from mmrt.core.tensor import Tensor
from mmrt.files.policies.ranges import ranges, read, require_room


def apply(tensors: Sequence[Tensor], program: object = None) -> None:
    """Reads and maps the tensors' pages before it returns."""
    parts = ranges(tensors)
    require_room("populate", parts)
    read(parts)
