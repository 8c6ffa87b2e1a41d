from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.kernels import Pool
from mmrt.core.state import Cache, StateStore
from mmrt.core.streaming import Demand, Plan, Streaming
from mmrt.core.tensor import Tensor

EXACT_TOKENS: int

class Matrix(NamedTuple):
    weight: Tensor
    bias: Tensor | None = None
    scale: float | Tensor = 1.0

class Part(NamedTuple):
    cache: Cache
    tokens: NDArray[np.int32]
    outputs: int = 0
    exact: bool = False

class CoreProgram:
    pool: Pool
    max_tokens: int
    store: StateStore
    vocab_size: int
    taken: int
    given: int
    routes: list[tuple[int, int]]
    def __init__(
        self,
        pool: Pool,
        max_tokens: int,
        store: StateStore,
        exact: bool = False,
    ) -> None: ...
    def close(self) -> None: ...
    def buffer(self, width: int, per_token: int = 1) -> int: ...
    def rope_table(
        self, frequencies: Sequence[float] | NDArray[np.float64], magnitude: float = 1.0
    ) -> int: ...
    def append(
        self,
        kind: str,
        note: str,
        weights: Sequence[Tensor | Matrix | None] = (),
        /,
        **fields: float,
    ) -> None: ...
    def finish(self) -> None: ...
    def stream(self) -> None: ...
    def set_reader(self, reader: str) -> None: ...
    def set_budget(self, budget: int) -> None: ...
    def lock_kept(self) -> None: ...
    def forget_columns(self) -> None: ...
    def plan(self, budget: int) -> Plan: ...
    @property
    def streaming(self) -> Streaming | None: ...
    @property
    def demand(self) -> list[tuple[Tensor, Demand]]: ...
    def evict_least_recent(self) -> None: ...
    def step_bytes(self, n: int) -> int: ...
    @property
    def weights(self) -> list[Tensor]: ...
    @property
    def operations(self) -> list[tuple[str, list[Tensor]]]: ...
    def shares(self, tensor: Tensor) -> list[int] | None: ...
    def run(
        self,
        parts: Sequence[Part],
        logits: NDArray[np.float32] | None = None,
        marks: NDArray[np.int64] | None = None,
        choices: NDArray[np.int32] | None = None,
        rows: NDArray[np.float32] | None = None,
    ) -> None: ...
