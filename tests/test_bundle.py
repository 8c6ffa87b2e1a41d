"""Bundles of neurons: made, refused, and of use to no bit of a logit."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures
import tiny_models
from command import call
from numpy.typing import NDArray
from tiny_models import TinyModel

import mmrt
from mmrt.errors import FileError, FormatError, MmrtError, UnsupportedError
from mmrt.files.bundle import write_bundle
from mmrt.run.building import neurons

Logits = NDArray[np.float32]
IDS = np.random.default_rng(7).integers(0, 300, 24).tolist()
SHAPE: dict[str, Any] = {"n_embd": 128, "n_ff": 320, "n_layers": 3}


def gated(type: str = "F16", **shape: Any) -> TinyModel:
    """Of whose gates most are at zero."""
    random = np.random.default_rng(3)
    model = tiny_models.llama(type=type, **SHAPE | shape)
    model.metadata["llama.hidden_activation"] = "relu"
    for i in range(SHAPE["n_layers"]):
        bias = tiny_models.floats(random, SHAPE["n_ff"], mean=-1.2)
        model.tensors[f"blk.{i}.ffn_gate.bias"] = bias
    return model


def plain(type: str = "F16", **shape: Any) -> TinyModel:
    return tiny_architectures.tiny("opt", True, type=type, **SHAPE | {"n_embd": 192} | shape)


def bundled(model: TinyModel, folder: Path) -> tuple[Path, Path]:
    path, bundle = model.write(folder / "model.gguf"), folder / "model.bundle"
    with mmrt.open(path) as file:
        write_bundle(bundle, file, neurons(file))
    return path, bundle


def one_by_one(path: Path, **options: Any) -> Logits:
    with mmrt.Model(path, **options) as model, model.sequence() as sequence:
        return np.stack([sequence.extend([token]) for token in IDS])


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("make", [gated, plain])
def test_logits_are_the_same_to_the_bit(
    isa: str, make: Callable[[str], TinyModel], type: str, tmp_path: Path
) -> None:
    path, bundle = bundled(make(type), tmp_path)
    for threads in (1, 2):
        expected = one_by_one(path, threads=threads)
        assert np.array_equal(expected, one_by_one(path, threads=threads, bundle=bundle))
    with mmrt.Model(path) as model, mmrt.Model(path, bundle=bundle) as other:
        assert np.array_equal(model.logits(IDS), other.logits(IDS))


def test_exact_models_stay_exact(tmp_path: Path) -> None:
    path, bundle = bundled(gated(), tmp_path)
    expected = one_by_one(path, exact=True)
    assert np.array_equal(expected, one_by_one(path, exact=True, bundle=bundle))
    with mmrt.Model(path, exact=True, bundle=bundle) as model:
        assert np.array_equal(expected, model.logits(IDS))


def test_quantised_rows_of_up_beside_columns_of_floats(tmp_path: Path) -> None:
    path, bundle = bundled(gated("Q8_0", types={"ffn_down": "F16"}), tmp_path)
    assert np.array_equal(one_by_one(path), one_by_one(path, bundle=bundle))


def test_columns_of_zeros_are_not_multiplied(tmp_path: Path) -> None:
    """What a bundle holds of neurons that no token needs has no effect, and the others have."""
    model = gated("F32")
    dead = np.random.default_rng(4).random(SHAPE["n_ff"]) < 0.7
    for i in range(SHAPE["n_layers"]):
        model.tensors[f"blk.{i}.ffn_gate.weight"].data[dead] = 0
    path, bundle = bundled(model, tmp_path)
    expected = one_by_one(path, bundle=bundle)
    with mmrt.open(bundle) as file:
        places = [(tensor.offset, tensor.nbytes // SHAPE["n_ff"]) for tensor in file.values()]
    data = bytearray(bundle.read_bytes())
    for offset, size in places:
        for neuron in np.flatnonzero(dead):
            at = offset + int(neuron) * size
            data[at : at + size] = b"\xff" * size  # NaN
    bundle.write_bytes(data)
    assert np.array_equal(expected, one_by_one(path, bundle=bundle))
    at = places[0][0] + int(np.flatnonzero(~dead)[0]) * places[0][1]
    data[at : at + 4] = np.float32(1e6).tobytes()
    bundle.write_bytes(data)
    assert not np.array_equal(expected, one_by_one(path, bundle=bundle))


def test_a_bundle_holds_neurons_one_by_one(tmp_path: Path) -> None:
    path, bundle = bundled(gated("F16"), tmp_path)
    with mmrt.open(path) as file, mmrt.open(bundle) as side:
        assert list(side) == [f"blk.{i}.ffn_down.neurons" for i in range(SHAPE["n_layers"])]
        for i, tensor in enumerate(side.values()):
            names = [f"blk.{i}.ffn_{role}.weight" for role in ("down", "up", "gate")]
            down, up, gate = (file[name].dequantize() for name in names)
            found = tensor.dequantize()
            assert tensor.offset % 4096 == 0 and tensor.nbytes // len(found) % 4096 == 0
            width = SHAPE["n_embd"]
            assert np.array_equal(found[:, :width], down.T)
            assert np.array_equal(found[:, width : 2 * width], up)
            assert np.array_equal(found[:, 2 * width : 3 * width], gate)
            assert not found[:, 3 * width :].any()


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_within_a_budget_it_changes_nothing(part: float, tmp_path: Path) -> None:
    path, bundle = bundled(gated(), tmp_path)
    expected = one_by_one(path)
    with mmrt.Model(path, bundle=bundle) as model, model.sequence() as sequence:
        plan = model.program.plan(0)
        model.program.set_budget(plan.least + int(part * (plan.most - plan.least)))
        assert np.array_equal(expected, np.stack([sequence.extend([token]) for token in IDS]))


# ---- bad ones ----


def assert_refused(path: Path, bundle: Path, kind: type[MmrtError], *words: str) -> None:
    with pytest.raises(kind) as refused:
        mmrt.Model(path, bundle=bundle)
    message = str(refused.value)
    assert bundle.name in message and "\n" not in message
    for word in words:
        assert word in message, message


def test_a_bundle_of_another_file_is_refused(tmp_path: Path) -> None:
    _, bundle = bundled(gated(), tmp_path)
    alike = gated(seed=1).write(tmp_path / "alike.gguf")
    larger = gated(n_vocab=400).write(tmp_path / "larger.gguf")
    assert_refused(alike, bundle, FormatError, "mmrt-bundle.of.digest", "another file")
    assert_refused(larger, bundle, FormatError, "mmrt-bundle.of.size", "another file")


def test_another_version_is_refused(tmp_path: Path) -> None:
    path, bundle = bundled(gated(), tmp_path)
    data = bundle.read_bytes()
    at = data.index(b"mmrt-bundle.version") + len(b"mmrt-bundle.version") + 4
    assert data[at] == 2
    bundle.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    assert_refused(path, bundle, FormatError, "mmrt-bundle.version", "expected 2, found 1")


def test_a_bundle_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path, bundle = bundled(gated(), tmp_path)
    for size in (bundle.stat().st_size - 1, 5000, 10, 0):
        os.truncate(bundle, size)
        assert_refused(path, bundle, FormatError)


def test_a_bundle_that_is_cut_short_in_use_is_reported(tmp_path: Path) -> None:
    path, bundle = bundled(gated(), tmp_path)
    with mmrt.Model(path, bundle=bundle) as model, model.sequence() as sequence:
        sequence.extend(IDS[:1])
        os.truncate(bundle, 8192)
        with pytest.raises(FileError, match=r"ffn_down\.neurons.*is gone"):
            for token in IDS:
                sequence.extend([token])


def test_a_bundle_that_is_replaced_in_use_stays(tmp_path: Path) -> None:
    path, bundle = bundled(gated(), tmp_path)
    expected = one_by_one(path)
    with mmrt.Model(path, bundle=bundle) as model, model.sequence() as sequence:
        other = tmp_path / "other"
        other.write_bytes(bytes(bundle.stat().st_size))
        other.replace(bundle)
        assert np.array_equal(expected, np.stack([sequence.extend([token]) for token in IDS]))


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    path, _ = bundled(gated(), tmp_path)
    assert_refused(path, path, FormatError, "general.architecture", "no bundle")
    assert_refused(path, tmp_path / "nowhere", FileError)


def test_columns_of_another_shape_are_refused(tmp_path: Path) -> None:
    path, bundle = bundled(gated("F16"), tmp_path)
    data = bundle.read_bytes()
    at = data.index(b"blk.1.ffn_down.neurons") + len(b"blk.1.ffn_down.neurons") + 4 + 8
    assert int.from_bytes(data[at : at + 8], "little") == SHAPE["n_ff"]
    bundle.write_bytes(data[:at] + (SHAPE["n_ff"] - 1).to_bytes(8, "little") + data[at + 8 :])
    assert_refused(path, bundle, FormatError, "blk.1.ffn_down.neurons")


# ---- making them ----


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (gated("Q4_0"), "tensor blk.0.ffn_down.weight: Q4_0 lies in blocks"),
        (tiny_models.llama(), "no layer of it has ReLU"),
    ],
)
def test_what_has_no_neurons_is_refused(model: TinyModel, words: str, tmp_path: Path) -> None:
    path, out = model.write(tmp_path / "model.gguf"), tmp_path / "out"
    with mmrt.open(path) as file, pytest.raises(UnsupportedError, match=words):
        write_bundle(out, file, neurons(file))
    assert not out.exists()


def test_a_bundle_half_made_has_no_name(tmp_path: Path) -> None:
    path = gated().write(tmp_path / "model.gguf")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with mmrt.open(path) as file, pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "out", file, neurons(file), progress=stop)
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_the_command(tmp_path: Path) -> None:
    path, out = gated().write(tmp_path / "model.gguf"), tmp_path / "out"
    done = call("bundle", path, out)
    assert done.status == 0 and "3 layers" in done.out, done
    run = "run", path, "a", "-n", "4", "--temp", "0"
    said = [call(*run, *more) for more in ([], ["--bundle", out])]
    assert said[0].status == said[1].status == 0, said
    assert said[0].out == said[1].out
    call("run", path, "a", "--bundle", path).assert_refused(1, "no bundle")
