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
@pytest.mark.parametrize("used", [4, 1])
@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_K", "MXFP4", "IQ2_S"])
def test_quantised_experts(type: str, used: int, tmp_path: Path) -> None:
    shape = {"n_embd": 256, "n_ff": 256, "head_dim": 64}
    experts = {"type": type, "width": 256, "count": 4 * used, "used": used}
    tiny = tiny_models.qwen3moe(type="Q8_0", experts=experts, **shape)
    path = tiny.write(tmp_path / "tiny.gguf")
    expected = oracle.logits(path, IDS, rounding=True)
    with mmrt.Model(path) as model:
        FLIPS.assert_holds(expected, model.logits(IDS))
        for size in (1, 2):
            FLIPS.assert_holds(expected, steps(model, [size] * (70 // size)))


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


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_choices_depend_neither_on_steps_nor_on_threads(case: str, tmp_path: Path) -> None:
    experts: dict[str, Any] = {"count": 8, "used": 3} | CASES[case]
    tiny = tiny_models.with_experts(tiny_models.llama(n_layers=3), **experts)
    path = tiny.write(tmp_path / "tiny.gguf")
    seen = set()
    for threads in (1, 2, 3):
        with mmrt.Model(path, exact=True, threads=threads) as model:
            seen |= {steps(model, sizes).tobytes() for sizes in ([1] * 70, [70], [5, 8, 57])}
    assert len(seen) == 1


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
def test_gate_and_up_in_one_stack(type: str, tmp_path: Path) -> None:
    experts: dict[str, Any] = {"type": type, "biases": True, "used": 3, "width": 96}
    tiny = tiny_models.with_experts(tiny_models.llama(), **experts)
    for which in ("gate", "up"):
        scales = floats(np.random.default_rng(5), 8, mean=1.0)
        tiny.tensors[f"blk.1.ffn_{which}_exps.scale"] = scales
    with mmrt.Model(tiny.write(tmp_path / "two.gguf")) as model:
        expected = steps(model, [1] * 20 + [50])
    tiny.tensors["blk.1.ffn_gate_up_exps.scale"] = tiny.tensors.pop("blk.1.ffn_gate_exps.scale")
    del tiny.tensors["blk.1.ffn_up_exps.scale"]
    path = tiny_models.fuse_experts(tiny).write(tmp_path / "one.gguf")
    with mmrt.Model(path) as model:
        assert np.array_equal(steps(model, [1] * 20 + [50]), expected)
    assert_near(oracle.logits(path, IDS, rounding=True), expected, 0.1 if type == "Q8_0" else 1e-4)
    stack = tiny.tensors["blk.1.ffn_gate_up_exps.weight"]
    tiny.tensors["blk.1.ffn_gate_up_exps.weight"] = tiny_models.Blocks(type, stack.data[:, :190])
    with pytest.raises(FormatError, match=r"ffn_gate_up_exps.weight: shape \(8, 190, 64\)"):
        mmrt.Model(tiny.write(tmp_path / "shorter.gguf"))


@pytest.mark.parametrize("n", [1, 8])
def test_scales_of_experts(n: int, tmp_path: Path) -> None:
    tiny = tiny_models.with_experts(tiny_models.llama(), biases=True, used=3)
    seen = []
    for which in ("none", "gate", "up", "down"):
        if which != "none":
            scales = floats(np.random.default_rng(6), n, mean=1.5)
            tiny.tensors[f"blk.1.ffn_{which}_exps.scale"] = scales
        path = tiny.write(tmp_path / "tiny.gguf")
        with mmrt.Model(path) as model:
            assert_near(model.logits(IDS), oracle.logits(path, IDS, rounding=True), 1e-4)
            seen.append(model.logits(IDS).tobytes())
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    "tensor",
    [
        *("ffn_gate_inp.weight", "ffn_gate_inp.bias", "exp_probs_b.bias", "ffn_up_exps.weight"),
        *("ffn_down_exps.bias", "ffn_gate_exps.scale", "ffn_gate_shexp.weight"),
    ],
)
@pytest.mark.parametrize("gating", [1, 2, 3, 4])
def test_nan_is_reported_where_it_is(gating: int, tensor: str, tmp_path: Path) -> None:
    """Of a router, too, which would choose somehow."""
    experts: dict[str, Any] = {"count": 4, "used": 4, "biases": True, "expert_gating_func": gating}
    tiny = tiny_models.with_experts(
        tiny_models.llama(), **experts, expert_shared_feed_forward_length=96
    )
    tiny_models.with_shared_expert(tiny, 96)
    random = np.random.default_rng(7)
    for name in ("exp_probs_b.bias", "ffn_gate_exps.scale"):
        tiny.tensors[f"blk.1.{name}"] = floats(random, 4, mean=1.0)
    values = tiny.tensors[f"blk.1.{tensor}"].data.view(np.float32).copy()
    values.flat[2] = np.nan
    tiny.tensors[f"blk.1.{tensor}"] = tiny_models.Blocks("F32", values.view(np.uint8))
    with mmrt.Model(tiny.write(tmp_path / "nan.gguf")) as model:
        for ids in (IDS[:1], IDS):
            with pytest.raises(FormatError, match=rf"nan.gguf: tensor 'blk.1.{tensor}' holds NaN"):
                model.logits(ids)


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
    refused(FormatError, "ffn_gate_exps.weight: shape", expert_feed_forward_length=65)
    refused(FormatError, "ffn_gate_shexp.weight is missing", expert_shared_count=1)
    tiny = tiny_models.with_experts(tiny_models.llama(), expert_shared_count=2)
    with pytest.raises(FormatError, match=r"ffn_gate_shexp.weight: shape \(64, 64\)"):
        mmrt.Model(tiny_models.with_shared_expert(tiny, 64).write(tmp_path / "narrow.gguf"))
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
