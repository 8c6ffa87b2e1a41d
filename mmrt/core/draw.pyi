from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.kernels import Pool
from mmrt.core.sampling import Sampling

class Drawn(NamedTuple):
    token: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]

def draw(
    logits: NDArray[np.float32],
    samplings: Sequence[Sampling],
    recent: Sequence[NDArray[np.int32]],
    uniforms: Sequence[float],
    masks: Sequence[NDArray[np.uint32] | None] | None = None,
    alternatives: int | None = None,
    pool: Pool | None = None,
) -> list[Drawn]: ...
def distribution(
    logits: NDArray[np.float32],
    sampling: Sampling,
    recent: NDArray[np.int32],
    mask: NDArray[np.uint32] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...
