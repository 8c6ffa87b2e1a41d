from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.kernels import Pool

class Settings(NamedTuple):
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float

class Drawn(NamedTuple):
    token: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]

def draw(
    logits: NDArray[np.float32],
    settings: Sequence[Settings],
    recent: Sequence[NDArray[np.int32]],
    uniforms: Sequence[float],
    masks: Sequence[NDArray[np.uint32] | None] | None = None,
    alternatives: int | None = None,
    pool: Pool | None = None,
) -> list[Drawn]: ...
def distribution(
    logits: NDArray[np.float32],
    settings: Settings,
    recent: NDArray[np.int32],
    mask: NDArray[np.uint32] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...
