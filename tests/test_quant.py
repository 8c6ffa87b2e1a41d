"""The scalar unpacks against the `gguf` package: equal to the last bit, on any bytes."""

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from mmrt.quant import dequantize

# Byte offsets of the binary16 fields in a block of each type.
HALVES: dict[str, tuple[int, ...]] = {
    "F32": (),
    "F16": (0,),
    "BF16": (),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}

# Zeros, the ends of the subnormals and of the normals, one, infinities, and quiet and signalling
# NaNs, of both signs.
POSITIVE = [0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF]
SPECIAL_HALVES = np.array(POSITIVE + [h | 0x8000 for h in POSITIVE], np.uint16)


def random_blocks(name: str, count: int, seed: int) -> NDArray[np.uint8]:
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    return np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)


def expected(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks.reshape(-1), GGMLQuantizationType[name])


def assert_same_bits(name: str, blocks: NDArray[np.uint8]) -> None:
    """NaN for NaN, and everything else equal in every bit, the sign of zero too.

    Which NaN an operation on two of them gives is up to compiler and processor.
    """
    want = expected(name, blocks)
    got = dequantize(name, blocks.tobytes(), want.size)
    assert got.dtype == np.float32 and got.shape == want.shape
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", HALVES)
def test_random_blocks(name: str) -> None:
    assert_same_bits(name, random_blocks(name, count=1000, seed=1))


@pytest.mark.parametrize("name", HALVES)
def test_plausible_scales(name: str) -> None:
    """Scales as weights have them, where roundings, not infinities, decide the last bit."""
    blocks = random_blocks(name, count=1000, seed=2)
    scales = np.random.default_rng(3).normal(0, 0.01, (2, len(blocks))).astype(np.float16)
    for field, values in zip(HALVES[name], scales, strict=False):
        blocks[:, field : field + 2] = values.view(np.uint8).reshape(-1, 2)
    assert_same_bits(name, blocks)


@pytest.mark.parametrize("name", [name for name, fields in HALVES.items() if fields])
def test_special_scales(name: str) -> None:
    """Every pair of special values in the scale and the minimum."""
    first, second = (a.ravel() for a in np.meshgrid(SPECIAL_HALVES, SPECIAL_HALVES))
    blocks = random_blocks(name, count=first.size, seed=4)
    for field, values in zip(HALVES[name], (first, second), strict=False):
        blocks[:, field : field + 2] = values.copy().view(np.uint8).reshape(-1, 2)
    assert_same_bits(name, blocks)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half(name: str) -> None:
    assert_same_bits(name, np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2))


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_one_byte_repeated(name: str, byte: int) -> None:
    assert_same_bits(name, np.full_like(random_blocks(name, count=3, seed=0), byte))


@pytest.mark.parametrize("name", HALVES)
def test_unaligned_input(name: str) -> None:
    blocks = random_blocks(name, count=5, seed=5)
    want = expected(name, blocks)
    shifted = memoryview(b"\0" + blocks.tobytes())[1:]
    np.testing.assert_array_equal(dequantize(name, shifted, want.size), want)


@pytest.mark.parametrize("name", HALVES)
def test_no_elements(name: str) -> None:
    assert dequantize(name, b"", 0).size == 0
