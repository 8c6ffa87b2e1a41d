"""`mmrt trace`."""

import errno
import html
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from browser import dom
from command import call, start
from tiny_models import llama

PROMPT = "a text to begin with"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "model.gguf"
    return llama(n_layers=3, n_embd=128, n_ff=192, type="Q8_0").write(path)


def test_a_trace_a_picture_and_a_row_for_each_layer(model_path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "out.json"
    ended = call("trace", model_path, PROMPT, "-n", "5", "-o", trace, "--cold")
    assert ended.status == 0
    assert [line.split()[1] for line in ended.err.splitlines()] == ["evicted;", "wrote", "wrote"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event.get("cat") == "step" for event in events) == 5
    wrote = [e["args"]["wrote"] for e in events if e.get("cat") == "step"]
    text, _, table = ended.out.partition("\n\nlayer")
    assert text.split() == "".join(wrote).split() and text
    rows = [line.split() for line in table.splitlines()]
    assert [row[0] for row in rows[1:7]] == [
        *("token_embd", "blk.0", "blk.1", "blk.2", "output_norm", "all"),
    ]
    assert any(row[:3] == ["page", "tables", "(VmPTE)"] for row in rows)
    assert "5 one by one" not in trace.with_suffix(".html").read_text()
    assert "4 one by one" in trace.with_suffix(".html").read_text()


def test_a_full_disk_leaves_the_trace_that_was_there(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    trace = tmp_path / "out.json"
    trace.write_text("before")
    monkeypatch.setattr(os, "write", full)
    ended = call("trace", model_path, PROMPT, "-n", "2", "-o", trace)
    ended.assert_refused(1, "out.json", "No space left on device")
    assert trace.read_text() == "before" and os.listdir(tmp_path) == ["out.json"]


def test_the_trace_on_stdout(model_path: Path) -> None:
    ended = call("trace", model_path, PROMPT, "-n", "2", "-o", "-")
    assert ended.status == 0 and json.loads(ended.out)["traceEvents"]


def test_the_picture_in_a_browser(model_path: Path, tmp_path: Path) -> None:
    page = tmp_path / "picture.html"
    call("trace", model_path, PROMPT, "-n", 4, "-o", tmp_path / "t.json", "--html", page)
    text = page.read_text()
    assert re.findall(r'(?:src|href|url\(|@import)[^>]*|https?://[^"]*', text) == [
        "http://www.w3.org/2000/svg"
    ]
    count = "<script>document.title = document.querySelectorAll('.cell').length</script></body>"
    counted = tmp_path / "counted.html"
    counted.write_text(text.replace("</body>", count))
    seen = html.unescape(dom(counted))
    found = re.search(r"<title>(\d+)</title>", seen)
    assert found and int(found[1]) >= 4 * 5 + 4 * 3
    assert "time by layer, ms" in seen and "blk.2, prompt of" in seen


def test_the_picture_as_png(model_path: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = tmp_path / "picture.png"
    options = ("-n", 40, "-o", tmp_path / "t.json", "--png", picture, "--operations")
    assert call("trace", model_path, PROMPT, *options).status == 0
    with image.open(picture) as opened:
        assert opened.size[0] == 2160
        assert len(opened.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_anything_to_trace(model_path: Path, tmp_path: Path, n: int) -> None:
    ended = call("trace", model_path, PROMPT, "-n", n, "-o", tmp_path / "t.json")
    assert ended.status == 0, ended
    assert "blk.1" in ended.out


@pytest.mark.parametrize("arguments", ["", "a.gguf b c", "x.gguf y -n -3", "x.gguf y --fly"])
def test_wrong_usage(arguments: str) -> None:
    call("trace", *arguments.split()).assert_refused(2, "--help)")


def test_what_cannot_be_traced_is_one_line(model_path: Path, tmp_path: Path) -> None:
    call("trace", tmp_path / "no.gguf", PROMPT).assert_refused(1, "no.gguf")
    call("trace", model_path, "").assert_refused(1, "empty")
    nowhere = tmp_path / "no" / "t.json"
    ended = call("trace", model_path, PROMPT, "-n", 1, "-o", nowhere)
    ended.assert_refused(1, str(nowhere))


@pytest.mark.slow
def test_an_interrupt_leaves_the_trace_so_far(smollm2_path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    command = ("trace", smollm2_path, PROMPT, "-n", "2000", "-o", trace)
    environment = os.environ | {"MMRT_ISA": "ref"}  # slow enough to be caught at it
    with start(*command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as run:
        assert run.stdout and run.stdout.read(len(PROMPT) + 2)  # it goes on with the text
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in said
    assert json.loads(trace.read_text())["traceEvents"]
