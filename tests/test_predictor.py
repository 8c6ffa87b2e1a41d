"""Predictors of neurons: what is not predicted is zero, whatever it would have been; trained,
measured, refused."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command import call
from numpy.typing import NDArray
from test_bundle import IDS, SHAPE, gated, one_by_one, plain
from tiny_models import TinyModel

import mmrt
from mmrt.errors import ArgumentError, FileError, FormatError, MmrtError, UnsupportedError
from mmrt.files.predictor import Scores, write_predictor
from mmrt.run.activations import activations
from mmrt.run.predicting import train

MAKERS = {"gated": gated, "plain": plain}
N_FF, N_LAYERS = SHAPE["n_ff"], SHAPE["n_layers"]
TEXT = " ".join(f"word{i * i % 97} and {i % 13}" for i in range(300))
LARGE = {"n_vocab": 400}


def named(width: int, wanted: NDArray[np.bool_], rank: int = 2) -> Scores:
    """Predicts these neurons, whatever is read."""
    inner, outer = np.ones((rank, width), np.float16), np.zeros((len(wanted), rank), np.float16)
    return Scores(inner, outer, np.where(wanted, 1, -1).astype(np.float32))


def with_predictor(path: Path, make: Callable[[int, int], Scores]) -> Path:
    """make(layer, width)"""
    out = path.with_suffix(".predictor")
    with mmrt.open(path) as file:
        downs = [file[f"blk.{i}.ffn_down.weight"] for i in range(N_LAYERS)]
        layers = [(down, make(i, down.shape[0])) for i, down in enumerate(downs)]
        write_predictor(out, file, layers)
    return out


def some(layer: int) -> NDArray[np.bool_]:
    return np.asarray(np.random.default_rng(layer).random(N_FF) < 0.4)


def without_others(model: TinyModel) -> TinyModel:
    """Whose other neurons have no effect."""
    for i in range(N_LAYERS):
        down = model.tensors[f"blk.{i}.ffn_down.weight"].data
        down.reshape(down.shape[0], N_FF, -1)[:, ~some(i)] = 0
    return model


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_predicted_is_zero(isa: str, kind: str, tmp_path: Path) -> None:
    path = MAKERS[kind]("F16").write(tmp_path / "model.gguf")
    without = without_others(MAKERS[kind]("F16")).write(tmp_path / "without.gguf")
    predictor = with_predictor(path, lambda layer, width: named(width, some(layer)))
    for threads in (1, 2):
        found = one_by_one(path, predictor=predictor, threads=threads)
        assert np.array_equal(found, one_by_one(without, threads=threads))
    assert not np.array_equal(found, one_by_one(path))
    with mmrt.Model(path, predictor=predictor) as model, mmrt.Model(without) as other:
        for ids in (IDS, IDS[:3]):
            assert np.array_equal(model.logits(ids), other.logits(ids))


def test_thresholds_and_quantised_matrices(tmp_path: Path) -> None:
    def model() -> TinyModel:
        made = gated("Q8_0")
        made.metadata["llama.hidden_activation"] = "fatrelu"
        made.metadata["llama.hidden_activation_param"] = 0.1
        return made

    path = model().write(tmp_path / "model.gguf")
    everything = with_predictor(path, lambda _, width: named(width, np.ones(N_FF, bool)))
    assert np.array_equal(one_by_one(path), one_by_one(path, predictor=everything))
    nothing = with_predictor(path, lambda _, width: named(width, np.zeros(N_FF, bool)))
    silent = model()
    for i in range(N_LAYERS):
        bias = tiny_models.floats(np.random.default_rng(1), N_FF, mean=-1000)
        silent.tensors[f"blk.{i}.ffn_gate.bias"] = bias
    without = silent.write(tmp_path / "silent.gguf")
    assert np.array_equal(one_by_one(without), one_by_one(path, predictor=nothing))


@pytest.mark.parametrize(("kind", "decides"), [("gated", "gate"), ("plain", "up")])
def test_scores_are_of_what_the_layer_reads(kind: str, decides: str, tmp_path: Path) -> None:
    """What decides, as a predictor: it is right."""
    path = MAKERS[kind]("F16").write(tmp_path / "model.gguf")
    with mmrt.open(path) as file:
        names = [f"blk.{i}.ffn_{decides}" for i in range(N_LAYERS)]
        matrices = [file[f"{name}.weight"].dequantize().astype(np.float16) for name in names]
        biases = [file[f"{name}.bias"].dequantize() for name in names]

    def own(layer: int, width: int) -> Scores:
        return Scores(np.eye(width, dtype=np.float16), matrices[layer], biases[layer])

    predictor = with_predictor(path, own)
    expected = one_by_one(path)
    assert np.allclose(expected, one_by_one(path, predictor=predictor), atol=1e-5)
    exact = one_by_one(path, predictor=predictor, exact=True)
    with mmrt.Model(path, predictor=predictor, exact=True) as model:
        assert np.array_equal(exact, model.logits(IDS))


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize("kind", MAKERS)
def test_within_a_budget_it_predicts_the_same(kind: str, part: float, tmp_path: Path) -> None:
    path = MAKERS[kind]("F16").write(tmp_path / "model.gguf")
    predictor = with_predictor(path, lambda layer, width: named(width, some(layer)))
    expected = one_by_one(path, predictor=predictor)
    with mmrt.Model(path, predictor=predictor) as model, model.sequence() as sequence:
        plan = model.program.plan(0)
        model.program.set_budget(plan.least + int(part * (plan.most - plan.least)))
        assert np.array_equal(expected, np.stack([sequence.extend([token]) for token in IDS]))


# ---- training ----


@pytest.mark.parametrize("kind", MAKERS)
def test_activations_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    """Neurons that are zero for all tokens may as well not be there."""
    path = MAKERS[kind]("F16").write(tmp_path / "model.gguf")
    ids = IDS[:3]
    with mmrt.open(path) as file:
        found = list(activations(file, [ids], threads=1))
    assert [layer.down.name for layer in found] == [
        f"blk.{i}.ffn_down.weight" for i in range(N_LAYERS)
    ]
    needed = [np.asarray(layer.active.any(0)) for layer in found]
    assert all(0.1 < neurons.mean() < 0.9 for neurons in needed)
    predictor = with_predictor(path, lambda layer, width: named(width, needed[layer]))
    with mmrt.Model(path) as model, mmrt.Model(path, predictor=predictor) as other:
        assert np.array_equal(model.logits(ids), other.logits(ids))
    decides = "gate" if kind == "gated" else "up"
    with mmrt.open(path) as file:
        for i, layer in enumerate(found):
            weight, bias = (
                file[f"blk.{i}.ffn_{decides}.{part}"].dequantize() for part in ("weight", "bias")
            )
            value = layer.read @ weight.T + bias
            assert np.array_equal(layer.active[abs(value) > 1e-3], (value > 0)[abs(value) > 1e-3])


def test_a_predictor_is_trained_and_measured(tmp_path: Path) -> None:
    path, out = plain("F16", **LARGE).write(tmp_path / "model.gguf"), tmp_path / "out"
    done: list[tuple[int, int]] = []
    fit = functools.partial(train, path, TEXT, rank=16, epochs=2, tokens=1100)
    trained = fit(out, recall=0.9, progress=lambda *n: done.append(n))
    assert done == [(i + 1, N_LAYERS) for i in range(N_LAYERS)]
    for layer in trained.layers:
        assert 0.75 < layer.recall < 0.98 and 0.3 < layer.active < 0.7
        assert layer.precision > layer.active + 0.1
        hit = layer.recall * layer.active  # of all neurons, on average
        assert layer.precision * layer.predicted == pytest.approx(hit)
    assert trained.n_trained > 2 * trained.n_held_out > 0
    with mmrt.open(out) as file:
        assert trained.n_bytes == sum(tensor.nbytes for tensor in file.values())
    assert trained.exact > 1 and trained.lossy != trained.exact
    again = fit(tmp_path / "again", recall=1 - 1e-9)
    for layer, more in zip(trained.layers, again.layers, strict=True):
        assert more.active == layer.active and more.recall > layer.recall
        assert more.predicted > layer.predicted


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    path, out = gated("F16").write(tmp_path / "model.gguf"), tmp_path / "out"
    with pytest.raises(ArgumentError, match=r"text: \d+ tokens, expected more than"):
        train(path, "a b c", out)
    with pytest.raises(ArgumentError, match="recall: expected a number between 0 and 1, found 1"):
        train(path, TEXT, out, recall=1)
    with pytest.raises(ArgumentError, match="rank"):
        train(path, TEXT, out, rank=0)
    silu = tiny_models.llama().write(tmp_path / "silu.gguf")
    with pytest.raises(UnsupportedError, match=r"silu\.gguf: no layer of it has ReLU"):
        train(silu, TEXT, out)
    assert not out.exists()


def test_a_predictor_half_made_has_no_name(tmp_path: Path) -> None:
    path = gated("F16").write(tmp_path / "model.gguf")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(path, TEXT, tmp_path / "out", rank=4, epochs=1, progress=stop)
    assert os.listdir(tmp_path) == ["model.gguf"]


# ---- bad ones ----


def assert_refused(path: Path, predictor: Path, kind: type[MmrtError], *words: str) -> None:
    with pytest.raises(kind) as refused:
        mmrt.Model(path, predictor=predictor)
    message = str(refused.value)
    assert message.count(str(predictor)) == 1 and "\n" not in message, message
    for word in words:
        assert word in message, message


def made(folder: Path, **shape: int) -> tuple[Path, Path]:
    path = gated("F16", **shape).write(folder / "model.gguf")
    return path, with_predictor(path, lambda layer, width: named(width, some(layer)))


def test_a_predictor_of_another_file_is_refused(tmp_path: Path) -> None:
    _, predictor = made(tmp_path)
    alike = gated("F16", seed=1).write(tmp_path / "alike.gguf")
    larger = gated("F16", n_vocab=400).write(tmp_path / "larger.gguf")
    assert_refused(alike, predictor, FormatError, "mmrt-predictor.of.digest", "another file")
    assert_refused(larger, predictor, FormatError, "mmrt-predictor.of.size", "another file")


def test_another_version_is_refused(tmp_path: Path) -> None:
    path, predictor = made(tmp_path)
    data = predictor.read_bytes()
    at = data.index(b"mmrt-predictor.version") + len(b"mmrt-predictor.version") + 4
    assert data[at] == 1
    predictor.write_bytes(data[:at] + b"\7" + data[at + 1 :])
    words = "mmrt-predictor.version", "expected 1, found 7", "mmrt predictor"
    assert_refused(path, predictor, FormatError, *words)


def test_a_predictor_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path, predictor = made(tmp_path)
    for size in (predictor.stat().st_size - 100, 3000, 10, 0):
        os.truncate(predictor, size)
        assert_refused(path, predictor, FormatError)


def test_what_is_no_predictor_is_refused(tmp_path: Path) -> None:
    path, predictor = made(tmp_path)
    with pytest.raises(FormatError, match="no predictor of neurons"):
        mmrt.Model(path, predictor=path)
    assert_refused(path, tmp_path / "nowhere", FileError)
    with pytest.raises(FormatError, match="no bundle of neurons"):
        mmrt.Model(path, bundle=predictor)


WIDTH = SHAPE["n_embd"]


@pytest.mark.parametrize(
    ("inner", "outer", "bias", "words"),
    [
        ((2, WIDTH + 1), (N_FF, 2), N_FF, ("predictor_in", f"(2, {WIDTH})", f"(2, {WIDTH + 1})")),
        ((2, WIDTH), (N_FF, 3), N_FF, ("predictor_out", f"({N_FF}, 2)", f"({N_FF}, 3)")),
        ((2, WIDTH), (N_FF - 1, 2), N_FF, ("predictor_out", f"({N_FF - 1}, 2)")),
        ((2, WIDTH), (N_FF, 2), N_FF + 1, ("predictor_bias", f"({N_FF},)", f"({N_FF + 1},)")),
    ],
)
def test_parts_that_contradict_are_refused(
    inner: tuple[int, int],
    outer: tuple[int, int],
    bias: int,
    words: tuple[str, ...],
    tmp_path: Path,
) -> None:
    path = gated("F16").write(tmp_path / "model.gguf")
    zeros = Scores(
        np.zeros(inner, np.float16), np.zeros(outer, np.float16), np.zeros(bias, np.float32)
    )
    assert_refused(path, with_predictor(path, lambda *_: zeros), FormatError, "blk.0.", *words)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    path, predictor = made(tmp_path)
    data = predictor.read_bytes()
    name = b"blk.1.ffn_down.predictor_bias"
    assert data.count(name) == 1
    predictor.write_bytes(data.replace(name, b"blk.1.ffn_down.predictor_bits"))
    words = "blk.1.ffn_down.predictor_bias", "found none"
    assert_refused(path, predictor, FormatError, *words)


@pytest.mark.parametrize("part", Scores._fields)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(part: str, value: float, tmp_path: Path) -> None:
    path = gated("F16").write(tmp_path / "model.gguf")

    def broken(layer: int, width: int) -> Scores:
        scores = named(width, some(layer))
        if layer == 1:
            getattr(scores, part).flat[3] = value
        return scores

    name = {"inner": "in", "outer": "out", "bias": "bias"}[part]
    words = f"tensor blk.1.ffn_down.predictor_{name} holds NaN or infinity"
    assert_refused(path, with_predictor(path, broken), FormatError, words)


# ---- the command ----


def test_the_command(tmp_path: Path) -> None:
    path, out = plain("F16", **LARGE).write(tmp_path / "model.gguf"), tmp_path / "out"
    text = tmp_path / "text"
    text.write_text(TEXT)
    done = call("predictor", path, text, out, "--rank", "4", "--epochs", "1", "-n", "1100")
    assert done.status == 0, done
    assert done.out.split("\n")[0].split() == [
        "layer",
        "active",
        "predicted",
        "recall",
        "precision",
    ]
    assert done.out.count("\nblk.") == N_LAYERS and "perplexity" in done.out, done.out
    run = "run", path, "a", "-n", "4", "--temp", "0"
    assert call(*run, "--predictor", out).status == 0
    call("run", path, "a", "--predictor", path).assert_refused(1, "no predictor")
    call("predictor", path, tmp_path / "none", out).assert_refused(2, "none")
    call("predictor", path, text, out, "--recall", "1.5").assert_refused(2, "between 0 and 1")
