"""Products of tensors and arrays, from both sides: of every type, and of numbers of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from test_tensor import PLAIN, placed

from mmrt.core.elements import ELEMENTS
from mmrt.core.quant import TYPES
from mmrt.errors import ArgumentError, UnsupportedError


@pytest.mark.parametrize("type", ["Q4_0", "Q8_0", "BF16", "F8_E5M2", "F32", "F16"])
def test_an_array_times_a_tensor(tmp_path: Path, type: str) -> None:
    random = np.random.default_rng(0)
    if type in tiny_models.ROUNDED:
        data = tiny_models.random_blocks(random, type, 70, 64, 1.0).data.tobytes()
    else:
        data = random.integers(0, 0x70, 70 * 64, np.uint8).tobytes()
    tensor = placed(tmp_path, type, (70, 64), data, 0)
    w = tensor.dequantize().astype(np.float64)
    for shape in ((70,), (1, 70), (5, 70)):
        x = random.standard_normal(shape).astype(np.float32)
        bound = 1e-5 * (abs(x) @ abs(w))
        for product in (x @ tensor, np.matmul(x, tensor), x.astype(np.float64) @ tensor):
            assert product.shape == (*shape[:-1], 64) and (abs(product - x @ w) <= bound).all()
        assert np.array_equal(x.tolist() @ tensor, x @ tensor) or type in ("F32", "F16")
    for shape in ((64,), (64, 1), (64, 5)):
        x = random.standard_normal(shape).astype(np.float32)
        bound = (1e-5 if type[0] == "F" else 1e-2) * (abs(w) @ abs(x))
        for product in (tensor @ x, np.matmul(tensor, x), tensor @ x.tolist()):
            assert product.shape == (70, *shape[1:]) and (abs(product - w @ x) <= bound).all()
    for wrong in (lambda: np.ones(64) @ tensor, lambda: np.matmul(tensor, np.ones(70))):
        with pytest.raises(ArgumentError, match="tensor 't': "):
            wrong()


@pytest.mark.parametrize("type", ["Q8_0", "BF16", "F8_E4M3", "F32"])
def test_a_product_goes_where_it_is_asked_to(tmp_path: Path, type: str) -> None:
    data = bytes(range(1, 100)) * (32 * 32 * 4 // 99 + 1)
    tensor = placed(tmp_path, type, (32, 32), data, 0)
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(32, 3)
    for dtype in (np.float32, np.float64):
        out = np.zeros((32, 3), dtype)
        assert np.matmul(tensor, x, out=out) is out
        assert np.array_equal(out, np.asarray(np.matmul(tensor, x), dtype), equal_nan=True)
        out = np.zeros((3, 32), dtype)
        assert np.matmul(x.T, tensor, out=out) is out
        assert np.array_equal(out, np.asarray(np.matmul(x.T, tensor), dtype), equal_nan=True)
    for wrong in (np.zeros((32, 3), int), np.zeros((3, 32)), np.zeros((2, 32, 3, 1)), np.zeros(32)):
        with pytest.raises(ArgumentError, match="tensor 't': "):
            np.matmul(tensor, x, out=wrong)


@pytest.mark.parametrize("type", sorted(set(PLAIN) - {"F32", "F16", "BOOL"}))
def test_what_no_kernel_multiplies_is_multiplied_by_numpy(tmp_path: Path, type: str) -> None:
    w: Any = np.arange(12).reshape(3, 4).astype(PLAIN[type])
    tensor = placed(tmp_path, type, (3, 4), w.tobytes(), 0)
    for x in ([1, 2, 3, 4], np.arange(8).reshape(4, 2), np.array([0.5, 1, 2, 4])):
        for found in (tensor @ x, np.matmul(tensor, x)):
            assert np.array_equal(found, w @ np.asarray(x)) and found.dtype == (w @ x).dtype
    for x in ([1, 2, 3], np.arange(6).reshape(2, 3), np.array([0.5, 1, 2])):
        for found in (x @ tensor, np.matmul(x, tensor)):
            assert np.array_equal(found, np.asarray(x) @ w) and found.dtype == (x @ w).dtype
    text: Any = "text"
    for wrong in (lambda: tensor @ [1, 2], lambda: [1, 2] @ tensor, lambda: tensor @ text):
        with pytest.raises(ArgumentError, match="tensor 't': "):
            wrong()


def test_long_matrices_multiply_from_the_left_in_pieces(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((3 << 12, 600)).astype(np.float16)
    data = (w.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    tensor = placed(tmp_path, "BF16", w.shape, data, 0)
    x = np.random.default_rng(1).standard_normal((w.shape[0],)).astype(np.float32)
    expected = x @ np.asarray(tensor.dequantize(), np.float64)
    assert (abs(x @ tensor - expected) <= 1e-4 * (abs(x) @ abs(tensor.dequantize()))).all()


def test_tensors_multiply_tensors(tmp_path: Path) -> None:
    blocks = tiny_models.random_blocks(np.random.default_rng(0), "Q8_0", 32, 32, 1.0)
    tensor = placed(tmp_path, "Q8_0", (32, 32), blocks.data.tobytes(), 0)
    assert np.array_equal(tensor @ tensor, tensor @ tensor.dequantize())


@pytest.mark.parametrize(
    "type", [t for t in TYPES if not TYPES[t].has_unpack and t not in ELEMENTS]
)
def test_what_does_not_multiply_says_so(tmp_path: Path, type: str) -> None:
    width = TYPES[type].elements
    tensor = placed(tmp_path, type, (1, width), bytes(TYPES[type].bytes), 0)
    with pytest.raises(UnsupportedError, match=f"tensor 't': no kernel multiplies {type}"):
        tensor @ np.ones(width)
    with pytest.raises(UnsupportedError, match=type):
        np.ones(1) @ tensor


@pytest.mark.parametrize("type", ["Q4_0", "BF16", "F8_E4M3", "F32"])
@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-37, 1e30, 3e37])
@pytest.mark.filterwarnings("error")
def test_huge_and_tiny_factors(tmp_path: Path, type: str, size: float) -> None:
    """Products that float32 holds are right, whatever comes on the way to them."""
    data = bytes(range(50)) * (64 * 64 // 50 + 1)
    if type in tiny_models.ROUNDED:
        random = np.random.default_rng(0)
        data = tiny_models.random_blocks(random, type, 64, 64, 0.1).data.tobytes()
    tensor = placed(tmp_path, type, (64, 64), data, 0)
    w = tensor.dequantize().astype(np.float64)
    x = np.zeros((64, 3), np.float32)
    x[::7, :2] = size
    x[::7, 1] *= -1
    x[5, 2] = 1  # beside huge ones
    y = x.T.astype(np.float64)
    for found, expected, terms in (
        (tensor @ x, w @ x, abs(w) @ abs(x)),
        (x.T @ tensor, y @ w, abs(y) @ abs(w)),
    ):
        assert np.isfinite(found).all()
        assert (abs(found - expected) <= 1e-2 * terms + 1e-44).all()
