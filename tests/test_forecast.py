"""Forecasts of budgets, and `mmrt inspect --memory`, which shows them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command import call
from machine import reads_by

import mmrt
from mmrt import counters
from mmrt.memory.budget import first_text
from mmrt.sight import forecast, routing
from mmrt.sight.forecast import Forecast, Machine
from mmrt.sight.pictures import curves, drawing

MIB = 1 << 20
MACHINE = Machine("mapped", disk=1e9, memory=1e10)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(
        type="Q8_0",
        n_layers=10,
        n_embd=512,
        n_ff=2048,
        head_dim=64,
        n_heads=8,
        n_vocab=4000,
        separate_output=True,
    )
    return model.write(tmp_path_factory.mktemp("forecast") / "m.gguf")


def test_seconds_are_the_longer_of_two(path: Path) -> None:
    with mmrt.Model(path, memory="2GiB") as model:
        rows = forecast.others(model, MACHINE)
        for row in rows:
            disk, compute = row.plan.streamed / 1e9, row.plan.total / 1e10
            assert row.seconds == max(disk, compute)
            assert row.rate == 1 / row.seconds
        assert rows[0].plan.kept == 0 and rows[-1].plan.streamed == 0
        assert [r.budget for r in rows] == sorted(r.budget for r in rows)
        assert [r.rate for r in rows] == sorted(r.rate for r in rows)


def test_layers_add_up(path: Path) -> None:
    with mmrt.Model(path, memory="2GiB") as model:
        middle = forecast.others(model, MACHINE, 3)[1]
        rows = middle.by_layer(model)
        assert sum(kept for _, kept, _ in rows) == middle.plan.kept > 0
        assert sum(streamed for _, _, streamed in rows) == middle.plan.streamed > 0
        assert [name for name, _, _ in rows][:4] == ["blk.0", "blk.1", "blk.2", "blk.3"]


def test_the_least_budget_of_a_forecast_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is foreseen for a budget is what a model opened with it does."""
    used = counters.resident()
    monkeypatch.setattr(counters, "resident", lambda: used)
    with mmrt.Model(path, memory="2GiB") as model:
        rows = forecast.others(model, MACHINE, 5)
        text = first_text(model.program)  # foreseen, and not there yet
    with mmrt.Model(path, memory=rows[1].budget) as model:
        expected = rows[1].plan.streamed - text
        assert model.memory.streamed == pytest.approx(expected, abs=3 * MIB)


def test_the_machine_is_measured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmrt.Model(path) as model:
        found = forecast.measure(model)
        assert reads_by(found.reader, path) and found.memory > 0
        # The middle of several, of the disk and of memory.
        disk, memory = iter([7.0, 1.0, 3.0]), iter([20.0, 50.0, 10.0])
        monkeypatch.setattr(forecast, "_TIMES", 3)
        monkeypatch.setattr(forecast, "probe", lambda *_: next(disk))
        monkeypatch.setattr(forecast, "roof", lambda *_: next(memory))
        assert forecast.measure(model) == Machine(found.reader, 3.0, 20.0)


def test_the_command(path: Path, tmp_path: Path) -> None:
    budget = sum(counters.resident()) + 24 * MIB
    text = call("inspect", path, "--memory", f"{budget}").out
    for word in ("kept in memory", "blk.3", "tokens/s", "measured"):
        assert word in text
    picture = tmp_path / "plan.png"
    pytest.importorskip("PIL")
    done = call("inspect", path, "--memory", "1GiB", "--json", "--png", picture)
    report = json.loads(done.out)
    assert report["chosen"]["streamed"] == 0 and len(report["others"]) == 10
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", ["0", "-1GiB", "much", "1XB"])
def test_sizes_that_are_none(path: Path, size: str) -> None:
    ended = call("inspect", path, f"--memory={size}")
    assert ended.status == 2 and "--memory" in ended.err


def test_too_small_a_budget(path: Path) -> None:
    ended = call("inspect", path, "--memory", "1MiB")
    ended.assert_refused(1, "needs at least")


def test_a_picture_needs_a_budget(path: Path, tmp_path: Path) -> None:
    call("inspect", path, "--png", tmp_path / "p.png").assert_refused(2, "--memory")


def test_curves() -> None:
    picture = curves.draw(
        "title", "x", "y",
        [curves.Curve("one", [(1, 2), (3, 4)]), curves.Curve("two", [(0, 0)], dots=False)],
        [curves.Mark(2.5, "here")],
    )  # fmt: skip
    svg = drawing.svg(picture)
    assert all(word in svg for word in ("title", "one", "two", "here"))
    assert curves.draw("empty", "x", "y", []).items


def test_a_trace_tells_what_experts_are_found(tmp_path: Path) -> None:
    path = tiny_models.qwen3moe(n_layers=3, experts={"count": 16}).write(tmp_path / "moe.gguf")
    draw = np.random.default_rng(1)
    with mmrt.Model(path, memory="2GiB") as model:
        shape = routing.shape_of(model)
        n_used = shape.choices.shape[2]
        common, rare = np.arange(n_used), 8 + np.arange(n_used)
        chosen = np.where(draw.random((90, 3, 1)) < 0.9, common, rare).astype(np.int16)
        trace = replace(shape, steps=[1] * 90, choices=chosen)
        ends = model.program.plan(0)
        rates, found = [], []
        for budget in (ends.least, (ends.least + ends.most) // 2, ends.most):
            expected = Forecast(budget, model.program.plan(budget), MACHINE)
            made = forecast.routed(model, expected, trace, "t.csv")
            rates.append(made.rate)
            found.append(made.hit_rate)
            assert (made.missed == 0) == (made.hit_rate == 1)
        assert rates == sorted(rates) and found == sorted(found)
        assert found[0] < found[-1] == 1
        other = replace(trace, n_experts=8)
        with pytest.raises(mmrt.ArgumentError, match=r"t.csv: 3 layers of 8 .* has 3 of 16"):
            forecast.routed(model, expected, other, "t.csv")


def test_the_command_with_a_trace(tmp_path: Path) -> None:
    path = tiny_models.qwen3moe(n_layers=3).write(tmp_path / "moe.gguf")
    trace = tmp_path / "t.csv"
    assert call("experts", path, "--ids", "0:20", "--trace", trace).status == 0
    done = call("inspect", path, "--memory", "1GiB", "--routing", trace)
    assert "100.0% of the experts that the trace chooses" in done.out
    done = call("inspect", path, "--memory", "1GiB", "--routing", trace, "--json")
    assert json.loads(done.out)["routed"]["hit_rate"] == 1
    call("inspect", path, "--routing", trace).assert_refused(2, "--memory")
