"""`mmrt residency`, `warm`, `evict` and `pagetables`."""

import errno
import html
import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from browser import dom, screenshot
from command import Ended, await_text, call, start
from hostile import make_gguf as make
from machine import evict
from pages import PAGE, without_privilege
from tiny_models import llama

import mmrt
from mmrt.sight.pictures import colours, heatmap
from mmrt.sight.pictures.drawing import Words, png

N_LAYERS = 12


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "model.gguf"
    llama(n_layers=N_LAYERS, n_embd=128, n_ff=192, type="F16").write(path)
    with path.open("rb") as out:
        os.fsync(out.fileno())
    return path


@pytest.fixture
def model_path(written: Path) -> Path:
    """Layers 3 and 4 of it and parts of others are in memory; the rest is not."""
    evict(written)
    with mmrt.open(written) as file:
        file.warm(file.select("3-4"))
        file.warm(file.select("7", ["*.ffn_up.*"]))
    return written


# ---- tables and JSON ----


def test_a_row_for_each_layer_and_for_tensors_of_none(model_path: Path) -> None:
    ended = call("residency", model_path)
    assert (ended.status, ended.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines()}
    assert len(rows) == 1 + 1 + 2 + N_LAYERS
    with mmrt.open(model_path) as file:
        now = file.residency()
        for layer in now.layers[1:]:
            found = now.layer(layer)
            assert rows[layer.name][:2] == [str(found.resident), str(found.total)]
        whole = [str(now.whole.resident), str(now.whole.total)]
    assert rows["blk.3"][-2:] == ["100.0%", "mincore"]
    assert rows["blk.9"][-2:] == ["0.0%", "mincore"]
    assert rows[str(model_path)][:2] == whole
    assert "token_embd" in rows and "output_norm" in rows


def test_the_same_as_json(model_path: Path) -> None:
    report = json.loads(call("residency", model_path, "--json").out)
    with mmrt.open(model_path) as file:
        now = file.residency()
        assert (report["resident"], report["pages"]) == now.whole[:2]
        assert report["source"] == "mincore" and report["page_size"] == PAGE
        (only,) = report["files"]
        assert only["runs"] == [list(run) for run in now.whole.runs()]
        assert len(report["layers"]) == N_LAYERS
        for row in report["tensors"]:
            found = file[row["name"]].residency()
            assert (row["resident"], row["pages"]) == found[:2]
            assert row["name"].startswith(row["layer"] or row["role"])
    tables = only["page_tables"]
    assert tables["bytes"] == (tables["leaf"] + tables["middle"]) * PAGE


@pytest.mark.root
def test_a_stranger_is_told_what_the_figures_are(model_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that another user may not write")
    model_path.chmod(0o644)

    with model_path.open("rb") as opened:

        def look() -> None:
            ended = call("residency", f"/proc/self/fd/{opened.fileno()}")
            assert ended.status == 0, ended
            assert "only to its owner" in ended.err and ended.err.count("\n") == 1
            assert "mincore" not in ended.out and "pagemap" in ended.out

        without_privilege(look)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--json",
        "model.gguf --watch",
        "model.gguf --watch 0",
        "model.gguf --watch soon",
        "model.gguf --watch --json",
    ],
)
def test_wrong_usage(arguments: str) -> None:
    call("residency", *arguments.split()).assert_refused(2, "--help)")


@pytest.mark.parametrize("command", ["residency", "warm", "evict"])
def test_files_that_are_none(command: str, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no weights\n")
    call(command, tmp_path / "text.gguf").assert_refused(1, "text.gguf", "GGUF")
    call(command, tmp_path / "missing").assert_refused(1, "missing")


# ---- in a terminal ----


def test_the_heat_map_in_a_terminal(model_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with start("residency", model_path, stdout=theirs, env=environment) as process:
        drawn = await_text(ours, b"every page").decode()
        assert process.wait(timeout=60) == 0
    full = ";".join(str(int(colours.scale(1)[i : i + 2], 16)) for i in (1, 3, 5))
    rows = {row[0]: line for line in drawn.splitlines() if (row := re.findall(r"blk \d+", line))}
    assert list(rows) == [f"blk {i}" for i in range(N_LAYERS)]
    assert f"48;2;{full}m" in rows["blk 3"] and "100 %" in rows["blk 3"]
    assert f"48;2;{full}m" not in rows["blk 10"] and " 0 %" in rows["blk 10"]
    assert "attn_norm" in drawn and "ffn_down" in drawn and "token_embd" in drawn


@pytest.mark.parametrize("height", [14, 60])
def test_without_colours_shades_tell_it(model_path: Path, height: int) -> None:
    from rich.console import Console

    from mmrt.sight.pictures.terminal import TerminalMap

    out = io.StringIO()
    console = Console(width=90, no_color=True, color_system=None, file=out)
    with mmrt.open(model_path) as file:
        console.print(TerminalMap(file, file.residency(), height))
    lines = out.getvalue().splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= 90
    layers = [line for line in lines if "blk " in line]
    if height > N_LAYERS + 10:
        assert len(layers) == N_LAYERS
        assert "·" not in layers[3] and "█" in layers[3] and "100 %" in layers[3]
        assert "█" not in layers[10] and "·" in layers[10]
    else:
        assert "blk 0-" in layers[0] and f"-{N_LAYERS - 1} " in layers[-1]


def test_watching_ends_cleanly_with_an_interrupt(
    model_path: Path, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    command = ("residency", model_path, "--watch", "0.05")
    with start(*command, stdout=theirs, stderr=theirs) as process:
        await_text(ours, b"every page")
        with mmrt.open(model_path) as file:
            file.warm(file.select("11"))
        await_text(ours, b"blk 11")
        process.send_signal(signal.SIGINT)
        rest = await_text(ours, b"every page")
        assert process.wait(timeout=60) == 0
    assert b"Traceback" not in rest + await_text(ours, b"")


def test_watching_a_file_that_goes_away_ends_with_a_word(
    written: Path, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    path = tmp_path / "model.gguf"
    shutil.copy(written, path)
    command = ("residency", path, "--watch", "0.05")
    with start(*command, stdout=theirs, stderr=theirs) as process:
        await_text(ours, b"every page")
        path.unlink()
        await_text(ours, b"has been deleted or replaced")
        assert process.wait(timeout=60) == 1


# ---- pictures ----


def test_the_page_is_whole_in_itself(model_path: Path, tmp_path: Path) -> None:
    page = tmp_path / "map.html"
    ended = call("residency", model_path, "--html", page)
    assert (ended.status, ended.out) == (0, "") and str(page) in ended.err
    text = page.read_text()
    outside = re.findall(r'(?:src|href|url\(|@import)[^>]*|https?://[^"]*', text)
    assert outside == ["http://www.w3.org/2000/svg"]
    with mmrt.open(model_path) as file:
        for tensor in file.values():
            found = tensor.residency()
            tip = re.search(rf'data-tip="({re.escape(tensor.name)}\n[^"]*)"', text)
            assert tip, tensor.name
            assert f"{found.resident:,} of {found.total:,} pages resident" in tip[1]


def test_the_page_in_a_browser(model_path: Path, tmp_path: Path) -> None:
    page = tmp_path / "map.html"
    call("residency", model_path, "--html", page)
    name = "blk.4.ffn_down.weight"
    # The pointer moves over one cell; what the page then shows is read back.
    move = f"""<script>
    const cell = [...document.querySelectorAll(".cell")]
      .find(cell => cell.dataset.tip.startsWith("{name}\\n"));
    const at = cell.getBoundingClientRect();
    cell.dispatchEvent(new PointerEvent("pointermove",
      {{bubbles: true, clientX: at.x + 2, clientY: at.y + 2}}));
    document.title = [at.width > 5, at.height > 5, document.querySelectorAll(".cell").length];
    </script></body>"""
    moved = tmp_path / "moved.html"
    moved.write_text(page.read_text().replace("</body>", move))
    seen = html.unescape(dom(moved))
    with mmrt.open(model_path) as file:
        n_cells = len(file) + 1
    assert f"<title>true,true,{n_cells}</title>" in seen
    tip = re.search(r'<div id="tip"[^>]*style="display: block[^>]*>([^<]*)<', seen)
    assert tip and tip[1].startswith(name) and "pages resident (100 %)" in tip[1]


@pytest.mark.slow
def test_the_picture_shows_what_is_there(model_path: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture, page = tmp_path / "map.png", tmp_path / "map.html"
    call("residency", model_path, "--png", picture, "--html", page)
    pictures = [picture]
    if shutil.which("chromium"):
        pictures.append(screenshot(page, 1080, 1000))
    with mmrt.open(model_path) as file:
        share = file.residency().whole.fraction
    for path in pictures:
        with image.open(path) as opened:
            assert opened.size[0] in (1080, 2160) and opened.size[1] >= 600
            found = opened.convert("RGB").getcolors(1 << 24)
        full, nothing = (
            sum(n for n, pixel in found if _near(pixel, _rgb(shade)))
            for shade in (colours.scale(1), colours.NOTHING)
        )
        assert 0.5 * share < full / (full + nothing) < 2 * share


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(abs(x - y) <= 6 for x, y in zip(a, b, strict=True))


def test_names_from_strangers_are_text(tmp_path: Path) -> None:
    model = llama(n_layers=1)
    model.tensors['blk.0.<script>alert("1")</script>\x1b[2J.weight'] = model.tensors[
        "output_norm.weight"
    ]
    path = model.write(tmp_path / "<b>.gguf")
    page = tmp_path / "map.html"
    assert call("residency", path, "--html", page).status == 0
    text = page.read_text()
    assert "<script>alert" not in text and "\x1b" not in text and "<b>" not in text
    assert "&lt;script&gt;alert" in text
    assert "\x1b" not in call("residency", path).out


def test_a_picture_that_cannot_be_written(model_path: Path, tmp_path: Path) -> None:
    call("residency", model_path, "--html", tmp_path / "no" / "map.html").assert_refused(1, "no")


def test_a_full_disk_leaves_the_picture_that_was_there(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    page = tmp_path / "map.html"
    page.write_text("before")
    monkeypatch.setattr(os, "write", full)
    ended = call("residency", model_path, "--html", page)
    ended.assert_refused(1, "map.html", "No space left on device")
    assert page.read_text() == "before" and os.listdir(tmp_path) == ["map.html"]


def test_pictures_on_stdout_and_on_devices(model_path: Path) -> None:
    ended = call("residency", model_path, "--html", "-")
    assert ended.status == 0 and ended.out.startswith("<!DOCTYPE html>") and ended.err == ""
    assert not Path("-").exists()
    assert call("residency", model_path, "--html", "/dev/null").status == 0
    call("residency", model_path, "--html", "/dev/full").assert_refused(1, "/dev/full: No space")


def test_thousands_of_layers_make_a_bounded_picture(tmp_path: Path) -> None:
    tensors = tuple(make.tensor(f"blk.{i}.w", (8,), offset=32 * i) for i in range(5000))
    path = tmp_path / "deep.gguf"
    path.write_bytes(make.gguf((), tensors, 5000 * 32))
    with mmrt.open(path) as file:
        drawing = heatmap.draw(file, file.residency())
    assert drawing.height < 4000
    words = [item.text for item in drawing.items if isinstance(item, Words)]
    assert "blk 0-19" in words and "blk 4980-4999" in words
    drawing.height = 10_000
    pytest.importorskip("PIL")
    with pytest.raises(mmrt.UnsupportedError, match=r"20000 pixels high.*HTML"):
        png(drawing)


def test_png_without_pillow(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    call("residency", model_path, "--png", "x.png").assert_refused(1, "pip install Pillow")


def test_the_scale_rises_in_lightness() -> None:
    """So that it can be read in grey, and whatever the kind of colour blindness."""
    fills = [colours.NOTHING, *dict.fromkeys(colours.scale(i / 256) for i in range(1, 257))]
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(_rgb, fills)]
    assert lightness[1:] == sorted(lightness[1:]) and len(fills) > 60
    assert colours.scale(0.9999) != colours.scale(1)
    assert colours.scale(1e-9) != colours.scale(0)


# ---- warm and evict ----


def test_warming_and_evicting_say_what_came_of_it(model_path: Path) -> None:
    ended = call("evict", model_path)
    assert (ended.status, ended.err) == (0, "")
    assert "0 bytes are now (0.0%, mincore)" in ended.out
    ended = call("warm", model_path, "--layers", "0-1,5", "--tensors", "*.attn_q.*", "*.attn_k.*")
    assert "6 of 110 tensors: 0 bytes of" in ended.out and "(100.0%, mincore)" in ended.out
    assert ended.out.count("\n") == 1
    with mmrt.open(model_path) as file:
        assert file["blk.5.attn_k.weight"].residency().fraction == 1
        assert file["blk.9.attn_k.weight"].residency().resident == 0
    assert "whole: " in call("warm", model_path).out
    with mmrt.open(model_path) as file:
        assert file.residency().whole.fraction == 1


def refused(model_path: Path, status: int, words: str, *arguments: str) -> Ended:
    ended = call("warm", model_path, *arguments)
    ended.assert_refused(status, words)
    return ended


def test_choices_that_find_nothing_are_one_line(model_path: Path) -> None:
    refused(model_path, 2, "'x' is no number", "--layers", "x")
    refused(model_path, 2, "ends before it begins", "--layers", "5-2")
    refused(model_path, 1, "no layer 12; they go from 0 to 11", "--layers", "12-20")
    refused(model_path, 1, "no layer 99; they go from 0 to 11", "--layers", "0-99")
    call("warm", "--tensors", "*.attn_q.*").assert_refused(2, "FILE")


def test_the_file_may_stand_behind_the_patterns(model_path: Path) -> None:
    ended = call("evict", "--tensors", "*.ffn_up.*", "*.attn_q.*", model_path)
    assert f"{2 * N_LAYERS} of " in ended.out and ended.err == ""
    refused(model_path, 1, "no tensor matches '*.attn_z.*'", "--tensors", "*.attn_z.*")


# ---- page tables ----


def test_the_arithmetic_is_explained() -> None:
    out = call("pagetables", "20GiB", "--page", "4KiB").out
    for words in ("5,242,880 pages", "10,240", "10,260", "40.078125 MiB", "20 tables, 0.078125"):
        assert words in out
    assert "10,262 tables" in out
    assert "1 table," in call("pagetables", "512MiB", "--page", "64KiB").out
    assert call("pagetables", "1", "--page", "4096").status == 0


@pytest.mark.parametrize("arguments", ["", "lots", "0", "-1GiB", "1GiB --page 3000", "1e3"])
def test_sizes_that_make_no_sense(arguments: str) -> None:
    call("pagetables", *arguments.split()).assert_refused(2, "--help)")
