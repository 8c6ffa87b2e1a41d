"""Rows of tensors: tensors on the same pages."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
from hostile import make_gguf as make
from test_tensor import placed

from mmrt import formats
from mmrt.errors import ArgumentError, NotFoundError
from mmrt.files.formats import TensorFile


@pytest.fixture
def file(tmp_path: Path) -> TensorFile:
    """floats F32 (3, 2, 4), blocks Q4_K (3, 256), halves F16 (5,), brains BF16 (2, 3)."""
    path = tmp_path / "valid.gguf"
    path.write_bytes(make.VALID)
    return formats.open(path)


def test_rows_are_tensors_on_the_same_pages(file: TensorFile) -> None:
    for name in ("blocks", "brains", "floats", "halves"):
        tensor = file[name]
        values = tensor.dequantize()
        assert len(tensor) == len(values) and tensor.ndim == values.ndim
        assert tensor.size == values.size
    blocks = file["blocks"]
    values = blocks.dequantize()
    for rows in (1, -1, np.int64(2), slice(1, 3), slice(None), slice(-2, None), slice(2, 1)):
        part = blocks[rows]
        assert part.shape == values[rows].shape and part.type == "Q4_K"
        assert np.array_equal(part.dequantize(), values[rows])
        assert np.array_equal(part.blocks(), blocks.blocks()[rows])
    assert blocks[1:3].name == "blocks[1:3]" and blocks[-1].name == "blocks[2]"
    x = np.linspace(-1, 1, 256, dtype=np.float32)
    assert np.array_equal(blocks[1:3] @ x, (blocks @ x)[1:3])
    assert [row.name for row in iter(cast(Any, blocks))] == ["blocks[0]", "blocks[1]", "blocks[2]"]
    assert np.array_equal(np.asarray(file["floats"][1][0]), np.asarray(file["floats"])[1, 0])
    assert np.asarray(file["halves"][3]).shape == ()
    assert np.shares_memory(np.asarray(file["floats"][1:]), np.asarray(file["floats"]))


def test_matrices_of_a_stack_are_tensors_on_the_same_pages(tmp_path: Path) -> None:
    blocks = tiny_models.random_blocks(np.random.default_rng(0), "Q4_K", 12, 512, 1.0)
    stack = placed(tmp_path, "Q4_K", (4, 3, 512), blocks.data.tobytes(), 0)
    values, x = stack.dequantize(), np.linspace(-1, 1, 512, dtype=np.float32)
    for number in (0, 3, -1, -4, np.int32(2)):
        matrix = stack[number]
        first = number % 4
        assert (matrix.shape, matrix.type) == ((3, 512), "Q4_K")
        assert matrix.offset == stack.offset + first * matrix.nbytes
        assert matrix.mapping is stack.mapping and matrix.name == f"t[{first}]"
        assert np.shares_memory(matrix.blocks(), stack.blocks())
        assert np.array_equal(matrix.dequantize(), values[number])
        assert np.array_equal(matrix[-1].dequantize(), values[number, -1])
        np.testing.assert_allclose(matrix @ x, values[number] @ x, rtol=0.05, atol=0.5)
    assert stack[1:3].shape == (2, 3, 512) and np.array_equal(stack[1:3].dequantize(), values[1:3])
    for number in (4, -5, 1 << 70):
        with pytest.raises(NotFoundError, match=f"'t' has 4 rows, and none of number {number}"):
            stack[number]


def test_rows_of_one_dimension_are_whole_blocks(tmp_path: Path) -> None:
    blocks = tiny_models.random_blocks(np.random.default_rng(0), "Q8_0", 1, 128, 1.0)
    tensor = placed(tmp_path, "Q8_0", (128,), blocks.data.tobytes(), 0)
    assert np.array_equal(tensor[32:96].dequantize(), tensor.dequantize()[32:96])
    for rows in (5, slice(0, 33), slice(1, 32)):
        with pytest.raises(ArgumentError, match="not whole blocks of 32"):
            tensor[rows]


@pytest.mark.parametrize("rows", [3, -4, 1 << 70])
def test_rows_that_are_not_there(file: TensorFile, rows: int) -> None:
    with pytest.raises(NotFoundError, match=f"'blocks' has 3 rows, and none of number {rows}"):
        file["blocks"][rows]
    with pytest.raises(IndexError):
        file["blocks"][rows]


@pytest.mark.parametrize(
    "rows", [slice(None, None, 2), slice(3, 0, -1), True, "a", 1.0, (1, 2), None]
)
def test_rows_that_make_no_sense(file: TensorFile, rows: Any) -> None:
    with pytest.raises(ArgumentError, match="tensor 'blocks': rows"):
        file["blocks"][rows]
    with pytest.raises(ArgumentError, match="without a length"):
        file["halves"][0][rows]


def test_dtypes(file: TensorFile) -> None:
    found = {name: file[name].dtype for name in ("floats", "halves", "blocks", "brains")}
    assert found == {"floats": np.float32, "halves": np.float16, "blocks": None, "brains": None}


def test_a_tensor_is_true_whatever_its_length(tmp_path: Path) -> None:
    for shape in ((0, 32), (3, 0), ()):
        assert placed(tmp_path, "F32", shape, bytes(4), 0)
