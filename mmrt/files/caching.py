"""Bringing a weight file into the page cache, and out of it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

from mmrt.core.arguments import function, texts
from mmrt.core.mapping import Mapping
from mmrt.core.residency import Residency
from mmrt.core.tensor import Tensor
from mmrt.files.residency import FileResidency

Progress = Callable[[int, int], object]  # (bytes done, bytes in all)

# Small enough for progress to be seen, large enough that the disk has its queue full.
_PIECE = 8 << 20


class Moved(NamedTuple):
    """What became of the pages that were to be moved."""

    before: Residency
    after: Residency
    page_size: int

    @property
    def bytes_before(self) -> int:
        return self.before.resident * self.page_size

    @property
    def bytes_after(self) -> int:
        return self.after.resident * self.page_size


def move(
    mappings: Sequence[Mapping],
    tensors: dict[str, Tensor],
    direction: Literal["in", "out"],
    names: Iterable[str] | None,
    progress: Progress | None,
) -> Moved:
    """See TensorFile.warm and TensorFile.evict."""
    chosen = None if names is None else set(texts("names", names))
    function("progress", progress)
    ranges = list(_ranges(mappings, tensors, chosen))
    before = _residency(mappings, tensors, chosen)
    if direction == "out":
        _write_back(mappings)
    total, done = sum(end - start for _, start, end in ranges), 0
    for mapping, start, end in ranges:
        while start < end:
            if progress is not None:
                progress(done, total)
            # Cut at whole pages: one in two pieces would be evicted with neither.
            cut = min(end, (start // _PIECE + 1) * _PIECE)
            if direction == "out":
                mapping.advise("evict", start, cut - start)
            else:
                # The disk is to be busy with what follows while this is waited for.
                mapping.advise("willneed", start, min(cut + _PIECE, end) - start)
                mapping.advise("populate_read", start, cut - start)
            done += cut - start
            start = cut
    if progress is not None:
        progress(done, total)
    return Moved(before, _residency(mappings, tensors, chosen), mappings[0].page_size)


def _write_back(mappings: Iterable[Mapping]) -> None:
    """Has the disk get what it has not got yet of a file just written: such pages would stay."""
    for mapping in mappings:
        # By path: a file in many parts may have let go of its descriptors.
        with suppress(OSError), open(mapping.path, "rb") as part:
            os.fdatasync(part.fileno())


def _residency(
    mappings: Sequence[Mapping], tensors: dict[str, Tensor], names: set[str] | None
) -> Residency:
    now = FileResidency(mappings, tensors)
    return now.whole if names is None else now.of(names)


def _ranges(
    mappings: Iterable[Mapping], tensors: dict[str, Tensor], names: set[str] | None
) -> Iterator[tuple[Mapping, int, int]]:
    """Where the bytes of these tensors (None: of all files whole) begin and end; neighbours as one
    range, so that the edge pages between them count as inside.
    """
    for mapping in mappings:
        if names is None:
            yield mapping, 0, mapping.size
            continue
        start = end = -1
        own = (tensor for tensor in tensors.values() if tensor.mapping is mapping)
        for tensor in sorted(own, key=lambda tensor: tensor.offset):
            if tensor.name in names:
                start = tensor.offset if start < 0 else start
                end = tensor.offset + tensor.nbytes
            elif start >= 0:
                yield mapping, start, end
                start = -1
        if start >= 0:
            yield mapping, start, end
