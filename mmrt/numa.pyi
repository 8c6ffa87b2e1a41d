import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from mmrt.kernels import Pool
from mmrt.mapping import Mapping as MappedFile
from mmrt.tensor import Tensor

MODES: tuple[str, ...]

_Nodes: TypeAlias = int | Sequence[int]

@dataclass(frozen=True)
class Node:
    id: int
    cpus: tuple[int, ...]
    total: int
    free: int
    distances: dict[int, int]

@dataclass(frozen=True)
class Topology:
    nodes: tuple[Node, ...]
    allowed: tuple[int, ...]

class Policy(NamedTuple):
    mode: str
    nodes: tuple[int, ...]

class Placement(NamedTuple):
    pages: int
    placed: int

class _Restored:
    def __enter__(self) -> _Restored: ...
    def __exit__(self, *exception: object) -> None: ...

class run_on:
    def __init__(self, node: int) -> None: ...
    def __enter__(self) -> run_on: ...
    def __exit__(self, *exception: object) -> None: ...

def topology(root: str | os.PathLike[str] | None = None) -> Topology: ...
def get_policy() -> Policy: ...
def set_policy(mode: str, nodes: int | Iterable[int] = ()) -> _Restored: ...
def bind(memory: Buffer, mode: str, nodes: int | Iterable[int] = ()) -> None: ...
def bind_pool(pool: Pool) -> list[int]: ...
def pages(memory: Buffer, offset: int = 0, length: int | None = None) -> NDArray[np.int16]: ...
def place_ranges(
    mapping: MappedFile, ranges: Iterable[tuple[int, int, int]], *, strict: bool = False
) -> Placement: ...
def place(
    tensors: Mapping[str, Tensor] | Tensor | Iterable[Tensor],
    assignment: _Nodes | Mapping[str, _Nodes],
    *,
    strict: bool = False,
) -> Placement: ...
