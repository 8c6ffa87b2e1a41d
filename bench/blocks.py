"""Random blocks of any tensor type, with scales that give the weights a chosen spread."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.quant import TYPES, dequantize

Blocks = NDArray[np.uint8]  # [blocks][bytes]
FLOATS = ("F32", "F16", "BF16")


class Halves(NamedTuple):
    """Byte offsets of a block's binary16 numbers: its scale and, where there is one, its minimum's.

    ratio: the minimum's over the scale that puts the mean of random weights at zero.
    """

    scale: int
    minimum: int | None = None
    ratio: float = 0.0


HALVES = {
    "Q4_0": Halves(0),
    "Q4_1": Halves(0, 2, -7.5),
    "Q5_0": Halves(0),
    "Q5_1": Halves(0, 2, -15.5),
    "Q8_0": Halves(0),
    "Q2_K": Halves(80, 82, 1.5),
    "Q3_K": Halves(108),
    "Q4_K": Halves(0, 2, 7.5),
    "Q5_K": Halves(0, 2, 15.5),
    "Q6_K": Halves(208),
    "IQ4_NL": Halves(0),
    "IQ4_XS": Halves(0),
    "IQ2_XXS": Halves(0),
    "IQ2_XS": Halves(0),
    "IQ2_S": Halves(0),
    "IQ3_XXS": Halves(0),
    "IQ3_S": Halves(0),
    "IQ1_S": Halves(0),
    "TQ1_0": Halves(52),
    "TQ2_0": Halves(64),
    **{name: Halves(0) for name in ("Q1_0", "Q2_0", "PQ2_0")},
}


# The bytes of four pairs of bits, each of them 0, 1 or 2.
_TERNARY = np.array([b for b in range(256) if not b & b >> 1 & 0x55], np.uint8)


def set_halves(
    type: str, blocks: Blocks, scales: NDArray[np.uint16], *minima: NDArray[np.uint16]
) -> None:
    """Puts binary16 numbers, as bits, into the places that `type` has for them."""
    if type == "IQ1_M":  # in the upper nibbles of four words, the lowest first
        for i in range(4):
            high = blocks[:, 49 + 2 * i]
            high &= 0x0F
            high |= (scales >> (4 * i) & 15).astype(np.uint8) << 4
        return
    at = HALVES[type]
    for offset, values in zip((at.scale, at.minimum), (scales, *minima), strict=False):
        if offset is not None:
            blocks[:, offset : offset + 2] = values.astype("<u2")[:, None].view(np.uint8)


def set_scales(type: str, blocks: Blocks, scales: NDArray[np.float64]) -> None:
    """Gives each block its scale, as exactly as `type` can hold it, and the minimum that goes with
    it."""
    if type == "MXFP4":
        blocks[:, 0] = np.rint(np.log2(scales)) + 127
    elif type == "NVFP4":
        blocks[:, :4] = _ue4m3(scales)[:, None]
    else:
        ratio = HALVES[type].ratio if type in HALVES else 0.0
        halves = [(scales * factor).astype(np.float16).view(np.uint16) for factor in (1.0, ratio)]
        set_halves(type, blocks, *halves)


def _ue4m3(values: NDArray[np.float64]) -> Blocks:
    """The nearest numbers of three mantissa bits, not below the smallest."""
    exponents = np.maximum(np.floor(np.log2(values)), -6)
    mantissas = np.rint(values / 2.0 ** (exponents - 3)) - 8  # may carry into the exponent
    found: Blocks = np.clip((exponents + 7) * 8 + mantissas, 1, 0x7E).astype(np.uint8)
    return found


# Whose numbers reach further to one side of zero than to the other.
_LOPSIDED = ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "TQ2_0", "Q2_0", "PQ2_0")


def random_blocks(random: np.random.Generator, type: str, n: int, spread: float) -> Blocks:
    """n blocks of weights with mean 0 (nearly) and standard deviation `spread` (roughly, where the
    scales of `type` are coarse)."""
    kind = TYPES[type]
    if type in FLOATS:
        values = (spread * random.standard_normal(n, np.float32))[:, None]
        if type == "F16":
            values = values.astype(np.float16)
        return (
            values.view(np.uint8)[:, 4 - kind.bytes :] if type == "BF16" else values.view(np.uint8)
        )
    blocks = np.frombuffer(random.bytes(n * kind.bytes), np.uint8).reshape(n, kind.bytes).copy()
    if type == "TQ2_0":  # a pair of bits could hold a fourth value, but quantisers give it none
        blocks[:, :64] = _TERNARY[blocks[:, :64] % 81]
    elif type in ("Q2_0", "PQ2_0"):  # likewise
        blocks[:, 2:] = _TERNARY[blocks[:, 2:] % 81]
    set_scales(type, blocks, np.ones(n))
    sample = blocks[:64]
    unit = dequantize(type, sample.tobytes(), len(sample) * kind.elements).std()
    scales = spread / unit * random.uniform(0.7, 1.3, n)
    if type in _LOPSIDED:
        scales *= random.choice((-1, 1), n)
    set_scales(type, blocks, scales)
    return blocks
