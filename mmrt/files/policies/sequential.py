"""Faults read far ahead, and pages behind them are the first to go (MADV_SEQUENTIAL): for a file
that is read once through, front to back."""

from collections.abc import Sequence

from mmrt.core.tensor import Tensor
from mmrt.files.policies.ranges import ranges


def apply(tensors: Sequence[Tensor], program: object = None) -> None:
    """Has the kernel read further ahead, and drop what has been read sooner."""
    for mapping, offset, length in ranges(tensors):
        mapping.advise("sequential", offset, length)
