"""Files that mmrt writes, read back by itself and by the `gguf` package."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

import mmrt
from mmrt.errors import ArgumentError, FileError
from mmrt.files.gguf_writer import Entry, RawValue, write_gguf

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.bool": True,
    "a.number": 7,
    "a.large.number": 1 << 40,
    "a.negative.number": -3,
    "a.very.negative.number": -(1 << 40),
    "a.float": 0.5,
    "a.text": "naïve ☃",
    "numbers": [1, 2, -3],
    "texts": ["", "a", "☃"],
    "flags": [True, False],
    "floats": [0.25, -1.5],
    "nothing": [],
}
ENTRIES = [Entry("a", "F32", (3,)), Entry("b", "Q4_0", (5, 64)), Entry("c", "F16", (2, 3, 4))]
DATA = [np.random.default_rng(0).bytes(entry.nbytes) for entry in ENTRIES]


def write(path: Path, metadata: dict[str, Any] = METADATA) -> Path:
    with write_gguf(path, metadata, ENTRIES) as writer:
        for data in DATA:
            writer.write(data)
    return path


def test_mmrt_reads_it(tmp_path: Path) -> None:
    with mmrt.open(write(tmp_path / "file.gguf")) as file:
        assert dict(file.metadata) == METADATA
        assert [Entry(t.name, t.type, t.shape) for t in file.values()] == ENTRIES
        for tensor, data in zip(file.values(), DATA, strict=True):
            assert tensor.blocks().tobytes() == data


def test_gguf_reads_it(tmp_path: Path) -> None:
    reader = GGUFReader(write(tmp_path / "file.gguf"))
    for key, value in METADATA.items():
        if value != []:
            assert reader.fields[key].contents() == value
    for tensor, entry, data in zip(reader.tensors, ENTRIES, DATA, strict=True):
        assert (tensor.name, tuple(tensor.shape)) == (entry.name, entry.shape[::-1])
        assert tensor.data.tobytes() == data


@pytest.mark.parametrize("alignment", [8, 64, RawValue(4, (256).to_bytes(4, "little"))])
def test_alignment(alignment: int | RawValue, tmp_path: Path) -> None:
    path = write(tmp_path / "file.gguf", {"general.alignment": alignment})
    with mmrt.open(path) as file:
        assert all(t.offset % file.metadata["general.alignment"] == 0 for t in file.values())
        assert memoryview(file["a"]).tobytes() == DATA[0]


def test_pieces_of_any_size(tmp_path: Path) -> None:
    with write_gguf(tmp_path / "file.gguf", METADATA, ENTRIES) as writer:
        for data in DATA:
            for start in range(0, len(data), 7):
                writer.write(data[start : start + 7])
    assert (tmp_path / "file.gguf").read_bytes() == write(tmp_path / "other.gguf").read_bytes()


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_too_few_and_too_many_bytes(tmp_path: Path) -> None:
    with (
        pytest.raises(ArgumentError, match="not all"),
        write_gguf(tmp_path / "file.gguf", {}, ENTRIES) as writer,
    ):
        writer.write(DATA[0])
    with (
        pytest.raises(ArgumentError, match="'a' was given 4 bytes more"),
        write_gguf(tmp_path / "file.gguf", {}, ENTRIES) as writer,
    ):
        writer.write(DATA[0] + b"more")
    assert_nothing_left(tmp_path)


def test_an_interrupted_file_is_not_left(tmp_path: Path) -> None:
    old = tmp_path / "file.gguf"
    old.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), write_gguf(old, {}, ENTRIES) as writer:
        writer.write(DATA[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"old"


@pytest.mark.parametrize("call", ["posix_fallocate", "write", "fsync", "replace"])
def test_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FileError, match=r"file\.gguf: .*No space left on device"):
        write(tmp_path / "file.gguf")
    assert_nothing_left(tmp_path)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        write(tmp_path / "missing" / "file.gguf")
    with pytest.raises(FileError, match="not a regular file"):
        write(tmp_path)


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(tmp_path / "file.gguf")
    write(tmp_path / "link.gguf")
    assert (tmp_path / "link.gguf").is_symlink() and (tmp_path / "file.gguf").is_file()


def test_values_without_a_place(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="'key'"):
        write(tmp_path / "file.gguf", {"key": {}})
    with (
        pytest.raises(ArgumentError, match="rows of 33"),
        write_gguf(tmp_path / "file.gguf", {}, [Entry("t", "Q4_0", (2, 33))]),
    ):
        pass
    assert_nothing_left(tmp_path)
