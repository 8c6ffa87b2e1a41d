"""Tensors as byte ranges of mappings, which is what policies work on."""

from collections.abc import Sequence
from typing import NamedTuple

from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.errors import OutOfMemoryError
from mmrt.memory.system import available_memory

# What is waited for at once, while the disk goes on with the next.
_STRETCH = 64 << 20


class Range(NamedTuple):
    mapping: Mapping
    offset: int
    length: int


def ranges(tensors: Sequence[Tensor]) -> list[Range]:
    """The tensors' bytes in the tensors' order. Those that follow one another in the file, with
    less than a page between, are one range."""
    found: list[Range] = []
    for tensor in tensors:
        if found and found[-1].mapping is tensor.mapping:
            mapping, offset, length = found[-1]
            gap = tensor.offset - (offset + length)
            if 0 <= gap < mapping.page_size:
                found[-1] = Range(mapping, offset, length + gap + tensor.nbytes)
                continue
        found.append(Range(tensor.mapping, tensor.offset, tensor.nbytes))
    return found


def missing(parts: Sequence[Range]) -> int:
    """Bytes of the parts' pages that are not in memory."""
    total = 0
    for mapping, offset, length in parts:
        residency = mapping.residency(offset, length)
        total += (residency.total - residency.resident) * mapping.page_size
    return total


def require_room(policy: str, parts: Sequence[Range]) -> None:
    """Raises OutOfMemoryError if memory has no room for all of the parts at once."""
    needed, available = missing(parts), available_memory()
    if needed > available:
        raise OutOfMemoryError(
            f"policy {policy}: {needed} bytes of weights are to be read, but memory has room for "
            f"{available}; lazy and prefetch do with less"
        )


def read(parts: Sequence[Range]) -> None:
    """Reads and maps the parts. What follows is announced (MADV_WILLNEED) before a stretch is
    waited for (MADV_POPULATE_READ), so that the disk is never idle."""
    for mapping, offset, length in parts:
        end, announced = offset + length, offset
        for start in range(offset, end, _STRETCH):
            ahead = min(start + 2 * _STRETCH, end)
            mapping.advise("willneed", announced, ahead - announced)
            mapping.advise("populate_read", start, min(start + _STRETCH, end) - start)
            announced = ahead
