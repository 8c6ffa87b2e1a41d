"""Which pages are in memory: by page, tensor, layer and file, beside what other tools count."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import needs_eviction
from tiny_models import llama

import mmrt
from mmrt.core.residency import Residency
from mmrt.errors import ArgumentError
from mmrt.files import layers
from mmrt.files.formats import TensorFile


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve layers of about 100 pages, with edges in the middle of pages, on disk."""
    path = tmp_path_factory.mktemp("residency") / "model.gguf"
    llama(n_layers=12, n_embd=128, n_ff=192, type="F16").write(path)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return path


@pytest.fixture
def file(model_path: Path) -> Iterator[TensorFile]:
    """The model, evicted; tests that use it are skipped where files live in memory alone."""
    needs_eviction(model_path)
    with mmrt.open(model_path) as file:
        assert file.evict().after.resident == 0
        yield file


def pages_of(file: TensorFile, *names: str) -> set[int]:
    """The pages that these tensors touch."""
    page = file.mappings[0].page_size
    return {
        at
        for tensor in map(file.__getitem__, names)
        for at in range(tensor.offset // page, (tensor.offset + tensor.nbytes - 1) // page + 1)
    }


# ---- one range ----


def test_runs_and_parts() -> None:
    residency = Residency.of(bytes([1, 1, 0, 0, 0, 0, 1, 0, 1, 1]), "mincore")
    assert (residency.resident, residency.total, residency.fraction) == (5, 10, 0.5)
    assert residency.runs() == [(0, 2), (6, 1), (8, 2)]
    assert residency.parts(2) == [0.4, 0.6]
    assert residency.parts(5) == [1, 0, 0, 0.5, 1]
    few = Residency.of(bytes([1, 0]), "mincore")
    assert few.parts(6) == [1, 1, 1, 0, 0, 0]
    assert Residency.of(b"", "mincore").parts(3) == []
    assert Residency.of(b"\0\0", "mincore").runs() == []


def test_a_join_promises_what_its_least_part_does() -> None:
    cached, mapped = Residency.of(b"\1\0", "mincore"), Residency.of(b"\1", "pagemap")
    assert Residency.join([cached, mapped]) == (2, 3, b"\1\0\1", "pagemap")
    assert Residency.join([cached, cached]).source == "mincore"
    assert Residency.join([]).total == 0


# ---- layers ----


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("blk.3.attn_q.weight", "blk.3", "attn_q"),
        ("blk.3.attn_q.bias", "blk.3", "attn_q.bias"),
        ("token_embd.weight", "", "token_embd"),
        ("model.layers.10.self_attn.q_proj.weight", "model.layers.10", "self_attn.q_proj"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3", "mlp.experts.*.w1"),
        ("h.0.weight", "h.0", "weight"),
        ("table.7", "", "table.7"),
        ("7", "", "7"),
        ("weight", "", "weight"),
        ("", "", ""),
    ],
)
def test_where_a_tensor_stands(name: str, layer: str, role: str) -> None:
    assert layers.place(name) == (layer, role)


def test_layers_are_in_the_order_of_their_numbers() -> None:
    names = ["norm", "dec.10.w", "dec.2.w", "dec.2.experts.0.x", "dec.2.experts.1.x", "enc.0.w"]
    found = layers.group(names)
    assert [layer.name for layer in found] == ["", "dec.2", "dec.10", "enc.0"]
    assert found[1].cells == {"w": ["dec.2.w"], "experts.*.x": names[3:5]}
    assert found[1].names == ["dec.2.w", *names[3:5]]


# ---- a file ----


def test_figures_by_tensor_layer_and_file_agree_with_the_pages_touched(file: TensorFile) -> None:
    file.warm(file.select("3-4"))
    now = file.residency()
    assert now.source == "mincore"
    assert now.whole == now.files[file.path] == file.mappings[0].residency()
    assert now.tensors == {name: file[name].residency() for name in file}
    cached = {at for start, n in now.whole.runs() for at in range(start, start + n)}
    for layer in now.layers:
        touched = pages_of(file, *layer.names)
        found = now.layer(layer)
        assert (found.resident, found.total) == (len(touched & cached), len(touched))
    by_name = {layer.name: now.layer(layer).fraction for layer in now.layers}
    assert by_name["blk.3"] == by_name["blk.4"] == 1
    assert by_name["blk.0"] == by_name["blk.9"] == 0
    # Tensors that share edge pages count them both; a layer counts them once.
    layer = next(layer for layer in now.layers if layer.name == "blk.3")
    assert sum(now.tensors[name].total for name in layer.names) > now.layer(layer).total


def test_nothing_is_read_by_looking(file: TensorFile) -> None:
    assert file.residency().whole.resident == file.residency().whole.resident == 0


def test_pages_mapped_here_are_told_from_those_cached(file: TensorFile) -> None:
    file.warm()
    with mmrt.open(file.path) as other:
        mapping = other.mappings[0]
        before = mapping.mapped()
        with memoryview(mapping) as view:
            assert view[mapping.size - 1] >= 0
        assert mapping.residency().fraction == 1
        assert mapping.mapped().source == "pagemap"
        assert before.resident < mapping.mapped().resident
        assert mapping.mapped().pages[-1] == 1
        assert mapping.mapped(0, 0).total == 0
        with pytest.raises(ArgumentError, match="outside"):
            mapping.mapped(0, mapping.size + 1)


# ---- warm and evict ----


def test_warming_and_evicting_a_choice_leaves_its_neighbours(file: TensorFile) -> None:
    chosen = file.select("2,5-6", ["*.ffn_*", "*.attn_q.weight"])
    assert len(chosen) == 3 * 5
    seen: list[tuple[int, int]] = []
    moved = file.warm(chosen, lambda done, total: seen.append((done, total)))
    size = sum(file[name].nbytes for name in chosen)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and size <= seen[-1][1] < size + 4096
    assert moved.before.resident == 0 and moved.after.fraction == 1
    assert moved.bytes_before == 0 and moved.bytes_after == moved.after.total * moved.page_size

    now = file.residency().whole
    cached = {at for start, n in now.runs() for at in range(start, start + n)}
    assert pages_of(file, *chosen) <= cached
    assert min(cached) == min(pages_of(file, *chosen))  # nothing before the first of them

    file.warm()
    others = [name for name in file if name not in chosen]
    file.evict(chosen)
    assert file.residency().of(others).fraction == 1
    kept = pages_of(file, *others)
    inside = pages_of(file, *chosen) - kept
    pages = file.residency().whole.pages
    assert {pages[at] for at in inside} == {0}


def test_what_was_just_written_is_evicted_too(tmp_path: Path) -> None:
    needs_eviction(tmp_path / "new.gguf")
    for _ in range(5):
        path = llama(n_layers=2, type="F32").write(tmp_path / "new.gguf")
        with mmrt.open(path) as new:
            assert new.evict().after.resident == 0


def test_a_file_of_several_pieces_goes_whole(tmp_path: Path) -> None:
    """Cuts between pieces fall on tensors that begin in the middle of pages."""
    path = tmp_path / "large.gguf"
    llama(n_layers=3, n_embd=512, n_ff=2048, type="F32").write(path)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    with mmrt.open(path) as file:
        assert file.mappings[0].size > 3 * (8 << 20)
        names = file.select("0-2")
        needs_eviction(path)
        assert file.evict().after.resident == 0
        moved = file.warm(names)
        assert (moved.before.resident, moved.after.fraction) == (0, 1)
        assert file.evict(names).after.resident <= 2  # the edges


@pytest.mark.parametrize(
    ("numbers", "patterns", "words"),
    [
        ("5-99x", (), "'5-99x' is no number"),
        ("", (), "'' is no number"),
        ("-3", (), "'-3' is no number"),
        ("7-3", (), "7-3 ends before it begins"),
        ("40", (), "there is no layer 40; they go from 0 to 11"),
        ("2,40-50", (), "there is no layer 40"),
        (None, ("*.attn_z.*",), r"no tensor matches '\*\.attn_z\.\*'; names look like"),
        ("3", ("token_embd*",), "none of these tensors is in a numbered layer"),
    ],
)
def test_choices_that_find_nothing(
    model_path: Path, numbers: str | None, patterns: tuple[str, ...], words: str
) -> None:
    with mmrt.open(model_path) as file, pytest.raises(ArgumentError, match=words):
        file.select(numbers, patterns)


def test_choices(model_path: Path) -> None:
    with mmrt.open(model_path) as file:
        assert file.select() == list(file)
        assert file.select("10-11") == [n for n in file if n.startswith(("blk.10.", "blk.11."))]
        assert file.select(None, ["output*"]) == ["output_norm.weight"]
        assert file.select("1", ["*.attn_q.*", "*.attn_k.*"]) == [
            "blk.1.attn_q.weight",
            "blk.1.attn_k.weight",
        ]


# ---- beside other tools ----


def counted_by_vmtouch(path: Path) -> tuple[int, int]:
    out = subprocess.run(["vmtouch", "-v", path], check=True, capture_output=True, text=True).stdout
    match = re.search(r"Resident Pages: (\d+)/(\d+)", out)
    assert match, out
    return int(match[1]), int(match[2])


def counted_by_fincore(path: Path) -> int:
    command = ["fincore", "--bytes", "--noheadings", "--raw", "--output", "PAGES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("state", ["cold", "partly", "warm"])
@pytest.mark.parametrize("tool", ["vmtouch", "fincore"])
def test_the_same_page_counts_as_other_tools(file: TensorFile, tool: str, state: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    if state == "warm":
        file.warm()
    elif state == "partly":
        file.warm(file.select("1,4-7", ["*.ffn_*"]))
    now = file.residency().whole
    assert (now.resident == 0, now.fraction == 1) == (state == "cold", state == "warm")
    if tool == "vmtouch":
        assert counted_by_vmtouch(Path(file.path)) == (now.resident, now.total)
    else:
        assert counted_by_fincore(Path(file.path)) == now.resident


def test_what_is_printed_of_it_is_short() -> None:
    found = Residency.of(bytes([1, 0]) * 5000, "mincore")
    assert repr(found) == "<Residency: 5000 of 10000 pages in memory (mincore)>"
