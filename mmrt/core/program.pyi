from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.kernels import Pool
from mmrt.core.state import Cache, StateStore
from mmrt.core.streaming import Plan, Streaming
from mmrt.core.tensor import Tensor

ALIKE_TOKENS: int

class Matrix(NamedTuple):
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0

class Part(NamedTuple):
    cache: Cache
    tokens: NDArray[np.int32]
    outputs: int = 0

class Program:
    pool: Pool
    max_tokens: int
    store: StateStore
    vocab_size: int
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
    def embed(self, weight: Tensor, out: int, scale: float = 1.0) -> None: ...
    def norm(
        self,
        stream: int,
        weight: Tensor,
        out: int,
        eps: float,
        add: int = -1,
        post: Tensor | None = None,
        scale: float = 1.0,
        centred: bool = False,
        outputs_only: bool = False,
    ) -> None: ...
    def add(
        self,
        stream: int,
        add: int = -1,
        eps: float = 0.0,
        post: Tensor | None = None,
        scale: float = 1.0,
        outputs_only: bool = False,
    ) -> None: ...
    def linear(
        self,
        in_: int,
        matrices: Sequence[Tensor | Matrix],
        out: int,
        outputs_only: bool = False,
        alike: bool = False,
    ) -> None: ...
    def unit(
        self,
        in_: int,
        matrix: Tensor | Matrix,
        out: int,
        activation: str,
        outputs_only: bool = False,
    ) -> None: ...
    def glu(
        self,
        in_: int,
        gate: Tensor | Matrix,
        up: Tensor | Matrix,
        out: int,
        activation: str,
        outputs_only: bool = False,
    ) -> None: ...
    def route(
        self,
        logits: int,
        choices: int,
        n_used: int,
        gating: str = "softmax",
        bias: Tensor | None = None,
        normalised: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        n_groups_used: int = 1,
        outputs_only: bool = False,
    ) -> None: ...
    def experts(
        self,
        in_: int,
        choices: int,
        out: int,
        n_used: int,
        gate: Tensor | Matrix,
        up: Tensor | Matrix,
        down: Tensor | Matrix,
        activation: str,
        down_scales: Tensor | None = None,
        outputs_only: bool = False,
    ) -> None: ...
    def wide_norm(
        self, qkv: int, layer: int, n_heads: int, q_norm: Tensor, k_norm: Tensor, eps: float
    ) -> None: ...
    def rope(
        self,
        qkv: int,
        table: int,
        layer: int,
        n_heads: int,
        interleaved: bool,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        temperature: float = 0.0,
        period: int = 0,
    ) -> None: ...
    def attend(
        self,
        qkv: int,
        out: int,
        layer: int,
        n_heads: int,
        scale: float,
        softcap: float = 0.0,
        outputs_only: bool = False,
    ) -> None: ...
    def logits(
        self, in_: int, matrix: Tensor | Matrix, softcap: float = 0.0, scale: float = 1.0
    ) -> None: ...
    def finish(self) -> None: ...
    def stream(self) -> None: ...
    def set_reader(self, reader: str) -> None: ...
    def set_budget(self, budget: int) -> None: ...
    def lock_kept(self) -> None: ...
    def plan(self, budget: int) -> Plan: ...
    @property
    def streaming(self) -> Streaming | None: ...
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
    ) -> None: ...
