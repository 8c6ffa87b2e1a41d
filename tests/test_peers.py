"""The comparison with peers: a small run of it all, and engines that cannot take a model."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import HOME
from conftest import ROOT
from tiny_architectures import tiny

import mmrt
from bench import peers
from bench.engines import LIMIT, OURS, EngineError, Worker, needs
from bench.make_model import Shape, make_model

PEER = "llama.cpp mapped"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.peers", *map(str, arguments)],
        cwd=HOME,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # bench/, after mmrt as it is installed
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_small_run(tmp_path: Path) -> None:
    model, out = tmp_path / "small.gguf", tmp_path / "out.json"
    make_model(
        str(model), Shape(2, n_embd=256, n_ff=512, n_heads=4, n_kv_heads=2, n_vocab=300), "Q8_0"
    )
    done = run(model, "-p", 8, "-n", 4, "-d", 3, "-r", 2, "-t", 1, "-e", OURS, LIMIT, "-o", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["work"], row["engine"]) for row in rows] == [
        ("prefill", OURS),
        ("prefill", LIMIT),
        ("decode", OURS),
        ("decode", LIMIT),
    ]
    for row in rows:
        assert len(row["samples"]) == 2 and min(row["samples"]) > 0
        assert row["ratio" if row["engine"] == OURS else "share"] == 1
    assert rows[2]["depth"] == 3 and rows[0]["depth"] == 0
    assert "| small.gguf | decode 4 after 3 | mmrt" in done.stdout
    svg = out.with_suffix(".svg").read_text()
    assert "small.gguf, prefill 8" in svg and "tokens/s" in svg


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gpt-oss"])
def test_a_token_needs_some_experts_alone(name: str, tmp_path: Path) -> None:
    path = tiny(name, rich=True).write(tmp_path / "m.gguf")
    nbytes = products = 0
    with mmrt.Model(path) as model:
        used, n_experts = (
            model.file.metadata.get(f"{name}.{key}", 1)
            for key in ("expert_used_count", "expert_count")
        )
        for tensor in model.program.weights:
            share = used / n_experts if "_exps." in tensor.name else 1
            if tensor.name != "token_embd.weight" or "output.weight" not in model.file:
                nbytes += tensor.nbytes * share
            if tensor.name.startswith("blk.") and tensor.name.endswith(".weight"):
                products += tensor.size * share if tensor.ndim > 1 else 0
        assert needs(model.program) == (nbytes, products)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUX" + bytes(100))
    done = run(path, "-e", OURS, LIMIT)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"bench\.peers: mmrt: .*no\.gguf.*\n", done.stderr)


class Fake:
    """An engine of two tokens a second, or one that cannot start."""

    version = "1"

    def __init__(self, name: str, path: str, threads: int) -> None:
        if name == PEER:
            raise EngineError(f"{name}: no such type")

    def measure(self, work: str, n: int, *depth: int) -> float:
        return n / 2

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def test_a_peer_that_dies_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mortal(Fake):
        def __init__(self, name: str, path: str, threads: int) -> None:
            self.left = 3 if name == PEER else 99

        def measure(self, work: str, n: int, *depth: int) -> float:
            self.left -= 1
            if not self.left:
                raise EngineError("its process ended")
            return n / 2

    monkeypatch.setattr(peers, "Worker", Mortal)
    rows = peers.compare("a.gguf", {"prefill": (4,), "decode": (4, 1)}, 2, 1, [OURS, PEER, LIMIT])
    assert [(row.work, row.engine, len(row.samples)) for row in rows] == [
        (work, name, 2) for work in ("prefill", "decode") for name in (OURS, LIMIT)
    ]
    assert capsys.readouterr().err == "bench.peers: left out: its process ended\n"


def test_a_process_that_ends_is_an_engines_error(tmp_path: Path) -> None:
    model = tmp_path / "small.gguf"
    shape = Shape(1, n_embd=256, n_ff=256, n_heads=2, n_kv_heads=1, n_vocab=300)
    make_model(str(model), shape, "Q8_0")
    with Worker(OURS, str(model), 1) as worker:
        os.kill(worker._process.pid or 0, signal.SIGKILL)
        with pytest.raises(EngineError, match="mmrt: its process ended in decode"):
            worker.measure("decode", 1, 1)


def test_a_peer_that_cannot_take_the_model_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "Worker", Fake)
    rows = peers.compare("a.gguf", {"decode": (4, 1)}, 1, 1, [OURS, PEER, LIMIT])
    assert [row.engine for row in rows] == [OURS, LIMIT]
    assert [row.tokens_per_second for row in rows] == [2, 2]
    assert capsys.readouterr().err == f"bench.peers: left out: {PEER}: no such type\n"
