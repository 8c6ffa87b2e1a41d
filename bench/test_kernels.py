"""Every kernel that multiplies, against the roofs of the machine: `pytest bench --benchmark-only`.

Decode multiplies one column or a few with more weights than the caches hold, and is bound by
reading them: its `of_roof` is the bytes of weights a second over bytes that the same threads read
in order. Prefill multiplies many columns, and is bound by the arithmetic units: there it is
multiply-adds over those that the instruction set makes in registers. Each roof is measured right
before its kernel.
"""

import statistics
from typing import Any, cast

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mmrt
from bench.blocks import FLOATS, random_blocks
from bench.conftest import BYTES
from mmrt.core.kernels import Pool, matmul, roof
from mmrt.core.quant import TYPES

COLS, COLUMNS, ROUNDS = 4096, 512, 5
CHOSEN = mmrt.cpu_info().isa
FAST = [v.type for v in mmrt.kernels.variants() if v.isa == CHOSEN and v.source != "ref"]


def weights(type: str, n_bytes: int) -> tuple[Any, tuple[int, int]]:
    """Whole rows of COLS random weights, n_bytes or a little less."""
    kind = TYPES[type]
    row = COLS // kind.elements * kind.bytes
    rows = n_bytes // row
    few = random_blocks(np.random.default_rng(0), type, 64 * COLS // kind.elements, 0.02)
    return np.resize(few.reshape(64, row), (rows, row)), (rows, COLS)


@pytest.mark.parametrize("columns", [1, 2, 4, 7])
@pytest.mark.parametrize("type", FAST)
def test_decode(benchmark: BenchmarkFixture, pages: Any, type: str, columns: int) -> None:
    blocks, shape = weights(type, BYTES)
    x, pool = np.sin(np.arange(COLS * columns, dtype=np.float32)).reshape(COLS, columns), Pool()
    limits = [roof("read", pages, pool) for _ in range(3)]
    cast(Any, benchmark).pedantic(
        matmul, (type, blocks, shape, x, pool), rounds=ROUNDS, warmup_rounds=1
    )
    note(benchmark, blocks.nbytes / median(benchmark), "GB/s", statistics.median(limits))


@pytest.mark.parametrize("type", FAST)
def test_prefill(benchmark: BenchmarkFixture, type: str) -> None:
    blocks, shape = weights(type, 1024 * COLS * TYPES[type].bytes // TYPES[type].elements)
    x, pool = np.ones((COLS, COLUMNS), np.float32), Pool()
    limit = roof("float32" if type in FLOATS else "int8", None, pool)
    cast(Any, benchmark).pedantic(
        matmul, (type, blocks, shape, x, pool), rounds=ROUNDS, warmup_rounds=1
    )
    products = shape[0] * shape[1] * COLUMNS
    note(benchmark, products / median(benchmark), "billion multiply-adds/s", limit)


def median(benchmark: BenchmarkFixture) -> float:
    assert benchmark.stats
    return float(benchmark.stats.stats.median)


def note(benchmark: BenchmarkFixture, rate: float, unit: str, limit: float) -> None:
    benchmark.extra_info |= {"rate": rate / 1e9, "unit": unit, "of_roof": rate / limit}
    print(f"{rate / 1e9:.1f} {unit}, {rate / limit:.2f} of the roof")
