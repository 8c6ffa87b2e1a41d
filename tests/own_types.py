"""Tensor types that the `gguf` package does not know, in plain NumPy."""

import numpy as np
from numpy.typing import NDArray


def q1_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, d, -d).reshape(-1)


def q2_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    pairs = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return (d * (pairs.reshape(len(blocks), -1).astype(np.float32) - 1)).reshape(-1)


# Type -> the values of blocks (n, bytes of a block), in a row.
OWN = {"Q1_0": q1_0, "Q2_0": q2_0, "PQ2_0": q2_0}
