"""Weight files wherever they lie: read-only mounts, tmpfs, overlayfs; sparse, empty or replaced."""

import os
from pathlib import Path

import mounts
import numpy as np
import pytest
import tiny_models
from command import STORY, call
from machine import evict
from pages import PAGE, write_file

import mmrt
from mmrt import counters
from mmrt.core.mapping import Mapping
from mmrt.errors import FileError, FormatError, OutOfMemoryError
from mmrt.files.policies import POLICIES
from mmrt.memory.system import os_info


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "model.gguf"
    tiny_models.llama(n_layers=4, n_embd=128, n_ff=192, type="F16").write(path)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return path


@pytest.fixture(params=mounts.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---- file systems ----


def test_models_run_there_under_every_policy(kind: str, model_path: Path, tmp_path: Path) -> None:
    with mmrt.Model(model_path) as model:
        expected = model.logits([1, 2, 3])

    def work(path: Path) -> None:
        for policy in POLICIES:
            if policy == "numa":  # which warns where there is one node
                continue
            try:
                model = mmrt.Model(path, policy=policy)
            except OutOfMemoryError as refused:
                assert policy == "locked" and "RLIMIT_MEMLOCK" in str(refused)
                continue
            with model:
                assert np.array_equal(model.logits([1, 2, 3]), expected)

    mounts.on(kind, model_path, tmp_path / "mount", work)


def test_pages_come_and_go_there(kind: str, model_path: Path, tmp_path: Path) -> None:
    evict(model_path)

    def work(path: Path) -> None:
        with mmrt.open(path) as file:
            chosen = file.select("1-2")
            assert file.warm(chosen).after.fraction == 1
            assert file.residency().whole.source == "mincore"
            after = file.evict().after
            if kind == "tmpfs":  # which has no other place for them
                assert after.fraction == 1
            else:
                assert after.resident == 0
            moved = file.warm()
            assert moved.before.resident == after.resident and moved.after.fraction == 1
            with memoryview(file.mappings[0]) as view:
                assert sum(view[::PAGE]) > 0
            assert counters.of_file(path).rss >= file.mappings[0].size
        said = call("residency", path, "--json")
        assert said.status == 0 and '"source": "mincore"' in said.out

    mounts.on(kind, model_path, tmp_path / "mount", work)


def test_what_it_is_can_be_asked(kind: str, model_path: Path, tmp_path: Path) -> None:
    def work(path: Path) -> None:
        expected = os_info(model_path).file_system if kind == "read-only" else kind
        assert os_info(path).file_system == expected

    mounts.on(kind, model_path, tmp_path / "mount", work)


def test_nothing_is_written_to_a_read_only_mount(model_path: Path, tmp_path: Path) -> None:
    def work(path: Path) -> None:
        with pytest.raises(FileError, match=r"cannot open .*model\.gguf': Read-only file system"):
            Mapping(path, protection="rw")
        with Mapping(path, protection="rw", flags="private") as mapping:
            with memoryview(mapping) as view:
                view[0] = 0
            assert path.read_bytes()[:4] == b"GGUF"
        out = path.with_name("out.gguf")
        call("quantize", path, out, "Q8_0").assert_refused(1, "out.gguf", "Read-only file system")

    mounts.on("read-only", model_path, tmp_path / "mount", work)


def test_a_disk_that_is_memory_and_full(model_path: Path, tmp_path: Path) -> None:
    """A hole in tmpfs takes memory when it is read through a writable mapping; where none is left,
    that is an error and no end of the process."""

    def work(path: Path) -> None:
        hole = path.with_name("hole")
        with hole.open("wb") as file:
            os.truncate(file.fileno(), 256 << 20)  # of 64 MiB
        with (
            Mapping(hole, protection="rw") as mapping,
            pytest.raises((FileError, OutOfMemoryError), match="populate_write"),
        ):
            mapping.advise("populate_write")

    mounts.on("tmpfs", model_path, tmp_path / "mount", work)


# ---- files ----


def test_holes_are_zeros_that_take_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
        os.fsync(file.fileno())
    evict(path)
    with Mapping(path) as mapping:
        before = counters.reads().read_bytes
        mapping.advise("populate_read", 256 << 20, 1 << 20)
        assert mapping.residency(256 << 20, 1 << 20).fraction == 1
        with memoryview(mapping) as view:
            assert not any(view[256 << 20 : 257 << 20]) and bytes(view[-3:]) == b"end"
        after = counters.reads().read_bytes
        assert before is None or after is None or after - before < 1 << 20  # the end alone
        mapping.advise("evict")
        assert mapping.residency().resident == 0
        assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m.safetensors.index.json", "m.npy"])
def test_files_of_no_length_are_named(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / name, b"")
    for use in (mmrt.open, mmrt.Model):
        with pytest.raises(FormatError, match=f"{name}: the file is empty"):
            use(path)
    for command in ("inspect", "residency", "warm", "evict"):
        call(command, path).assert_refused(1, name, "the file is empty")
    for command in ("run", "trace"):
        call(command, path, STORY).assert_refused(1, name, "the file is empty")


def test_a_file_that_is_replaced_stays_as_it_was(model_path: Path, tmp_path: Path) -> None:
    """Who replaces a file by another of its name, as all good programs do, disturbs nobody."""
    path = write_file(tmp_path / "model.gguf", model_path.read_bytes())
    with mmrt.Model(path) as model:
        other = tiny_models.llama(n_layers=1, type="Q8_0").write(tmp_path / "other.gguf")
        os.replace(other, path)
        with mmrt.Model(model_path) as same:
            assert np.array_equal(model.logits([1, 2, 3]), same.logits([1, 2, 3]))
        assert model.file.warm().after.fraction == 1  # of the file that is mapped
        assert model.file.mappings[0].size == model_path.stat().st_size
        with mmrt.Model(path) as new:
            assert new.config.n_layers == 1


def test_a_file_that_is_deleted_stays_as_it_was(model_path: Path, tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.gguf", model_path.read_bytes())
    with mmrt.Model(path) as model:
        expected = model.logits([1, 2, 3])
        path.unlink()
        model.file.evict()
        assert np.array_equal(model.logits([1, 2, 3]), expected)
