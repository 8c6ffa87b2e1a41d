"""The benchmark under a limit: its arithmetic, its cgroup, and a small run of it all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from command import HOME
from machine import memory_cgroup, needs_reader

from bench import cgroups, limits
from bench.limited import OURS, PEER
from bench.limits import Run

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def made(engine: str, limit: int | None, seconds: float, kept: int, answers: list[int]) -> Run:
    found = {
        "seconds": [seconds] * 4,
        "weights": 1000,
        "kept": kept,
        "read": 1.01 * (1000 - kept),
        "stall": 0.5,
        "answers": answers,
        "prefill": 2 * seconds,
    }
    return Run(engine, limit, disk=500.0, peak=limit, found=found)


FREE = made(OURS, None, 0.25, 1000, [1, 2])


def test_the_bound_is_the_slower_of_disk_and_arithmetic() -> None:
    assert made(OURS, MIB, 1, 500, []).bound(0.25) == 1.0  # 500 bytes at 500 a second
    assert made(OURS, MIB, 1, 900, []).bound(0.25) == 4.0


def test_a_headline_says_what_was_found() -> None:
    runs = [made(OURS, MIB, 1.25, 500, [1, 2]), made(PEER, MIB, 4.0, 0, [])]
    runs.append(Run("llama.cpp no mmap", MIB, ended="killed", kills=1))
    rows = dict(limits.headline(runs, FREE, MIB))
    assert rows["mmrt, tokens/s"] == "0.800" and rows["mmrt / bound"] == "0.80"
    assert rows[f"mmrt / {PEER}"] == "3.20" and rows["bytes read a token / (S-P)"] == "1.010"
    assert rows["kills"] == "0" and rows["llama.cpp no mmap"].startswith("killed")
    assert rows["the same logits as without a limit"] == "yes"
    runs[0].found["answers"] = [1, 3]
    assert dict(limits.headline(runs, FREE, MIB))["the same logits as without a limit"] == "NO"


def test_a_sweep_has_a_row_for_each_limit() -> None:
    runs = [made(OURS, n * MIB, 1 / n, 500, []) for n in (1, 2)] + [made(PEER, MIB, 2, 0, [])]
    rows = limits.sweep_rows(runs, FREE)
    assert [row[0] for row in rows] == ["limit", "1 MiB", "2 MiB", "none"]
    assert [row[1] for row in rows[1:]] == ["1.00", "2.00", "4.00"]
    assert rows[2][-1] == "does not run"
    assert limits.picture(sys.executable, runs, FREE).items


@pytest.mark.root
def test_a_small_model_under_a_limit(tmp_path: Path) -> None:
    with memory_cgroup():
        pass  # one can be made
    with cgroups.MemoryCgroup(64 * MIB) as group:
        assert group.kills == 0
    shape = {"n_layers": 6, "n_embd": 512, "n_ff": 2048, "head_dim": 64, "n_heads": 8}
    model = tiny_models.llama(type="Q8_0", n_vocab=4000, context=4096, **shape)
    path = model.write(tmp_path / "m.gguf")
    with path.open("rb") as written:
        os.fsync(written.fileno())
    needs_reader("threads", path)
    command = [sys.executable, "-m", "bench.limits", str(path), "--limit", "60MiB", "-r", "1"]
    out = tmp_path / "runs.json"
    done = subprocess.run(
        [*command, "-n", "2", "--engines", "mmrt", "-o", str(out)],
        cwd=HOME,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # bench/, after mmrt as it is installed
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| the same logits as without a limit | yes |" in done.stdout
    (run,) = json.loads(out.read_text())["runs"]
    assert run["kills"] == 0 and len(run["found"]["seconds"]) == 2
