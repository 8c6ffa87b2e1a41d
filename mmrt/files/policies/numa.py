"""All weights are read, each row into the memory of the node whose threads multiply with it, and
these threads are bound to the CPUs of their nodes.

Without a model they are the threads of `tensor @ x`. On a machine of one node this is the policy
populate, and a warning says so.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmrt.core import numa
from mmrt.core.kernels import default_pool
from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.files.policies import populate
from mmrt.files.policies.ranges import ranges, require_room

if TYPE_CHECKING:
    from mmrt.core.program import Program


def apply(tensors: Sequence[Tensor], program: "Program | None" = None) -> None:
    """Has each row read into the memory of the node whose threads multiply with it."""
    if len(numa.topology().allowed) < 2:
        _warn("there is one memory node to use; all weights are read, as with policy populate")
        populate.apply(tensors)
        return
    require_room("numa", ranges(tensors))
    nodes = numa.bind_pool(program.pool if program else default_pool())
    done = [numa.place(mapping, parts) for mapping, parts in plan(tensors, program, nodes).items()]
    pages, there, elsewhere = (sum(column) for column in zip(*done, strict=True))
    if elsewhere:
        _warn(
            f"{elsewhere} of {pages} pages stay on other nodes: other processes use them, or their "
            "node is full"
        )
    if there + elsewhere < pages:
        _warn("the weights are read, but this system does not say on which nodes they lie")


def _warn(text: str) -> None:
    warnings.warn(f"policy numa: {text}", stacklevel=4)


def plan(
    tensors: Sequence[Tensor], program: "Program | None", nodes: Sequence[int]
) -> dict[Mapping, list[tuple[int, int, int]]]:
    """By mapping: the byte ranges (offset, length, node) in which the tensors are to lie, in rising
    order and without a page in two of them. nodes: of each thread."""
    parts: dict[Mapping, list[tuple[int, int, int]]] = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        found = parts.setdefault(tensor.mapping, [])
        page, size = tensor.mapping.page_size, tensor.mapping.size
        for start, end, node in _runs(tensor, program, nodes):
            start = start // page * page
            end = min(-(-end // page) * page, size)
            if found:
                offset, length, last = found[-1]
                start = max(start, offset + length)  # a page in two runs is the first one's
                if last == node and start == offset + length:
                    found[-1] = offset, end - offset, node
                    continue
            if start < end:
                found.append((start, end - start, node))
    return parts


def _runs(
    tensor: Tensor, program: "Program | None", nodes: Sequence[int]
) -> Iterator[tuple[int, int, int]]:
    """The tensor's bytes from start to end for each thread that reads any, and that one's node."""
    rows = math.prod(tensor.shape[:-1])
    first = program.shares(tensor) if program else None
    if first is None:
        first = [rows * i // len(nodes) for i in range(len(nodes) + 1)]
    row = tensor.nbytes // rows if rows else 0
    for node, begin, end in zip(nodes, first, first[1:], strict=False):
        if begin < end:
            yield tensor.offset + begin * row, tensor.offset + end * row, node
