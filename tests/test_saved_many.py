"""Many files of keys and values: what is done for each does not grow with their number."""

import itertools
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
import tiny_models

import mmrt
from mmrt.core.state import Cache
from mmrt.run import saved, saved_file, wear
from mmrt.run.saved import Saved
from mmrt.run.sequence import Sequence

MANY = 150


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mmrt.Model]:
    made = tiny_models.llama(n_layers=1)
    with mmrt.Model(made.write(tmp_path_factory.mktemp("many") / "m.gguf")) as model:
        yield model


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each directory was listed; the clock stands still."""
    counted: Counter[str] = Counter()
    scandir = os.scandir

    def scan(directory: str) -> Any:
        counted[str(directory)] += 1
        return scandir(directory)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(saved, "_TICK_NS", 0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    return counted


def texts(model: mmrt.Model, n: int = MANY) -> Iterator[tuple[list[int], Cache]]:
    for i, j in itertools.islice(itertools.product(range(3, 250), repeat=2), n):
        cache = Cache(model.store)
        Sequence(model, cache).extend([i, j])
        yield [i, j], cache


def test_our_own_files_are_known_without_a_listing(
    model: mmrt.Model, tmp_path: Path, listings: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Saved(tmp_path, model.store, bytes(16))
    other = Saved(tmp_path, model.store, bytes(16))
    listings.clear()
    for ids, cache in texts(model):
        files.save(cache)
        assert files.length(ids) == 2
    assert not listings
    # Those of another are found by one listing, and its own directory's change is seen at once.
    assert other.length([3, 3]) == 2
    assert listings.total() == 1
    other.save(next(texts(model, 1))[1], salt="another")
    assert other.length([3, 3]) == 2 and listings.total() == 1
    assert files.length([3, 3], salt="another") == 2
    assert listings.total() == 2
    # A change of another that ours have hidden is found a second later.
    hidden = next(texts(model, 1))[1]
    with files._changes():
        other.save(hidden, salt="hidden")
    assert files.length([3, 3], salt="hidden") == 0
    monkeypatch.setattr(time, "monotonic", lambda: 102.0)
    assert files.length([3, 3], salt="hidden") == 2
    assert files.length([3, 4], salt="hidden") == 1
    assert listings.total() == 3


def test_who_goes_next_is_known_without_looking_at_all(
    model: mmrt.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Counter[str]()

    def get(extent: Any) -> float:
        looks["at a time"] += 1
        return float(extent.__dict__["used"])

    def put(extent: Any, value: float) -> None:
        extent.__dict__["used"] = value

    monkeypatch.setattr(saved_file.Extent, "last_use", property(get, put), raising=False)
    files = Saved(tmp_path, model.store, bytes(16))
    written = list(texts(model))
    files.save(written[0][1])
    room = 20 * files.report.bytes
    files = Saved(tmp_path, model.store, bytes(16), room)
    for _, cache in written:
        files.save(cache)
        files.attach(Cache(model.store), written[0][0])  # used again and again, so it stays
    assert files.report.bytes <= room and files.report.files == 20
    kept = [ids for ids, _ in written if files.length(ids) == 2]
    assert kept == [written[0][0], *(ids for ids, _ in written[-19:])]
    assert looks.total() <= 8 * MANY
    assert len(files._ends) <= 2 * 20 + 65


# ---- what they may take ----


def read_and_save(files: Saved, model: mmrt.Model, n: int = 20) -> None:
    for _, cache in texts(model, n):
        files.save(cache)


def test_files_leave_half_of_the_disk_to_others(
    model: mmrt.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there already count as room: else each process would allow itself less."""
    disk = shutil.disk_usage(tmp_path)
    files = Saved(tmp_path, model.store, bytes(16))
    read_and_save(files, model)
    held = files.report.bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=held))
    for _ in range(3):
        again = Saved(tmp_path, model.store, bytes(16))
        read_and_save(again, model)
        assert again.report.files == 20 and again.report.written == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=0))
    assert Saved(tmp_path, model.store, bytes(16)).report.bytes <= held // 2


def test_a_day_has_its_bounds(
    model: mmrt.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disks wear: what was written within a day is bounded, whatever of it has gone since."""
    one, clock = model.store.saved_bytes, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(wear, "_LEAST", 1)
    files = Saved(tmp_path, model.store, bytes(16), 2 * one)
    made = list(texts(model, 40))
    with pytest.warns(UserWarning, match="are not saved: .* were written within a day") as said:
        for _, cache in made[:20]:
            files.save(cache)
    assert len(said) == 1 and files.report.refused == 20 - 8
    written = files.report.written
    clock[0] += 6 * 3600
    for _, cache in made[20:]:
        files.save(cache)
    assert files.report.refused == 12 + 20 - 2 and files.report.written == written * 10 // 8


def test_files_of_before_count_too(model: mmrt.Model, tmp_path: Path) -> None:
    files = Saved(tmp_path, model.store, bytes(16))
    read_and_save(files, model)
    most = files.report.bytes // 2
    assert 0 < Saved(tmp_path, model.store, bytes(16), most).report.bytes <= most
    assert Saved(tmp_path, model.store, bytes(16), 1).report.files == 0
    assert not list(tmp_path.rglob("*.kv"))


def test_a_read_only_disk(model: mmrt.Model, tmp_path: Path) -> None:
    """What is there is found, nothing goes, and that nothing is saved is said once."""
    place = tmp_path / "kv"
    files = Saved(place, model.store, bytes(16))
    read_and_save(files, model)

    def work(file: Path) -> None:
        again = Saved(file.parent, model.store, bytes(16), 1)
        assert again.report.files == 20 and again.length([3, 4]) == 2
        cache = Cache(model.store)
        assert again.attach(cache, [3, 4]) == 2
        with pytest.warns(UserWarning, match="are not saved: .*Read-only") as said:
            read_and_save(again, model, 22)
        assert len(said) == 1 and again.report.refused == 2
        assert again.report.files == 20
        with pytest.raises(mmrt.FileError, match="Read-only"):
            Saved(file.parent / "new", model.store, bytes(16))

    (place / "file").write_text("")
    mounts.on("read-only", place / "file", tmp_path / "mount", work)


def test_a_stranger_that_stays_is_counted_once(model: mmrt.Model, tmp_path: Path) -> None:
    files = Saved(tmp_path, model.store, bytes(16))
    (Path(files.directory) / f"{'00' * 16}.kv").mkdir()
    with pytest.warns(UserWarning, match="are damaged: left out"):
        assert files.length([3, 4]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_and_save(files, model, 2)
    assert files.report.damaged == 1
