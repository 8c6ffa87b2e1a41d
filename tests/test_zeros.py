"""Layers whose activation is zero for many units: steps of few tokens leave out the rows of `up`
that no token needs, and results are the same to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import tiny_models
from measures import ROUNDING
from numpy.typing import NDArray
from tiny_models import Blocks, TinyModel, blocks_of

import mmrt
from mmrt.errors import FormatError, MmrtError, UnsupportedError

Logits = NDArray[np.float32]
IDS = np.random.default_rng(7).integers(0, 300, 24).tolist()
SHAPE: dict[str, Any] = {"n_embd": 256, "n_ff": 352, "n_layers": 3}
FAT: dict[str, Any] = {"hidden_activation": "fatrelu", "hidden_activation_param": 0.7}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {"hidden_activation": "relu"},
    "relu2": {"hidden_activation": "relu2"},
    "fatrelu": FAT,
}


def with_activation(model: TinyModel, **fields: object) -> TinyModel:
    model.metadata |= {f"llama.{name}": value for name, value in fields.items()}
    return model


def in_steps(path: Path, size: int, exact: bool = True) -> Logits:
    parts = [IDS[i : i + size] for i in range(0, len(IDS), size)]
    with mmrt.Model(path, exact=exact) as model, model.sequence() as sequence:
        return np.concatenate([sequence.extend(part, outputs="all") for part in parts])


@pytest.mark.parametrize(
    ("activation", "type"),
    [("relu", "F32"), ("relu", "BF16"), ("relu2", "F16"), ("fatrelu", "Q8_0"), ("relu", "Q4_0")],
)
def test_few_tokens_get_what_many_do(isa: str, activation: str, type: str, tmp_path: Path) -> None:
    """Many multiply all rows of `up`."""
    model = with_activation(tiny_models.llama(type=type, **SHAPE), **ACTIVATIONS[activation])
    path = model.write(tmp_path / "model.gguf")
    many = in_steps(path, len(IDS))
    for size in (1, 3):
        assert np.array_equal(many, in_steps(path, size))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_logits_are_those_of_the_reference(activation: str, tmp_path: Path) -> None:
    model = with_activation(tiny_models.llama(**SHAPE), **ACTIVATIONS[activation])
    path = model.write(tmp_path / "model.gguf")
    expected = oracle.logits(path, IDS, rounding=True)
    for size in (1, len(IDS)):
        ROUNDING.assert_holds(expected, in_steps(path, size, exact=False))


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
@pytest.mark.parametrize("size", [1, 2])
def test_rows_that_no_token_needs_are_not_multiplied(
    size: int, type: str, isa: str, tmp_path: Path
) -> None:
    """Of gates that are always zero: these rows may hold anything."""
    model = with_activation(tiny_models.llama(type=type, **SHAPE), hidden_activation="relu")
    dead = np.random.default_rng(3).random(SHAPE["n_ff"]) < 0.8
    dead[64:192] = True  # whole pieces of a thread
    for i in range(SHAPE["n_layers"]):
        model.tensors[f"blk.{i}.ffn_gate.weight"].data[dead] = 0
    expected = in_steps(model.write(tmp_path / "sound.gguf"), size, exact=False)
    for i in range(SHAPE["n_layers"]):
        model.tensors[f"blk.{i}.ffn_up.weight"].data[dead] = 0xFF  # NaN
    found = in_steps(model.write(tmp_path / "poisoned.gguf"), size, exact=False)
    assert np.array_equal(expected, found)


def test_a_layer_of_zeros_alone(tmp_path: Path) -> None:
    model = with_activation(tiny_models.llama(**SHAPE), hidden_activation="relu")
    for i in range(SHAPE["n_layers"]):
        model.tensors[f"blk.{i}.ffn_gate.weight"].data[:] = 0
    without = with_activation(tiny_models.llama(**SHAPE), hidden_activation="relu")
    for i in range(SHAPE["n_layers"]):
        without.tensors[f"blk.{i}.ffn_down.weight"].data[:] = 0
    path, other = model.write(tmp_path / "gates.gguf"), without.write(tmp_path / "down.gguf")
    assert np.array_equal(in_steps(path, 1), in_steps(other, 1))


def test_nan_of_a_gate_is_reported(tmp_path: Path) -> None:
    model = with_activation(tiny_models.llama(**SHAPE), **FAT)
    values = model.tensors["blk.1.ffn_gate.weight"].data.view(np.float32).copy()
    values[100, 5] = np.nan
    model.tensors["blk.1.ffn_gate.weight"] = Blocks("F32", values.view(np.uint8))
    path = model.write(tmp_path / "nan.gguf")
    for size in (1, len(IDS)):
        with pytest.raises(FormatError, match=r"'blk.1.ffn_gate.weight' holds NaN"):
            in_steps(path, size)


def test_biases_and_scales_of_rows_that_are_multiplied(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    model = with_activation(tiny_models.llama(**SHAPE), hidden_activation="relu")
    for name in ("gate", "up"):
        bias = random.normal(-0.5, 1, SHAPE["n_ff"]).astype(np.float32)
        model.tensors[f"blk.1.ffn_{name}.bias"] = blocks_of("F32", bias)
        scale = np.array([0.75], np.float32)
        model.tensors[f"blk.1.ffn_{name}.scale"] = blocks_of("F32", scale)
    path = model.write(tmp_path / "model.gguf")
    many = in_steps(path, len(IDS))
    ROUNDING.assert_holds(oracle.logits(path, IDS, rounding=True), many)
    assert np.array_equal(many, in_steps(path, 1))


@pytest.mark.parametrize("type", ["F16", "Q4_0"])
def test_streamed_weights_leave_out_the_same_rows(type: str, tmp_path: Path) -> None:
    model = with_activation(tiny_models.llama(type=type, **SHAPE), hidden_activation="relu")
    path = model.write(tmp_path / "model.gguf")
    expected = in_steps(path, 1, exact=False)
    with mmrt.Model(path) as limited, limited.sequence() as sequence:
        limited.program.set_budget(limited.program.plan(0).least)
        found = [sequence.extend([token]) for token in IDS]
    assert np.array_equal(expected, np.stack(found))


# ---- what files say ----


def test_a_file_that_says_nothing_has_silu(tmp_path: Path) -> None:
    silent = tiny_models.llama(**SHAPE).write(tmp_path / "silent.gguf")
    silu = with_activation(tiny_models.llama(**SHAPE), hidden_activation="silu")
    relu = with_activation(tiny_models.llama(**SHAPE), hidden_activation="relu")
    expected = in_steps(silent, 1)
    assert np.array_equal(expected, in_steps(silu.write(tmp_path / "silu.gguf"), 1))
    assert not np.array_equal(expected, in_steps(relu.write(tmp_path / "relu.gguf"), 1))


@pytest.mark.parametrize(
    ("kind", "words", "fields"),
    [
        (
            UnsupportedError,
            "llama.hidden_activation: expected silu, relu",
            {"hidden_activation": "gelu"},
        ),
        (FormatError, "llama.hidden_activation: expected a string", {"hidden_activation": 3}),
        (FormatError, "llama.hidden_activation_param: missing", {"hidden_activation": "fatrelu"}),
        (
            FormatError,
            "llama.hidden_activation_param: expected",
            FAT | {"hidden_activation_param": -1.0},
        ),
        (UnsupportedError, "llama.hidden_activation_param", {"hidden_activation_param": 0.5}),
    ],
)
def test_other_activations_are_refused(
    kind: type[MmrtError], words: str, fields: dict[str, object], tmp_path: Path
) -> None:
    path = with_activation(tiny_models.llama(), **fields).write(tmp_path / "model.gguf")
    with pytest.raises(kind, match=words):
        mmrt.Model(path)


def test_experts_with_another_activation_are_refused(tmp_path: Path) -> None:
    model = tiny_models.with_experts(tiny_models.llama())
    path = with_activation(model, hidden_activation="relu").write(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match="hidden_activation"):
        mmrt.Model(path)
