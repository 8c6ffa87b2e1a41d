"""What is seen of an engine: in this process, at a socket, in a file; and what is no snapshot."""

import gc
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from children import in_child

import mmrt
from mmrt.errors import ArgumentError, FileError, FormatError, UnsupportedError
from mmrt.run.engine import Engine
from mmrt.run.snapshot import Snapshot
from mmrt.sight import chrome_trace, engines
from mmrt.sight.pictures import drawing
from mmrt.sight.pictures import engines as pictures

IDS = [3 + 7 * i % 250 for i in range(900)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(type="Q8_0", context=2048)
    return model.write(tmp_path_factory.mktemp("seen") / "m.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path, threads=1) as opened:
        yield opened


def seen_busy(engine: Engine) -> Snapshot:
    """With a text that has ended, two that write after 110 tokens alike, one whose prompt was just
    read, and one that came meanwhile."""
    engine.submit(IDS[:70], max_tokens=2, ignore_eos=True).text()
    gate, there = threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        there.set()
        gate.wait(30)

    writers = []
    for i in (1, 2):
        writers.append(engine.submit([*IDS[:110], i], max_tokens=None, ignore_eos=True))
        next(writers[-1])
    engine.submit([9, 9, 9], on_prefill=wait, max_tokens=1)
    assert there.wait(30)
    engine.submit([8, 8, 8], priority=5, max_tokens=1)
    found: list[Snapshot] = []
    thread = threading.Thread(target=lambda: found.append(engine.snapshot()))
    thread.start()
    while not engine._asked:
        time.sleep(0.001)
    gate.set()
    thread.join()
    for writer in writers:
        writer.cancel()
    return found[0]


def test_who_shares_what(model: mmrt.Model) -> None:
    with model.engine(kv=1 << 30) as engine:
        found = seen_busy(engine)
    assert (found.model, found.process, found.kv) == ("m.gguf", os.getpid(), 1 << 30)
    assert found.page_bytes == model.store.page_bytes
    by_number = {text.number: text for text in found.texts}
    assert list(by_number) == [1, 2, 3, 4, 5]
    ended, first, second, _, last = found.texts
    assert (ended.doing, ended.tokens) == (None, 71)
    assert {first.doing, second.doing} <= {"writing", "waiting"}
    assert (last.doing, last.priority, last.pages) == ("waiting", 5, [])
    assert first.pages[:3] == second.pages[:3] and first.pages[:2] == ended.pages[:2]
    assert [page.holders for page in first.pages[:4]] == [3, 3, 2, 1]
    assert first.pages[3].number != second.pages[3].number
    pages = {page.number for text in found.texts for page in text.pages}
    assert found.held == len(pages) * found.page_bytes
    assert found.logical == sum(len(text.pages) for text in found.texts) * found.page_bytes
    doings = [span.doing for span in found.spans if span.text == 2]
    assert doings[:2] == ["waiting", "reading"] and "writing" in doings
    assert all(0 <= span.start <= span.end <= found.seconds for span in found.spans)
    assert Snapshot.from_json(found.to_json()) == found


def test_it_is_drawn(model: mmrt.Model) -> None:
    with model.engine() as engine:
        found = seen_busy(engine)
    page = drawing.page(pictures.draw(found))
    assert "text 2, pages 0 to 1, tokens 0 to 63" in page and "held by text" in page
    assert "text 2: writing" in page
    events = chrome_trace.of_texts(found)["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == len(found.spans)
    assert {event["name"] for event in slices} >= {"waiting", "reading", "writing"}
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} >= {
        "text 1",
        "text 2",
    }


def test_an_engine_shows_what_is_parked(model: mmrt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrt.run.saved.Worth.saving", lambda *_: True)
    with model.engine(kv=14 * model.store.page_bytes) as engine:
        assert engine.snapshot().written == 0
        handles = [engine.submit([i, 5], max_tokens=300, ignore_eos=True) for i in (1, 2)]
        for handle in handles:
            handle.text()
        assert sum(handle.report.parked for handle in handles) >= 1
        found = engine.snapshot()
        assert "parked" in {span.doing for span in found.spans}
        assert found.written > 0 and found.read > 0
        assert any("written to the disk so far" in line for line in pictures.about(found))


def test_after_its_end(model: mmrt.Model) -> None:
    with model.engine() as engine:
        engine.submit([1], max_tokens=1).text()
        seen: list[Snapshot] = []
        engine.submit(
            [2], max_tokens=1, on_prefill=lambda *_: seen.append(engine.snapshot())
        ).text()
        assert seen  # the engine's own thread does not wait for itself

        def child() -> None:
            with pytest.raises(UnsupportedError, match="in the parent process"):
                engine.snapshot()

        in_child(child)
    with pytest.raises(ArgumentError, match="the engine is closed"):
        engine.snapshot()


# ---- the socket ----


def test_a_socket_for_its_owner_alone(model: mmrt.Model, tmp_path: Path) -> None:
    window = tmp_path / "engine"
    before = os.umask(0)
    try:
        engine = model.engine(sight=window)
    finally:
        os.umask(before)
    with engine:
        mode = os.lstat(window).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        engine.submit(IDS[:40], max_tokens=2, ignore_eos=True).text()
        for _ in range(3):
            found = engines.look(str(window))
            assert found.process == os.getpid() and [t.tokens for t in found.texts] == [41]
        with socket.socket(socket.AF_UNIX) as rude:  # goes without reading
            rude.connect(str(window))
        with pytest.raises(FileError, match="another engine shows itself there"):
            model.engine(sight=window)
        assert engines.look(str(window)).model == "m.gguf"
    assert not window.exists()
    with pytest.raises(FileError, match="No such file"):
        engines.look(str(window))


def test_a_socket_goes_with_its_engine(model: mmrt.Model, tmp_path: Path) -> None:
    window = tmp_path / "engine"
    engine = model.engine(sight=window)
    assert engines.look(str(window)).texts == []
    thread = engine._thread
    assert thread is not None
    del engine
    thread.join(10)
    gc.collect()
    assert not window.exists()


def test_what_a_killed_engine_left_is_replaced(model: mmrt.Model, tmp_path: Path) -> None:
    window = tmp_path / "engine"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(window))
    with pytest.raises(FileError, match="no engine is there any more"):
        engines.look(str(window))
    with model.engine(sight=window):
        assert engines.look(str(window)).texts == []
    window.write_text("a file of somebody's")
    with pytest.raises(FileError, match="it is there, and is no socket"):
        model.engine(sight=window)
    assert window.read_text() == "a file of somebody's"


def test_a_child_does_not_keep_it(model: mmrt.Model, tmp_path: Path) -> None:
    window = tmp_path / "engine"

    def child() -> None:
        engine.close()
        for descriptor in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # that of the list itself
                assert os.readlink(f"/proc/self/fd/{descriptor}") != place

    with model.engine(sight=window) as engine:
        assert engine._window is not None
        place = os.readlink(f"/proc/self/fd/{engine._window._socket.fileno()}")
        in_child(child)
        assert engines.look(str(window)).texts == []


@pytest.mark.parametrize(
    ("name", "words"), [("x" * 120, "too long"), ("no/engine", "No such file")]
)
def test_sockets_that_cannot_be(model: mmrt.Model, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(FileError, match=words):
        model.engine(sight=tmp_path / name)
    with pytest.raises(ArgumentError, match="sight: a path cannot hold NUL"):
        model.engine(sight="a\0b")


# ---- what is no snapshot ----


def whole() -> dict[str, Any]:
    return {
        "format": "mmrt engine 1", "model": "m\x1b[2J\x7f.gguf", "process": 7, "page_bytes": 64,
        "held": 128, "logical": 192, "kv": None, "copies": 0, "written": 0, "read": 0, "pss": None,
        "seconds": 2.5,
        "texts": [
            {"number": 1, "doing": "writing", "priority": -3, "p": 0, "prompt_tokens": 3,
             "tokens": 40, "pages": [[8, 2], [9, 1]], "checkpoints": []},
            {"number": 0, "doing": None, "priority": 0, "p": 0, "prompt_tokens": 0,
             "tokens": 32, "pages": [[8, 2]], "checkpoints": [32]},
        ],
        "spans": [[1, "waiting", 0, 0.5], [1, "writing", 0.5, 2.5]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("format", "else", "format: expected 'mmrt engine 1'"),
        ("model", 5, "model: expected a text, found 5"),
        ("held", -1, "held: expected a whole number from 0 on, found -1"),
        ("held", True, "held: expected a whole number"),
        ("held", 1e3, "held: expected a whole number"),
        ("held", 1 << 60, "held: expected a whole number"),
        ("kv", 0, "kv: expected a whole number from 1 on"),
        ("seconds", float("nan"), "seconds: expected seconds, found nan"),
        ("seconds", float("inf"), "seconds: expected seconds"),
        ("texts", {}, "texts: expected a list"),
        ("texts", [5], r"texts\[0\]: expected an object, found 5"),
        ("texts", [{}], r"texts\[0\]\.\w+: is missing"),
        ("spans", [[1, "waiting", 0]], r"spans\[0\]: expected 4 values"),
        ("spans", [[1, "\x1b", 0, 1]], r"spans\[0\]\[1\]: expected one of waiting.*found '\\x1b'"),
        ("more", 1, "more: is not known"),
    ],
)
def test_fields_are_checked(place: str, value: Any, words: str) -> None:
    Snapshot.from_json(json.dumps(whole()))
    with pytest.raises(FormatError, match=words):
        Snapshot.from_json(json.dumps(whole() | {place: value}))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000, "\x00", b"\xff\xfe\x00"])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(FormatError):
        Snapshot.from_json(text)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    file.write_text(json.dumps(whole()))
    assert engines.look(str(file)).saved == 64
    file.write_text("{}")
    with pytest.raises(FormatError, match=r"seen\.json: no snapshot of an engine: format"):
        engines.look(str(file))
    with pytest.raises(FileError, match="neither a socket nor a file"):
        engines.look(str(tmp_path))
    with pytest.raises(FileError, match="No such file"):
        engines.look(str(tmp_path / "none"))
