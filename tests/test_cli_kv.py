"""`mmrt kv`."""

import io
import json
from pathlib import Path

import pytest
import tiny_models
from command import call
from test_snapshot import whole

import mmrt

IDS = [3 + 7 * i % 250 for i in range(200)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A snapshot of a model whose name would steer a terminal."""
    path = tmp_path / "seen.json"
    path.write_text(json.dumps(whole()))
    return path


def test_a_running_engine(tmp_path: Path) -> None:
    path = tiny_models.llama(context=512).write(tmp_path / "m.gguf")
    with mmrt.Model(path) as model, model.engine(sight=tmp_path / "e") as engine:
        for i in range(2):
            engine.submit([*IDS[:100], i, i, i], max_tokens=3, ignore_eos=True).text()
        ended = call("kv", tmp_path / "e")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith("m.gguf, process ")
    assert lines[1] == "0 texts go on, 2 have ended and are kept"
    assert "1 pages copied so far" in ended.out
    rows = [line.split() for line in lines if line.startswith("text ")]
    assert rows[1][:5] == ["text", "1", "ended", "105", "4"] and rows[1][-3:-1] != []
    assert "(held by 2)" in ended.out and "waiting" in ended.out


def test_a_file(file: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "p.html", tmp_path / "t.json"
    ended = call("kv", file, "--html", page, "--trace", trace)
    assert ended.status == 0, ended.err
    assert "\x1b" not in ended.out and "\x7f" not in ended.out and r"m\x1b[2J\x7f.gguf" in ended.out
    assert "128 bytes held" in ended.out.replace("128.0 bytes", "128 bytes") or "held" in ended.out
    text = page.read_text()
    assert "\x1b" not in text and "text 1, page 0, tokens 0 to 31" in text
    assert {e["name"] for e in json.loads(trace.read_text())["traceEvents"]} >= {"writing"}
    found = call("kv", file, "--json")
    assert json.loads(found.out) == whole() and "\x7f" not in found.out
    assert call("kv", file, "--html", "-").out.startswith("<!")


def test_refusals(file: Path, tmp_path: Path) -> None:
    call("kv").assert_refused(2, "no engine is named", "model.engine(sight=PATH)")
    call("kv", tmp_path / "none").assert_refused(1, "none", "No such file")
    file.write_text("")
    call("kv", file).assert_refused(1, "seen.json", "no snapshot of an engine: the file is empty")
    file.write_text('{"format": "\x1b"}')
    call("kv", file).assert_refused(1, "seen.json", "no snapshot of an engine")


def test_on_a_terminal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from mmrt.run.snapshot import Snapshot
    from mmrt.sight.pictures.engines import TerminalEngine

    snapshot = Snapshot.from_json(file.read_text())
    for colours in (None, "truecolor"):
        console = Console(
            width=60,
            color_system=colours,
            force_terminal=True,
            record=True,
            file=io.StringIO(),
        )
        console.print(TerminalEngine(snapshot))
        lines = console.export_text().splitlines()
        assert lines[0].startswith("text 1 writing 40") and "2" in lines[0]
        assert lines[1].startswith("kept ended 32")
        assert lines[-1].startswith("0.00 to 2.50 s: . waiting")
        timeline = lines[-2].split("text 1", 1)[1].strip()
        assert timeline.count("w") > 3 * timeline.count(".") > 0
