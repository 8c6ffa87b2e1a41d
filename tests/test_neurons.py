"""Columns of a bundle on demand: within a budget, steps of one token read the neurons that they
need. Logits are those without a limit, to the bit."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_architectures
import tiny_models
from children import in_child
from machine import needs_reader
from numpy.typing import NDArray
from test_bundle import SHAPE, bundled, gated, plain
from test_predictor import named, some, with_predictor
from tiny_models import TinyModel

import mmrt
from mmrt.core.program import Program
from mmrt.core.streaming import READERS, Demand
from mmrt.errors import ArgumentError, FileError, OutOfMemoryError

Logits = NDArray[np.float32]
IDS = np.random.default_rng(9).integers(0, 300, 60).tolist()
LARGE = {"n_vocab": 2000, "n_embd": 1024, "head_dim": 64, "separate_output": True}
MODELS = {
    "gated": lambda: gated("F16", **LARGE),  # of which the least budget is a part
    "plain": lambda: plain("F16", **LARGE),
    "mixed": lambda: mixed(),
}


def mixed() -> TinyModel:
    """With another activation, and rows of `up` of another type than columns of `down`, with
    biases."""
    model = gated("Q8_0", types={"ffn_down": "F32"}, **LARGE)
    model.metadata["llama.hidden_activation"] = "relu2"
    random = np.random.default_rng(6)
    for i in range(SHAPE["n_layers"]):
        model.tensors[f"blk.{i}.ffn_up.bias"] = tiny_models.floats(random, SHAPE["n_ff"])
    return model


ROWS = SHAPE["n_ff"] * SHAPE["n_layers"]  # of all bundles


@pytest.fixture(scope="module", params=MODELS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model and its bundle."""
    return list(bundled(MODELS[request.param](), tmp_path_factory.mktemp(request.param)))


def limit(model: mmrt.Model, part: float, reader: str = "threads") -> Program:
    """To a part of the way from the least budget to one that holds all."""
    program, plan = model.program, model.program.plan(0)
    program.set_reader(reader)
    program.set_budget(plan.least + int(part * max(plan.most - plan.least, 0)))
    return program


def read(model: mmrt.Model) -> Logits:
    """Prompts, single tokens, and a few at once."""
    with model.sequence() as sequence:
        found = [sequence.extend(IDS[:12], outputs="all")]
        found += [sequence.extend([token])[None] for token in IDS[12:40]]
        found += [sequence.extend(IDS[40:43], outputs="all")]
        found += [sequence.extend([token])[None] for token in IDS[43:50]]
        found += [sequence.extend(IDS[50:], outputs="all")]
    return np.concatenate(found)


def columns(program: Program) -> Demand:
    assert program.streaming is not None
    return program.streaming.columns


@pytest.mark.parametrize("reader", READERS)
def test_logits_are_those_without_a_limit(files: list[Path], reader: str) -> None:
    path, bundle = files
    needs_reader(reader, path)
    with mmrt.Model(path) as model:
        expected = read(model)
    with mmrt.Model(path, bundle=bundle) as model:
        assert np.array_equal(expected, read(model))
        for part in (0, 0.4, 1, 0.2, 0):
            program = limit(model, part, reader)
            before = columns(program)
            assert np.array_equal(expected, read(model))
            done = columns(program) - before
            assert program.plan(0).least < program.plan(0).most
            if part < 1:
                assert done.wanted > done.found > 0
                assert done.read_units == done.wanted - done.found
                assert done.read == done.read_units * done.slot_bytes


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_on_any_number_of_threads(threads: int, tmp_path: Path) -> None:
    path, bundle = bundled(MODELS["gated"](), tmp_path)
    with mmrt.Model(path, threads=threads) as model:
        expected = read(model)
    with mmrt.Model(path, bundle=bundle, threads=threads) as model:
        program = limit(model, 0)
        assert np.array_equal(expected, read(model))
        assert columns(program).wanted > columns(program).found > 0


def test_what_no_token_needs_is_not_read(files: list[Path]) -> None:
    """Neither columns that meet zeros nor, for single tokens, the rows of the matrices."""
    path, bundle = files
    with mmrt.Model(path, bundle=bundle) as model, model.sequence() as sequence:
        program = limit(model, 0)
        sequence.extend(IDS[:1])
        sequence.extend(IDS[1:2])
        before = program.streaming
        for token in IDS[2:22]:
            sequence.extend([token])
        assert before is not None and program.streaming is not None
        done = program.streaming - before
        away = ["token_embd", "ffn_down"]
        away += ["ffn_up"] if "blk.0.ffn_gate.weight" in model.file else []
        matrices = sum(
            tensor.nbytes
            for name, tensor in model.file.items()
            if tensor.ndim == 2 and not any(role in name for role in away)
        )
        assert done.read - done.columns.read < 20 * 1.02 * matrices + (64 << 20) / 10
        assert 0 < done.columns.read < 20 * model.file["blk.0.ffn_down.weight"].nbytes


def test_neurons_that_are_forgotten_are_read_again(files: list[Path]) -> None:
    path, bundle = files
    with mmrt.Model(path) as model, model.sequence() as sequence:
        expected = np.stack([sequence.extend([token]) for token in IDS[:8]])
    with mmrt.Model(path, bundle=bundle) as model, model.sequence() as sequence:
        program = limit(model, 0.4)
        found = []
        for token in IDS[:8]:
            program.forget_columns()
            before = columns(program)
            found.append(sequence.extend([token]))
            done = columns(program) - before
            assert done.wanted == done.read_units > 0 and done.found == 0
        assert np.array_equal(expected, np.stack(found))
    with mmrt.Model(path, bundle=bundle) as model:
        model.program.forget_columns()  # of none
    with pytest.raises(ArgumentError, match="closed"):
        model.program.forget_columns()


def test_what_was_used_last_stays(files: list[Path]) -> None:
    path, bundle = files
    with mmrt.Model(path, bundle=bundle) as model:
        program = limit(model, 0)

        def misses(token: int) -> int:
            before = columns(program)
            with model.sequence() as sequence:
                sequence.extend([token])
            done = columns(program) - before
            assert done.wanted > 0 and done.read_units == done.wanted - done.found
            return done.read_units

        assert columns(program).slots < ROWS
        assert misses(IDS[0]) > 0 == misses(IDS[0])
        for token in range(20):
            misses(token)
            assert misses(token) == 0
        assert misses(IDS[0]) > 0


def test_the_least_budget_is_told(files: list[Path]) -> None:
    path, bundle = files
    with mmrt.Model(path, bundle=bundle) as model:
        least = model.program.plan(0).least
        assert model.program.plan(least).columns > 0
        with pytest.raises(OutOfMemoryError, match=f"the least is {least}"):
            model.program.set_budget(least - 1)
        model.program.set_budget(least)
        most = model.program.plan(0).most
        assert model.program.plan(most).columns == 0


def test_a_bundle_changes_nothing_of_what_is_always_kept(files: list[Path]) -> None:
    path, bundle = files
    with mmrt.Model(path) as without, mmrt.Model(path, bundle=bundle) as model:
        assert model.program.plan(0).rest == without.program.plan(0).rest
    with mmrt.Model(path, bundle=bundle, memory="1GiB") as model:
        assert np.isfinite(model.logits(IDS)).all()


def test_a_failed_read_names_the_neuron(tmp_path: Path) -> None:
    path, bundle = bundled(MODELS["gated"](), tmp_path)
    whole = bundle.read_bytes()
    with mmrt.Model(path) as model:
        expected = read(model)
    with mmrt.Model(path, bundle=bundle) as model:
        limit(model, 0)
        with model.sequence() as sequence:
            sequence.extend(IDS[:1])
            os.truncate(bundle, 8192)
            with pytest.raises(
                FileError, match=r"blk\.\d\.ffn_down\.neurons, neuron \d+: .*is gone"
            ):
                sequence.extend(IDS[1:2])
            with bundle.open("r+b") as file:
                file.write(whole)
            assert sequence.extend([IDS[1]]) is not None
        assert np.array_equal(expected, read(model))


def test_a_forked_child_reads_its_own(files: list[Path], forking_is_meant: None) -> None:
    path, bundle = files
    with mmrt.Model(path) as model:
        expected = read(model)
    with mmrt.Model(path, bundle=bundle, threads=1) as model:
        limit(model, 0)
        read(model)

        def child() -> None:
            assert np.array_equal(expected, read(model))

        in_child(child)
        assert np.array_equal(expected, read(model))


@pytest.mark.parametrize("reader", READERS)
def test_predicted_neurons_are_read_whole(files: list[Path], reader: str) -> None:
    """Neither up nor gate is streamed; logits are those of the predictor without a limit."""
    path, bundle = files
    needs_reader(reader, path)
    predictor = with_predictor(path, lambda layer, width: named(width, some(layer)))
    with mmrt.Model(path, predictor=predictor) as model:
        expected = read(model)
    with mmrt.Model(path, predictor=predictor, bundle=bundle) as model:
        assert np.array_equal(expected, read(model))
        for part in (0, 0.4, 1, 0.2, 0):
            program = limit(model, part, reader)
            before = columns(program)
            assert np.array_equal(expected, read(model))
            done = columns(program) - before
            if part < 1:
                assert done.wanted >= done.found > 0
                assert done.read_units == done.wanted - done.found
                assert done.read == done.read_units * done.slot_bytes


def test_of_what_is_predicted_nothing_else_is_read(files: list[Path]) -> None:
    path, bundle = files
    predictor = with_predictor(path, lambda layer, width: named(width, some(layer)))
    n_predicted = sum(int(some(i).sum()) for i in range(SHAPE["n_layers"]))
    with (
        mmrt.Model(path, predictor=predictor, bundle=bundle) as model,
        model.sequence() as sequence,
    ):
        program = limit(model, 0)
        for token in IDS[:2]:
            sequence.extend([token])
        before = program.streaming
        for token in IDS[2:22]:
            program.forget_columns()
            sequence.extend([token])
        assert before is not None and program.streaming is not None
        done = program.streaming - before
        assert done.columns.read_units == 20 * n_predicted
        assert f"lossy: neurons by {predictor}" in str(model.memory)
        others = sum(
            tensor.nbytes
            for name, tensor in model.file.items()
            if tensor.ndim == 2 and "ffn" not in name and "token_embd" not in name
        )
        assert done.read - done.columns.read < 20 * 1.02 * others + (64 << 20) / 10


def test_room_that_single_tokens_have_no_other_use_for_is_for_neurons(files: list[Path]) -> None:
    path, bundle = files
    predictor = with_predictor(path, lambda layer, width: named(width, some(layer)))
    found = []
    for more in (None, predictor):
        with mmrt.Model(path, bundle=bundle, predictor=more) as model:
            plan = model.program.plan(0)
            middle = model.program.plan((plan.least + plan.most) // 2)
            assert middle.columns + middle.kept + middle.ring <= (plan.least + plan.most) // 2
            found.append(middle.columns)
    assert found[1] >= found[0] > 0


@pytest.mark.parametrize("architecture", ["arcee", "nemotron_h"])
def test_other_architectures_with_zeros(architecture: str, tmp_path: Path) -> None:
    """Of feed-forward layers with the square of ReLU."""
    shape = {"n_embd": 2048, "n_ff": 640, "head_dim": 64, "n_vocab": 1000}
    path, bundle = bundled(
        tiny_architectures.tiny(architecture, False, type="F16", **shape), tmp_path
    )
    with mmrt.Model(path) as model:
        expected = read(model)
    with mmrt.Model(path, bundle=bundle) as model:
        program = limit(model, 0)
        assert np.array_equal(expected, read(model))
        assert columns(program).wanted > columns(program).found > 0


def test_layers_of_zeros_alone(tmp_path: Path) -> None:
    model = MODELS["gated"]()
    for i in range(SHAPE["n_layers"]):
        model.tensors[f"blk.{i}.ffn_gate.weight"].data[:] = 0
    path, bundle = bundled(model, tmp_path)
    with mmrt.Model(path) as opened:
        expected = read(opened)
    with mmrt.Model(path, bundle=bundle) as opened:
        program = limit(opened, 0)
        assert np.array_equal(expected, read(opened))
        assert columns(program).wanted == 0
