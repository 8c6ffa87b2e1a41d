import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from mmrt.core.kernels import Pool
from mmrt.core.mapping import Mapping

_Bytes = Buffer | NDArray[Any]  # type checkers know that arrays are buffers from Python 3.12 on

_Mode = Literal[
    "default",
    "preferred",
    "bind",
    "interleave",
    "local",
    "preferred_many",
    "weighted_interleave",
]

MODES: tuple[_Mode, ...]

@dataclass(frozen=True)
class Node:
    id: int
    cpus: tuple[int, ...]  # online
    total: int  # bytes of memory
    free: int
    distances: dict[int, int]  # by node id, as the firmware gives it: 10 is local, 0 not known

@dataclass(frozen=True)
class Topology:
    nodes: tuple[Node, ...]
    allowed: tuple[int, ...]

def topology(root: str | os.PathLike[str] | None = None) -> Topology: ...

class Policy(NamedTuple):
    mode: _Mode
    nodes: tuple[int, ...]

def get_policy() -> Policy: ...
def set_policy(mode: _Mode, nodes: int | Iterable[int] = ()) -> AbstractContextManager[object]: ...
def bind(
    memory: _Bytes, mode: _Mode, nodes: int | Iterable[int] = (), *, move: bool = False
) -> None: ...
def page_nodes(memory: _Bytes, offset: int = 0, length: int | None = None) -> NDArray[np.int16]: ...
def bind_pool(pool: Pool) -> list[int]: ...

class Placement(NamedTuple):
    pages: int
    there: int
    elsewhere: int

def place(mapping: Mapping, ranges: Iterable[tuple[int, int, int]]) -> Placement: ...
