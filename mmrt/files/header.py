"""What the readers of headers share: none of what a header says is to be trusted."""

from collections.abc import Sequence
from typing import Any

from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError, FormatError

_MOST_DIMENSIONS = 8  # that a Tensor has


def read(mapping: Mapping, offset: int, length: int) -> bytes:
    """The `length` bytes from `offset`, as far as the file goes: of a header, never of weights.

    The kernel is told how much will be read, or else it would read ahead into the weights.
    """
    length = max(0, min(length, mapping.size - offset))
    if not length:
        return b""
    mapping.advise("willneed", offset, length)
    with memoryview(mapping) as view:
        data = bytes(view[offset : offset + length])
    mapping.verify(offset, length)
    return data


def unlike(mapping: Mapping, head: bytes, expected: str) -> FormatError:
    """The refusal of a file that begins with `head`, `expected` saying with what it should."""
    pointer = head.startswith(b"version ")
    hint = " (a Git LFS pointer: fetch the file itself)" if pointer else ""
    return FormatError(f"{mapping.path}: it begins with {head!r}, {expected}{hint}")


def declared_tensor(
    mapping: Mapping,
    where: str,
    name: str,
    type: str,
    shape: Sequence[Any],
    offset: int,
    nbytes: int,
    unreadable: str = "",
) -> Tensor:
    """The Tensor `name`, if `shape` and `offset` can be true; `where` names file and tensor.

    unreadable: why mmrt cannot read it, if so; more dimensions than a Tensor can have are a reason
    too. Then it has the `nbytes` that are there for it; else what its type and shape take, which
    the caller compares. Raises FormatError where a dimension is no whole number or the tensor
    would leave the file.
    """
    for number, size in enumerate(shape):
        # Not shown: it may be of any kind, or a number of more digits than Python will print.
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 63:
            raise FormatError(
                f"{where}: dimension {number} of its shape is no whole number from 0 to 2^63 - 1"
            )
    if not unreadable and len(shape) > _MOST_DIMENSIONS:
        unreadable = f"it has {len(shape)} dimensions, and mmrt knows up to {_MOST_DIMENSIONS}"
    try:
        if unreadable:
            return Tensor(mapping, name, type, shape, offset, nbytes=nbytes, unreadable=unreadable)
        return Tensor(mapping, name, type, shape, offset)
    except ArgumentError as error:
        raise FormatError(f"{mapping.path}: {error}") from None
