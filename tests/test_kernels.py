"""Products with quantised matrices, of every type by every instruction set, against the dequantised
matrix in float64; and the pool and the processor that they run on."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from command import HOME
from instruction_sets import ISAS
from numpy.typing import NDArray
from own_types import OWN
from tiny_models import FLOATS, Blocks
from tiny_models import TYPES as KNOWN

import mmrt
from mmrt.core.kernels import Pool, cpu_info, matmul, variants
from mmrt.errors import ArgumentError, UnsupportedError

Floats = NDArray[np.floating[Any]]

# Sums in float32 are off by less than this share of the sum of |w x|: 1.7e-7 was seen.
ROUNDING = 1e-6

# What rounding an activation to bfloat16 takes of it at most.
BF16_ROUNDING = 2.0**-8

TYPES = (*KNOWN, *OWN)
ROWS = (1, 2, 15, 16, 17, 33)
COLUMNS = (1, 2, 3, 4, 5, 7, 8, 9, 33)
FEW = 4  # columns that are multiplied without panels
MORE_FEW = 7  # of types that are multiplied eight groups of 32 at a time
BY_OCTETS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K"]
BY_OCTETS += ["IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0"]


def widths(type: str) -> list[int]:
    """Odd numbers of elements in a row: parts of vectors for floats, else of blocks of 256."""
    elements = tiny_models.elements_of(type)
    return [1, 5, 31, 77, 256] if elements == 1 else [elements * n for n in (1, 3, 8, 9)]


def matrix(type: str, rows: int, cols: int, seed: int = 0) -> tuple[Blocks, Floats]:
    """Blocks, and their values in float64."""
    blocks = tiny_models.random_blocks(np.random.default_rng(seed), type, rows, cols, spread=1.0)
    return blocks, tiny_models.dequantize(blocks).astype(np.float64)


def activations(cols: int, n: int, seed: int = 1) -> NDArray[np.float32]:
    """Of sizes that vary from one group to the next."""
    random = np.random.default_rng(seed)
    sizes = 2.0 ** random.integers(-8, 8, (cols // 32 + 1, n)).repeat(32, axis=0)[:cols]
    return (random.normal(0, 1, (cols, n)) * sizes).astype(np.float32)


def on_the_grid(cols: int, n: int) -> NDArray[np.float32]:
    """Activations that int8 holds exactly: a power of 2 times -127 to 127, in groups of 32."""
    random = np.random.default_rng(2)
    steps = random.integers(-127, 128, (cols // 32, 32, n))
    steps[:, 5] = 127
    return (steps * 2.0 ** random.integers(-8, 8, (cols // 32, 1, n))).reshape(cols, n).astype("f4")


def lost_to_int8(x: Floats, w: Floats) -> Floats:
    """Half a step of 1/127 of the largest of 32 activations, times the sum of |w|."""
    groups = x.astype(np.float64).reshape(-1, 32, x.shape[1])
    half_steps = np.abs(groups).max(axis=1) / 254
    sums: Floats = np.abs(w).reshape(len(w), -1, 32).sum(axis=2)
    return np.asarray(sums @ half_steps)


def rounds_to_bf16(type: str, n: int) -> bool:
    return type == "BF16" and n > FEW and cpu_info().isa == "avx512bf16"


def assert_product(type: str, rows: int, cols: int, x: NDArray[np.float32], exact: bool) -> None:
    blocks, w = matrix(type, rows, cols)
    found = matmul(type, blocks.data, (rows, cols), x)
    assert found.shape == (rows, x.shape[1]) and found.dtype == np.float32
    rounding = ROUNDING + (BF16_ROUNDING if rounds_to_bf16(type, x.shape[1]) else 0)
    allowed = rounding * (np.abs(w) @ np.abs(x))
    if not exact:
        allowed += 1.001 * lost_to_int8(x, w)
    assert np.all(np.abs(found - w @ x.astype(np.float64)) <= allowed)


@pytest.mark.parametrize("type", TYPES)
def test_every_shape(type: str, isa: str) -> None:
    for rows in ROWS:
        for cols in widths(type):
            assert_product(type, rows, cols, activations(cols, 1 + rows % 4), type in FLOATS)


@pytest.mark.parametrize("type", TYPES)
def test_every_number_of_columns(type: str, isa: str) -> None:
    for n in COLUMNS:
        assert_product(type, 19, 768, activations(768, n), type in FLOATS)


@pytest.mark.parametrize("type", [type for type in TYPES if type not in FLOATS])
def test_nothing_is_lost_but_by_rounding_activations(type: str, isa: str) -> None:
    for n in (1, 2, 8):
        assert_product(type, 35, 2304, on_the_grid(2304, n), exact=True)


@pytest.mark.parametrize("type", TYPES)
def test_a_vector_gives_a_vector(type: str, isa: str) -> None:
    blocks, _ = matrix(type, 20, 512)
    x = activations(512, 1)
    column = matmul(type, blocks.data, (20, 512), x)
    vector = matmul(type, blocks.data, (20, 512), x[:, 0])
    assert vector.shape == (20,) and np.array_equal(vector, column[:, 0])


@pytest.mark.parametrize("type", TYPES)
def test_blocks_at_any_address(type: str, isa: str) -> None:
    blocks, _ = matrix(type, 18, 256)
    x = activations(256, 3)
    expected = matmul(type, blocks.data, (18, 256), x)
    data = blocks.data.tobytes()
    for shift in (1, 2, 7, 33):
        moved = memoryview(bytes(shift) + data + b"after")[shift : shift + len(data)]
        assert np.array_equal(matmul(type, moved, (18, 256), x), expected)


@pytest.mark.parametrize("type", TYPES)
def test_neither_threads_nor_neighbours_matter(type: str, isa: str) -> None:
    """Many rows, so that threads share them out: each row's sum is one thread's."""
    rows, blocks = 700, matrix(type, 700, 256)[0].data
    for n, part in ((FEW, slice(1, 3)), (MORE_FEW + 5, slice(1, 1 + MORE_FEW + 1))):
        x = activations(256, n)
        whole = matmul(type, blocks, (rows, 256), x, Pool(1))
        for threads in (2, 3):
            assert np.array_equal(matmul(type, blocks, (rows, 256), x, Pool(threads)), whole)
        few = matmul(type, blocks[100:103], (3, 256), x)
        assert np.array_equal(few, whole[100:103])
        assert np.array_equal(matmul(type, blocks, (rows, 256), x[:, part]), whole[:, part])


@pytest.mark.parametrize("type", [type for type in TYPES if type not in FLOATS])
def test_a_few_columns_give_what_each_gives_alone(type: str, isa: str) -> None:
    few = MORE_FEW if type in BY_OCTETS else FEW
    for cols in (tiny_models.elements_of(type), 768, 2304 + tiny_models.elements_of(type)):
        blocks, x = matrix(type, 21, cols)[0].data, activations(cols, few)
        whole = matmul(type, blocks, (21, cols), x)
        for i in range(few):
            assert np.array_equal(matmul(type, blocks, (21, cols), x[:, i]), whole[:, i])


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(type: str, value: float, isa: str) -> None:
    """In the columns that have it, and in no other."""
    blocks, _ = matrix(type, 21, 512)
    for n in (1, 4):
        x = activations(512, n)
        clean = matmul(type, blocks.data, (21, 512), x)
        x[300, 0] = value
        found = matmul(type, blocks.data, (21, 512), x)
        assert not np.isfinite(found[:, 0]).any()
        assert np.array_equal(found[:, 1:], clean[:, 1:])


@pytest.mark.parametrize("type", TYPES)
def test_zeros_and_tiny_numbers_vanish(type: str, isa: str) -> None:
    blocks, _ = matrix(type, 9, 256)
    for x in (np.zeros(256, np.float32), np.full(256, 1e-42, np.float32)):
        assert np.all(np.abs(matmul(type, blocks.data, (9, 256), x)) <= 1e-36)


# ---- arguments ----


def test_arrays_of_every_kind_are_taken() -> None:
    blocks, _ = matrix("Q8_0", 6, 64)
    x = activations(64, 4)
    expected = matmul("Q8_0", blocks.data, (6, 64), x)
    kinds: list[Any] = [x.astype(np.float64), np.asfortranarray(x), x.tolist(), x[::-1][::-1]]
    for same in kinds:
        assert np.array_equal(matmul("Q8_0", blocks.data, (6, 64), same), expected)
    for buffer in (blocks.data.tobytes(), bytearray(blocks.data), blocks.data.data):
        assert np.array_equal(matmul("Q8_0", buffer, (6, 64), x), expected)
    assert matmul("Q8_0", b"", (0, 64), x).shape == (0, 4)
    assert matmul("Q8_0", blocks.data, (6, 64), x[:, :0]).shape == (6, 0)
    assert not matmul("F32", b"", (3, 0), np.empty((0, 2), np.float32)).any()


@pytest.mark.parametrize(
    ("type", "shape", "x_shape", "kind", "words"),
    [
        ("Q9_0", (6, 64), (64,), ArgumentError, "no tensor type 'Q9_0'"),
        ("Q8_0", (6, 63), (63,), ArgumentError, "not the shape of a matrix of Q8_0"),
        ("Q8_0", (6,), (64,), ArgumentError, "not the shape of a matrix"),
        ("Q8_0", (2, 3, 64), (64,), ArgumentError, "not the shape of a matrix"),
        ("Q8_0", (-6, -64), (64,), ArgumentError, "not the shape of a matrix"),
        ("Q8_0", (5, 64), (64,), ArgumentError, "408 bytes are not"),
        ("Q8_0", (2**60, 2**60), (64,), ArgumentError, "408 bytes are not"),
        ("Q8_0", (6, 64), (63,), ArgumentError, "cannot multiply"),
        ("Q8_0", (6, 64), (), ArgumentError, "cannot multiply"),
        ("Q8_0", (6, 64), (64, 1, 1), ArgumentError, "cannot multiply"),
        ("I32", (6, 17), (17,), UnsupportedError, "I32"),
    ],
)
def test_wrong_arguments(
    type: str,
    shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    kind: type[Exception],
    words: str,
) -> None:
    call: Callable[..., Any] = matmul
    with pytest.raises(kind, match=words):
        call(type, bytes(408), shape, np.ones(x_shape))


def test_blocks_must_lie_in_one_piece() -> None:
    blocks, _ = matrix("F32", 8, 8)
    with pytest.raises(TypeError, match="contiguous"):
        matmul("F32", blocks.data[::2], (4, 8), np.ones(8))


@pytest.mark.parametrize("threads", [0, -1, 257, 2**40, -(2**70), True, 1.5, "2"])
def test_numbers_of_threads_that_cannot_be(threads: Any) -> None:
    with pytest.raises(ArgumentError, match="threads"):
        Pool(threads)


# ---- pools ----


def test_threads_may_share_a_pool() -> None:
    blocks, _ = matrix("Q4_0", 200, 256)
    x, pool = activations(256, 2), Pool(2)
    expected = matmul("Q4_0", blocks.data, (200, 256), x)
    wrong: list[int] = []

    def work() -> None:
        for i in range(200):
            if not np.array_equal(matmul("Q4_0", blocks.data, (200, 256), x, pool), expected):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_as_many_threads_as_the_process_may_use() -> None:
    only = min(os.sched_getaffinity(0))
    script = f"""
import os
os.sched_setaffinity(0, [{only}])
import mmrt.core.kernels
print(mmrt.kernels.Pool().threads, mmrt.cpu_info().cpus)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["1", "1"], "")


# ---- what runs where ----


def test_variants_name_a_kernel_for_every_type_and_set() -> None:
    found = variants()
    assert {(v.type, v.isa) for v in found} == {(type, isa) for type in TYPES for isa in ISAS}
    assert len(found) == len(TYPES) * len(ISAS)
    for variant in found:
        assert ISAS.index(variant.source) <= ISAS.index(variant.isa)


def test_cpu_info(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = cpu_info()
    assert (info.isa, info.forced) == (isa, True)
    assert info.isas["ref"] == "available" and info.cpus >= 1
    assert {name for name, state in info.isas.items() if state == "available"} == set(ISAS)
    assert f"{isa} (forced by MMRT_ISA)" in str(info)
    monkeypatch.delenv("MMRT_ISA")
    assert (cpu_info().isa, cpu_info().forced) == (ISAS[-1], False)
    assert mmrt.cpu_info is cpu_info


def test_a_set_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [name for name, state in cpu_info().isas.items() if state != "available"]
    assert missing  # those of other machines, at least
    for name in missing:
        monkeypatch.setenv("MMRT_ISA", name)
        with pytest.raises(UnsupportedError, match=name):
            cpu_info()


def test_tensors_multiply_as_their_blocks_do(tmp_path: Path, isa: str) -> None:
    x = activations(64, 2)
    with mmrt.open(tiny_models.llama(type="Q5_0").write(tmp_path / "model.gguf")) as file:
        tensor = file["blk.0.attn_q.weight"]
        expected = matmul(tensor.type, tensor.blocks(), (tensor.shape[0], tensor.shape[1]), x)
        assert np.array_equal(tensor @ x, expected)
        with pytest.raises(ArgumentError, match=r"tensor 'blk\.0\.attn_q\.weight': .* cannot mult"):
            tensor @ x[:-1]
        with pytest.raises(ArgumentError, match=r"tensor 'output_norm\.weight': \(64,\) is not"):
            file["output_norm.weight"] @ x
        del expected
        assert file.mappings[0].views == 0
