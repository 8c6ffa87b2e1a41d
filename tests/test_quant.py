"""The scalar unpacks against the `gguf` package: equal to the last bit, on any bytes."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from own_types import OWN

from bench.blocks import HALVES, set_halves
from mmrt.core.quant import TYPES, dequantize

NAMES = [kind.name for kind in TYPES.values() if kind.has_unpack]
SCALED = [*HALVES, "IQ1_M"]  # types with scales in binary16

# Zeros, the ends of the subnormals and of the normals, one, infinities, and quiet and signalling
# NaNs, of both signs.
POSITIVE = [0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF]
SPECIAL_HALVES = np.array(POSITIVE + [h | 0x8000 for h in POSITIVE], np.uint16)


def random_blocks(name: str, count: int, seed: int) -> NDArray[np.uint8]:
    size = TYPES[name].bytes
    return np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)


def expected(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        if name in OWN:
            return OWN[name](blocks)
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


@pytest.mark.parametrize("name", NAMES)
def test_random_blocks(name: str) -> None:
    assert_same_bits(name, random_blocks(name, count=1000, seed=1))


@pytest.mark.parametrize("name", SCALED)
def test_plausible_scales(name: str) -> None:
    """Scales as weights have them, where roundings, not infinities, decide the last bit."""
    blocks = random_blocks(name, count=1000, seed=2)
    scales = np.random.default_rng(3).normal(0, 0.01, (2, len(blocks))).astype(np.float16)
    set_halves(name, blocks, *scales.view(np.uint16))
    assert_same_bits(name, blocks)


@pytest.mark.parametrize("name", SCALED)
def test_special_scales(name: str) -> None:
    """Every pair of special values in the scale and the minimum."""
    first, second = (a.ravel() for a in np.meshgrid(SPECIAL_HALVES, SPECIAL_HALVES))
    blocks = random_blocks(name, count=first.size, seed=4)
    set_halves(name, blocks, first, second)
    assert_same_bits(name, blocks)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half(name: str) -> None:
    assert_same_bits(name, np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2))


@pytest.mark.parametrize(("name", "field"), [("MXFP4", 0), *(("NVFP4", i) for i in range(4))])
def test_every_scale_of_a_byte(name: str, field: int) -> None:
    blocks = random_blocks(name, count=256, seed=6)
    blocks[:, field] = np.arange(256)
    assert_same_bits(name, blocks)


def test_every_type_of_the_oracle_is_there() -> None:
    assert {kind.name for kind in gguf.quants._type_traits} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_one_byte_repeated(name: str, byte: int) -> None:
    assert_same_bits(name, np.full_like(random_blocks(name, count=3, seed=0), byte))


@pytest.mark.parametrize("name", NAMES)
def test_unaligned_input(name: str) -> None:
    blocks = random_blocks(name, count=5, seed=5)
    want = expected(name, blocks)
    shifted = memoryview(b"\0" + blocks.tobytes())[1:]
    np.testing.assert_array_equal(dequantize(name, shifted, want.size), want)


@pytest.mark.parametrize("name", NAMES)
def test_no_elements(name: str) -> None:
    assert dequantize(name, b"", 0).size == 0
