"""Mixtures of experts: routing and the experts' sums, beside the oracle's plain loops."""

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import tiny_models
from measures import FLIPS
from numpy.typing import NDArray
from tiny_models import floats

import mmrt
from mmrt.core.kernels import Pool
from mmrt.core.program import Program
from mmrt.core.state import KeyValues, StateStore
from mmrt.errors import ArgumentError, FormatError, UnsupportedError

IDS = np.random.default_rng(4).integers(0, 300, 70).tolist()

CASES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "one of many": {"count": 31, "used": 1},
    "all": {"count": 3, "used": 3},
    "sigmoid, scaled": {"expert_gating_func": 2, "expert_weights_scale": 2.5},
    "softmax of the chosen, biases": {"expert_gating_func": 3, "biases": True, "used": 4},
    "square root of softplus": {"expert_gating_func": 4},
    "not normalised": {"expert_weights_norm": False},
    "a dense layer first": {"dense": 1},
    "groups": {"count": 12, "used": 3, "expert_group_count": 4, "expert_group_used_count": 2},
}


def steps(model: mmrt.Model, sizes: list[int]) -> NDArray[np.float32]:
    rows, start = [], 0
    with model.sequence() as sequence:
        for size in sizes:
            rows.append(sequence.extend(IDS[start : start + size], outputs="all"))
            start += size
    return np.concatenate(rows)


def assert_near(found: NDArray[np.float32], expected: NDArray[np.float32], bound: float) -> None:
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_beside_the_oracle(case: str, tmp_path: Path, isa: str) -> None:
    tiny = tiny_models.with_experts(tiny_models.llama(n_layers=3), **CASES[case])
    path = tiny.write(tmp_path / "tiny.gguf")
    expected = oracle.logits(path, IDS, rounding=True)
    with mmrt.Model(path, threads=2) as model:
        assert_near(model.logits(IDS), expected, 2e-3 if "bf16" in isa else 1e-4)
        assert_near(steps(model, [1] * 20 + [3, 7, 8, 32]), expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_K", "MXFP4"])
def test_quantised_experts(type: str, tmp_path: Path) -> None:
    shape = {"n_embd": 256, "n_ff": 256, "head_dim": 64}
    experts = {"type": type, "width": 256, "count": 16, "used": 4}
    tiny = tiny_models.qwen3moe(type="Q8_0", experts=experts, **shape)
    path = tiny.write(tmp_path / "tiny.gguf")
    expected = oracle.logits(path, IDS, rounding=True)
    with mmrt.Model(path) as model:
        FLIPS.assert_holds(expected, model.logits(IDS))
        FLIPS.assert_holds(expected, steps(model, [1] * 70))


def test_a_bias_chooses_and_does_not_weigh(tmp_path: Path) -> None:
    tiny = tiny_models.with_experts(tiny_models.llama(), expert_gating_func=2)
    for i in range(2):
        bias = floats(np.random.default_rng(i), 8, spread=1.0)
        tiny.tensors[f"blk.{i}.exp_probs_b.bias"] = bias
        scales = floats(np.random.default_rng(i + 9), 8, mean=1.0)
        tiny.tensors[f"blk.{i}.ffn_down_exps.scale"] = scales
    path = tiny.write(tmp_path / "tiny.gguf")
    with mmrt.Model(path) as model:
        assert_near(model.logits(IDS), oracle.logits(path, IDS, rounding=True), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("type", ["F32", "Q8_0"])
def test_exact_steps_of_any_length(type: str, tmp_path: Path, isa: str) -> None:
    tiny = tiny_models.qwen3moe(type=type, experts={"type": type})
    path = tiny.write(tmp_path / "tiny.gguf")
    with mmrt.Model(path, exact=True, threads=2) as model:
        single = steps(model, [1] * 70)
        for sizes in ([70], [2] * 35, [7] * 10, [40, 30]):
            assert np.array_equal(steps(model, sizes), single), sizes
    with mmrt.Model(path, exact=True, threads=1) as model:
        assert np.array_equal(steps(model, [70]), single)


def test_texts_together(tmp_path: Path) -> None:
    path = tiny_models.qwen3moe().write(tmp_path / "tiny.gguf")
    with mmrt.Model(path, exact=True) as model:
        prompts = ["One", "Two and a half", "Three", "x" * 40]
        expected = [model.generate(prompt, max_tokens=6) for prompt in prompts]
        assert model.generate_all(prompts, max_tokens=6) == expected


def test_weights_of_files_that_do_not_fit(tmp_path: Path) -> None:
    def refused(error: type[Exception], words: str, **change: Any) -> None:
        tiny = tiny_models.with_experts(tiny_models.llama())
        tiny.metadata |= {f"llama.{name}": value for name, value in change.items()}
        with pytest.raises(error, match=words):
            mmrt.Model(tiny.write(tmp_path / "refused.gguf"))

    refused(FormatError, "expert_used_count", expert_used_count=9)
    refused(FormatError, "expert_used_count", expert_used_count=0)
    refused(FormatError, "ffn_gate_inp", expert_count=7)
    refused(UnsupportedError, "expert_gating_func", expert_gating_func=5)
    refused(FormatError, "expert_group_count", expert_group_count=3)
    tiny = tiny_models.with_experts(tiny_models.llama())
    tiny.tensors["blk.1.ffn_up_exps.weight"] = tiny.tensors["blk.1.ffn_down_exps.weight"]
    tiny.tensors["blk.1.ffn_up_exps.weight"] = tiny_models.Blocks(
        "F32", tiny.tensors["blk.1.ffn_up_exps.weight"].data[:7]
    )
    with pytest.raises(FormatError, match=r"blk.1.ffn_up_exps.weight: shape \(7, 64, 64\)"):
        mmrt.Model(tiny.write(tmp_path / "seven.gguf"))


def test_operations_out_of_order() -> None:
    program = Program(Pool(1), 8, StateStore([KeyValues(1, 32)]))
    logits, choices, x = program.buffer(8), program.buffer(4), program.buffer(32)
    with pytest.raises(ArgumentError, match="reads buffer 0"):
        program.route(logits, choices, 2)
    with pytest.raises(ArgumentError, match="cannot choose 9 of 8"):
        program.route(logits, choices, 9)
    with pytest.raises(ArgumentError, match="'best'"):
        program.route(logits, choices, 2, "best")
    with pytest.raises(ArgumentError, match="buffers of"):
        program.buffer(32, 0)
    assert x == 2
    program.close()
