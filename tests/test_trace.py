"""Traces: what the core notes between layers, and what comes of it."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from machine import evict, needs_line
from tiny_models import gemma3, llama

import mmrt
from mmrt import trace
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.errors import ArgumentError
from mmrt.run.model import Model
from mmrt.sight import chrome_trace
from mmrt.sight.trace import Trace

N_LAYERS = 5
PROMPT = "a text to begin with"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "model.gguf"
    llama(n_layers=N_LAYERS, n_embd=256, n_ff=512, type="Q8_0").write(path)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return path


def recorded(model: Model, n: int, operations: bool = False) -> tuple[Trace, str]:
    with trace.recording(model, operations) as recorder:
        pieces = [recorder.note(p) for p in model.stream(PROMPT, max_tokens=n)]
    return recorder.trace, "".join(piece.text for piece in pieces)


# ---- marks ----


def test_marks_are_taken_where_they_were_asked_for(model_path: Path) -> None:
    with Model(model_path) as model:
        last = len(model.program.operations) - 1
        marks = np.full((4, 5), -7, np.int64)
        marks[:, 0] = [-1, 0, 3, last]
        logits = np.empty((1, model.vocab_size), np.float32)
        start = time.monotonic_ns()
        part = Part(Cache(model.program.store), np.array([1, 2], np.int32), 1)
        model.program.run([part], logits, marks)
        end = time.monotonic_ns()
    assert marks[:, 0].tolist() == [-1, 0, 3, last]
    times = marks[:, 1].tolist()
    assert start < times[0] < times[1] < times[2] < times[3] < end
    assert (np.diff(marks[:, 2:], axis=0) >= 0).all() and (marks[:, 2:] >= 0).all()


def test_marks_change_no_logits(model_path: Path) -> None:
    with Model(model_path) as model:
        bare = model.logits([1, 2, 3])
        with trace.recording(model, operations=True):
            watched = model.logits([1, 2, 3])
        assert np.array_equal(bare, watched) and np.array_equal(bare, model.logits([1, 2, 3]))


@pytest.mark.parametrize("numbers", [[0, 0], [3, 2], [-2], [1000], [2**40]])
def test_marks_that_make_no_sense(model_path: Path, numbers: list[int]) -> None:
    with Model(model_path) as model:
        marks = np.zeros((len(numbers), 5), np.int64)
        marks[:, 0] = numbers
        logits = np.empty((1, model.vocab_size), np.float32)
        for wrong, words in ((marks, "that rise"), (marks[:, :4].copy(), "5 columns")):
            with pytest.raises(ArgumentError, match=words):
                part = Part(Cache(model.program.store), np.array([1], np.int32), 1)
                model.program.run([part], logits, wrong)


# ---- what is recorded ----


def test_steps_stretches_and_texts(model_path: Path) -> None:
    with Model(model_path) as model:
        expected = model.generate(PROMPT, max_tokens=4)
        n_prompt = len(model.tokenize(PROMPT))
        found, text = recorded(model, 4)
        assert model.run_step == model.program.run  # watched no longer
    assert text == expected == "".join(step.text for step in found.steps)
    assert [step.n_tokens for step in found.steps] == [n_prompt, 1, 1, 1]
    assert [step.position for step in found.decode] == [n_prompt, n_prompt + 1, n_prompt + 2]
    layers = [f"blk.{i}" for i in range(N_LAYERS)]
    assert found.stretches == ["token_embd", *layers, "output_norm", "token_embd"]
    for step in found.steps:
        spans = step.spans
        assert len(spans) == len(found.stretches)
        assert sum(span.ns for span in spans) == step.whole.ns > 0
        assert spans[1].start_ns == spans[0].start_ns + spans[0].ns
    sums = found.by_label(found.steps)
    assert list(sums) == ["token_embd", *layers, "output_norm"]
    assert sum(span.ns for span in sums.values()) == sum(s.whole.ns for s in found.steps)


def test_long_prompts_are_several_steps(tmp_path: Path) -> None:
    path = gemma3(n_layers=7, context=600).write(tmp_path / "gemma.gguf")
    with Model(path) as model:
        with trace.recording(model) as recorder:
            for piece in model.stream([5] * 300, max_tokens=2):
                recorder.note(piece)
        found = recorder.trace
        assert [step.n_tokens for step in found.prompt] == [256, 44]
        assert len(found.decode) == 1 and found.decode[0].position == 300
        assert {f"blk.{i}" for i in range(7)} < set(found.stretches)


def test_steps_of_several_texts(model_path: Path) -> None:
    prompts = [PROMPT, "Two", "Three of them"]
    with Model(model_path) as model:
        expected = model.generate_all(prompts, max_tokens=3)
        with trace.recording(model) as recorder:
            assert model.generate_all(prompts, max_tokens=3) == expected
        steps = recorder.trace.steps
        assert sum(step.n_tokens for step in steps) == (
            sum(len(model.tokenize(prompt)) for prompt in prompts) + 3 * 2
        )
    assert [step.n_texts for step in steps[-2:]] == [3, 3] == [s.n_tokens for s in steps[-2:]]
    names = [event["name"] for event in chrome_trace.events(recorder.trace)["traceEvents"]]
    assert names.count("3 tokens of 3 texts") == 2


def test_each_operation_by_itself(model_path: Path) -> None:
    with Model(model_path) as model:
        found, _ = recorded(model, 2, operations=True)
        assert len(found.stretches) == len(model.program.operations)
    assert "blk.2 attend" in found.stretches and "blk.2 rotate, store keys and values" in (
        found.stretches
    )


def test_what_is_read_is_counted_where_it_is_read(model_path: Path) -> None:
    needs_line("/proc/self/io", "read_bytes")
    evict(model_path)
    # Without read-ahead, by which the vocabulary would bring all of so small a file with it.
    with Model(model_path, policy="random") as model:
        found, _ = recorded(model, 4)
        size = sum(tensor.nbytes for tensor in model.file.values())
    assert found.reads is not None
    first, rest = found.steps[0].whole, found.steps[1:]
    assert first.read_bytes > 0.5 * size and first.major_faults > 0
    assert sum(step.whole.read_bytes for step in rest) == 0
    assert found.reads.major_faults >= first.major_faults
    # In memory: nothing (but the header) before the first look, all after the last.
    assert sum(found.looks[0].resident.values()) < 0.2 * size
    assert found.looks[-1].resident == found.sizes
    assert found.looks[0].ns < found.steps[0].whole.start_ns < found.looks[-1].ns


def test_the_process_is_measured_before_and_after(model_path: Path) -> None:
    with Model(model_path) as model:
        found, _ = recorded(model, 2)
        assert found.page_tables
        before, after = found.page_tables
        assert before.tables <= after.tables and after.leaf >= 1
    assert found.before and found.after
    assert (found.after.peak_rss or 0) >= (found.before.peak_rss or 0)


# ---- Chrome's format ----


def test_events_nest_and_carry_their_costs(model_path: Path) -> None:
    with Model(model_path) as model:
        found, _ = recorded(model, 3)
    document = json.loads(json.dumps(chrome_trace.events(found)))
    events = document["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    steps = [e for e in events if e["ph"] == "X" and e["cat"] == "step"]
    layers = [e for e in events if e["ph"] == "X" and e["cat"] == "layer"]
    assert len(steps) == 3 and len(layers) == 3 * len(found.stretches)
    assert steps[0]["name"].startswith("prompt 0-") and steps[1]["name"].startswith("token ")
    assert "".join(step["args"]["wrote"] for step in steps)
    for layer in layers:
        (around,) = (
            step
            for step in steps
            if step["ts"] <= layer["ts"]
            and layer["ts"] + layer["dur"] <= step["ts"] + step["dur"] + 1e-3
        )
        assert around["tid"] == layer["tid"]
        assert {"minor_faults", "major_faults", "read_bytes"} <= layer["args"].keys()
    assert all(event["ts"] >= 0 for event in events if "ts" in event)
    resident = [e for e in events if e["name"] == "weights in memory, MiB"]
    assert len(resident) == len(found.looks) >= 2
    assert document["otherData"]["model"] == str(model_path)


def test_nothing_recorded_is_a_trace_too(model_path: Path) -> None:
    with Model(model_path) as model, trace.recording(model) as recorder:
        pass
    found = recorder.trace
    assert found.steps == found.prompt == found.decode == []
    assert json.dumps(chrome_trace.events(found))


def test_a_look_agrees_with_the_residency_of_the_file(model_path: Path) -> None:
    with mmrt.open(model_path) as file:
        file.evict()
        file.warm(file.select("1-2"))
    with Model(model_path) as model:
        with trace.recording(model) as recorder:
            pass
        now = model.file.residency()
        look = recorder.trace.looks[-1].resident
        for layer in now.layers:
            if layer.name:
                expected = now.layer(layer).resident * now.page_size
                assert look[layer.name] == expected
