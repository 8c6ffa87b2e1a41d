"""Each fault reads its own page alone (MADV_RANDOM).

For few scattered reads: rows of an embedding, one expert of many. Whole passes get slow by it, and
so does populating the range later: both then wait for the disk once a page.
"""

from collections.abc import Sequence

from mmrt.core.tensor import Tensor
from mmrt.files.policies.ranges import ranges


def apply(tensors: Sequence[Tensor], program: object = None) -> None:
    """Switches read-ahead off for the tensors' pages."""
    for mapping, offset, length in ranges(tensors):
        mapping.advise("random", offset, length)
