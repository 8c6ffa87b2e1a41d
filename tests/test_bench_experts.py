"""What bench.experts and bench.disk make of what they have measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

import mmrt
from bench.disk import DEPTHS, SIZES, break_even
from bench.experts import headline
from bench.limits import Run
from bench.make_model import SHAPES, make_model, routing_of
from mmrt.sight import replay, routing

SMALL = replace(
    SHAPES["30B-A3B"], n_layers=3, n_embd=128, n_ff_expert=64, n_vocab=700, n_heads=2,
    n_kv_heads=1, head_dim=32, n_experts=16, n_used=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "m.gguf"
    make_model(str(path), SMALL, "Q8_0", routing=routing_of(SMALL, "skewed", "Q8_0"))
    return path


def test_a_run_and_its_figures(path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    command = [sys.executable, "-m", "bench.routed", "mmrt", str(path), "8", "20", "100", "1"]
    environment = {"PYTHONPATH": f"{Path(mmrt.__file__).parents[1]}:{ROOT}"}
    done = subprocess.run(
        [*command, str(trace)], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["warm"], len(found["seconds"]), len(found["answers"])) == (8, 20, 28)
    recorded = routing.read(trace)
    slots = replay.slots(recorded, 0.25)
    simulated = replay.replay(recorded, "score", slots)
    wanted, hits = (int(x[8:].sum()) for x in (simulated.wanted, simulated.found))
    read = int(simulated.missed_bytes[8:].sum())
    run = Run("mmrt", 1 << 30, disk=2e9, peak=1 << 29, found=found)
    run.found |= {"slots": [[n + 4096, m] for n, m in slots.items()], "wanted": wanted}
    run.found |= {"found": hits, "experts_read": read, "process_read": 2 * read, "stall": 0.25}
    longer = replace(recorded, steps=[*recorded.steps, 1])  # of another run
    longer.choices = recorded.choices[[*range(28), 0]]
    rows = dict(headline([run], 1 << 30, longer, 1e10, run))
    assert rows["slots"] == "12 of 48 experts"
    assert rows["found in memory"] == f"{hits / wanted:.2%}"
    assert rows["by replay: mmrt's rule; LRU; Belady"].startswith(rows["found in memory"] + ";")
    assert rows["read / missed by replay"] == "1.000"
    assert rows["read by the process / experts'"] == "2.000"
    assert rows["the same logits as without a limit"] == "yes"
    assert rows["peak of the cgroup"] == "512 of 1024 MiB"


def test_the_engine_finds_what_a_replay_finds(path: Path) -> None:
    with mmrt.Model(path) as model:
        ends = model.program.plan(0)
        model.program.set_budget(int(ends.least + 0.3 * (ends.most - ends.least)))
        with routing.recording(model) as recorder, model.sequence() as sequence:
            sequence.extend(range(24))
            for token in range(24, 60):
                sequence.extend([token])
        streaming = model.program.streaming
        assert streaming
        done, trace = streaming.experts, recorder.trace
    found = replay.replay(trace, "score", {trace.expert_bytes[0]: done.slots})
    assert 0 < done.slots < 48
    assert (done.wanted, done.found) == (found.wanted.sum(), found.found.sum())
    assert 0 < done.found < done.wanted


def test_break_even() -> None:
    """A neuron of 8 KiB, at half of the largest speed; one of 9 KB takes three blocks."""
    found = {size: dict.fromkeys(DEPTHS, 1e9 if size <= 8192 else 2e9) for size in SIZES}
    assert break_even(found, 2048, 16, False) == pytest.approx(0.5)
    assert break_even(found, 4096, 4.5, False) == pytest.approx(4608 / 8192 / 2)
    assert break_even(found, 2048, 18, False) == pytest.approx(9216 / 12288 * 1.5 / 2)
