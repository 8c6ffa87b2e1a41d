from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Buffer

_Bytes = Buffer | NDArray[Any]  # type checkers know that arrays are buffers from Python 3.12 on

class Pool:
    def __init__(self, threads: int | None = None) -> None: ...
    @property
    def threads(self) -> int: ...

def default_pool() -> Pool: ...
def float_array(x: object) -> NDArray[np.float32]: ...
def into(out: NDArray[Any], product: NDArray[np.float32]) -> NDArray[Any]: ...
def within_range(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.intc] | None]: ...
def out_of_range(
    products: NDArray[np.float32], exponents: NDArray[np.intc] | None
) -> NDArray[np.float32]: ...
def matmul(
    type: str, blocks: _Bytes, shape: tuple[int, int], x: ArrayLike, pool: Pool | None = None
) -> NDArray[np.float32]: ...
def roof(kind: str, data: _Bytes | None = None, pool: Pool | None = None) -> float: ...

@dataclass(frozen=True)
class Variant:
    type: str
    isa: str
    source: str

def variants() -> list[Variant]: ...
def trim_heap() -> None: ...

@dataclass(frozen=True)
class CpuInfo:
    model: str
    cpus: int
    isa: str
    forced: bool
    isas: dict[str, str]

def cpu_info() -> CpuInfo: ...
