"""The cost of choosing tokens: `pytest bench/test_draw.py --benchmark-only`.

Eight texts whose models have 152064 tokens, as Qwen's have, with logits spread as a model's are.
"""

from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mmrt.core.draw import draw
from mmrt.core.kernels import Pool
from mmrt.core.sampling import Sampling

ROWS, VOCABULARY = 8, 152064
CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "usual": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "top-p alone": {"temperature": 0.8, "top_p": 0.95},
    "min-p alone": {"temperature": 0.8, "min_p": 0.05},
    "penalties": {"temperature": 0.8, "top_k": 40, "repeat_penalty": 1.1, "presence_penalty": 0.1},
}


@pytest.mark.parametrize("alternatives", [None, 5], ids=["", "log-probabilities"])
@pytest.mark.parametrize("name", CHOICES)
def test_draw(benchmark: BenchmarkFixture, name: str, alternatives: int | None) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 6, (ROWS, VOCABULARY)).astype(np.float32)
    recent = [random.integers(0, VOCABULARY, 64).astype(np.int32) for _ in range(ROWS)]
    samplings = [Sampling(**CHOICES[name])] * ROWS
    uniforms, pool = random.random(ROWS).tolist(), Pool()
    benchmark(draw, logits, samplings, recent, uniforms, None, alternatives, pool)
