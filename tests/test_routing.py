"""Traces of which experts tokens go to: recorded, written, read."""

import io
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from rich.console import Console
from tiny_architectures import tiny
from together import extend_together

import mmrt
from bench.make_model import SHAPES, make_model, routing_of
from bench.routing import Routing
from mmrt.core.program import Part
from mmrt.errors import ArgumentError, FileError, FormatError
from mmrt.sight import routing
from mmrt.sight.pictures import experts as picture
from mmrt.sight.routing import RoutingTrace

SMALL = replace(
    SHAPES["30B-A3B"], n_layers=3, n_embd=128, n_ff_expert=32, n_vocab=700, n_heads=2,
    n_kv_heads=1, head_dim=32, n_experts=16, n_used=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Routing]:
    path = tmp_path_factory.mktemp("routing") / "made.gguf"
    set_beforehand = routing_of(SMALL, "skewed", "Q8_0")
    make_model(str(path), SMALL, "Q8_0", routing=set_beforehand)
    return path, set_beforehand


@pytest.mark.parametrize("threads", [1, 2])
def test_a_made_model_chooses_what_was_set(made: tuple[Path, Routing], threads: int) -> None:
    """In steps of one token, of all, and where only the last one has logits."""
    path, expected = made
    steps = expected.steps
    with mmrt.Model(path, threads=threads) as model, routing.recording(model) as recorder:
        with model.sequence() as sequence:
            for token in range(steps):
                sequence.extend([token])
        model.logits(range(steps))
        with model.sequence() as sequence:
            sequence.extend(range(steps))
    trace = recorder.trace
    assert trace.steps == [1] * steps + [steps, steps] and trace.n_experts == SMALL.n_experts
    found = np.sort(trace.choices, axis=-1)
    for first in (0, steps):
        assert np.array_equal(found[first : first + steps], expected.choices)
    assert np.array_equal(found[2 * steps :, :-1], expected.choices[:, :-1])
    assert (found[2 * steps : -1, -1] == -1).all()
    assert np.array_equal(found[-1, -1], expected.choices[-1, -1])


def test_what_a_model_is_of(made: tuple[Path, Routing]) -> None:
    with mmrt.Model(made[0]) as model, routing.recording(model) as recorder:
        model.generate([1, 2, 3], max_tokens=2)
        together = [model.sequence(), model.sequence()]
        extend_together([(sequence, [5, 6]) for sequence in together])
        every = {tensor.name: tensor for tensor in model.program.weights}
        assert model.run_step != model.program.run
    trace = recorder.trace
    assert trace.layers == [0, 1, 2] and trace.steps[:2] == [3, 1] and sum(trace.steps[2:]) == 4
    experts = {name: t for name, t in every.items() if "_exps" in name}
    assert sum(trace.expert_bytes) * 16 == sum(tensor.nbytes for tensor in experts.values())
    dense = {name: t for name, t in every.items() if name not in experts}
    assert trace.dense_bytes == sum(
        t.nbytes for name, t in dense.items() if name != "token_embd.weight"
    )
    before = len(recorder.trace.steps)
    with mmrt.Model(made[0]) as model:
        model.logits([1])
    assert len(recorder.trace.steps) == before


@pytest.mark.parametrize("architecture", ["gpt-oss", "ernie4_5-moe"])
def test_layers_without_experts_are_left_out(architecture: str, tmp_path: Path) -> None:
    path = tiny(architecture, True).write(tmp_path / "m.gguf")
    with mmrt.Model(path) as model, routing.recording(model) as recorder:
        model.logits(range(5))
        with_experts = {
            int(t.name.split(".")[1]) for t in model.program.weights if "ffn_gate_inp" in t.name
        }
    trace = recorder.trace
    assert set(trace.layers) == with_experts and all(trace.expert_bytes)
    assert (trace.choices >= 0).all() and trace.choices.max() < trace.n_experts
    assert all(len(set(row.tolist())) == len(row) for rows in trace.choices for row in rows)


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    path = tiny_models.llama().write(tmp_path / "m.gguf")
    with mmrt.Model(path) as model:
        with pytest.raises(ArgumentError, match=r"m\.gguf: the model has no experts"):
            routing.recording(model).__enter__()
        with model.sequence() as sequence, pytest.raises(ArgumentError, match="room for 4"):
            part = Part(sequence._cache, np.zeros(1, np.int32), 0)
            model.program.run([part], choices=np.zeros(4, np.int32))


def some() -> RoutingTrace:
    choices = np.array(
        [[[3, 1], [-1, -1]], [[1, 0], [2, 3]], [[1, 3], [2, 0]], [[0, 3], [1, 3]]], np.int16
    )
    return RoutingTrace("a model.gguf", 4, [2, 5], [100, 200], 1000, [2, 1, 1], choices)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.xz"])
def test_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    some().write(path)
    data = path.read_bytes()
    text = lzma.decompress(data) if name.endswith("xz") else data
    assert text.decode().splitlines()[:6] == [
        "# mmrt routing trace 1",
        "# model=a_model.gguf n_expert=4 dense_bytes=1000",
        "# layer=2 expert_bytes=100",
        "# layer=5 expert_bytes=200",
        "step,token,layer,expert",
        "0,0,2,3",
    ]
    found = routing.read(path)
    assert np.array_equal(found.choices, some().choices)
    same = {"choices": found.choices, "model": found.model}
    assert [getattr(found, name) for name in vars(found) if name not in same] == [
        getattr(some(), name) for name in vars(found) if name not in same
    ]


def test_files_of_others(tmp_path: Path) -> None:
    """Their `step` is a token, and a prompt's choices come layer by layer."""
    path = tmp_path / "t.csv"
    path.write_text(
        "# route_trace v1\n# model=/data/x.gguf arch=qwen3moe n_layer=2 n_expert=4\n"
        "# layer=0 expert_bytes=10 dense_bytes=7\n# layer=1 expert_bytes=10 dense_bytes=8\n"
        "turn,phase,step,layer,slot,expert,weight\n"
        "0,0,0,0,0,3,0.5\n0,0,0,0,1,1,0.5\n0,0,1,0,0,2,0.5\n0,0,1,0,1,0,0.5\n"
        "0,0,1,1,0,1,0.5\n0,0,1,1,1,2,0.5\n"
    )
    found = routing.read(path)
    assert found.choices.tolist() == [[[3, 1], [-1, -1]], [[2, 0], [1, 2]]]
    assert (found.steps, found.dense_bytes, found.model) == ([1, 1], 15, "x.gguf")
    assert found.n_experts == 4 and found.bank_bytes == 80


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 0: no column 'step'"),
        ("step,layer\n1,2\n", "line 1: no column 'expert'"),
        ("step,layer,expert\n", "no choice"),
        ("step,layer,expert\n0,0,1\n0,0\n", "line 3: expected 3 columns"),
        ("step,layer,expert\n0,0,-1\n", "line 2: expert: '-1' is no whole number"),
        ("step,layer,expert\n0,0,x\n", "line 2: expert: 'x'"),
        ("step,layer,expert\n0,0,99999\n", "line 2: expert 99999 of layer 0"),
        ("step,layer,expert\n0,0,1\n0,0,1\n", "line 3: expert 1 is chosen twice"),
        ("# n_expert=1\nstep,layer,expert\n0,0,1\n", "n_expert=1, and expert 1 is chosen"),
        ("# layer=x\nstep,layer,expert\n0,0,1\n", "line 1: layer: 'x'"),
        ("step,token,layer,expert\n0,0,0,1\n1,0,1,1\n", "line 3: token 0 is in two steps"),
        ("step,token,layer,expert\n1,0,0,1\n0,1,0,1\n", "a token is before one of an earlier step"),
    ],
)
def test_bad_files(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(FormatError) as raised:
        routing.read(path)
    assert str(path) in str(raised.value) and why in str(raised.value)


def test_files_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    for name in ("t.csv.xz", "t.csv"):
        path = tmp_path / name
        path.write_bytes(b"\xff\xfe no text")
        with pytest.raises(FormatError, match=name):
            routing.read(path)
        with pytest.raises(FileError, match="gone"):
            routing.read(tmp_path / "gone" / name)
        with pytest.raises(FileError, match="gone"):
            some().write(tmp_path / "gone" / name)
    whole = tmp_path / "t.csv.xz"
    some().write(whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"t\.csv\.xz"):
        routing.read(whole)


def test_statistics() -> None:
    trace = some()
    assert trace.uses().tolist() == [[2, 3, 0, 3], [1, 1, 2, 2]]
    assert trace.again(1) == (1 + 1 + 1 + 0 + 1 + 0) / 12  # of those after the first
    assert trace.share_of_most_used(1) == (3 + 2) / 14


def test_pictures() -> None:
    shares = picture.shares(some())
    assert shares[0].tolist() == [0.75, 0.75, 0.5, 0] and shares[1, 0] == pytest.approx(2 / 3)
    drawn = picture.draw(some())
    assert "layer 2\nexpert 1: 3\nexpert 3: 3\nexpert 0: 2" in [tip.text for tip in drawn.tips]
    console = Console(width=60, color_system=None, record=True, file=io.StringIO())
    console.print(picture.TerminalExperts(some()))
    lines = console.export_text().splitlines()
    assert lines[0].split() == ["2", "▓▓▒·", "3", "used,", "38%", "by", "a", "quarter"]
