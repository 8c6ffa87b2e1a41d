"""Mappings: what can be mapped, how long it stays, and what is said of its pages."""

import mmap
import os
import pickle
import threading
from pathlib import Path

import pytest

from mmrt.errors import ArgumentError, FileError, FormatError, MmrtError, OutOfMemoryError
from mmrt.mapping import Mapping

PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of eight pages and a bit, written back to disk so that it can be evicted."""
    path = tmp_path / "weights.bin"
    with path.open("wb") as out:
        for i in range(8):
            out.write(bytes([i]) * PAGE)
        out.write(b"tail")
        out.flush()
        os.fsync(out.fileno())
    return path


def evicted(mapping: Mapping) -> None:
    """Evicts all of `mapping`, or skips the test where files live in memory alone (tmpfs)."""
    mapping.advise("evict")
    if mapping.residency().resident:
        pytest.skip("this file system does not let pages go")


def test_a_mapping_is_the_bytes_of_its_file(file: Path) -> None:
    with Mapping(file) as mapping:
        assert mapping.path == str(file)
        assert mapping.size == len(mapping) == 8 * PAGE + 4
        assert mapping.page_size == PAGE
        assert mapping.modified_ns == file.stat().st_mtime_ns
        with memoryview(mapping) as view:
            assert view.readonly and view.format == "B"
            assert view.tobytes() == file.read_bytes()
        assert repr(mapping) == f"<Mapping of {str(file)!r}, {8 * PAGE + 4} bytes>"
    assert mapping.closed


def test_paths_of_every_kind_are_taken(file: Path) -> None:
    for path in (str(file), os.fsencode(file), file):
        with Mapping(path) as mapping:
            assert mapping.path == str(file)


def test_opening_reads_nothing(file: Path) -> None:
    with Mapping(file) as mapping:
        evicted(mapping)
    with Mapping(file) as mapping:
        assert mapping.residency().resident == 0


def test_what_cannot_be_mapped_is_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, words in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "a directory"),
        (fifo, "a FIFO"),
        (Path("/dev/null"), "a device"),
    ):
        with pytest.raises(FileError, match=words) as caught:
            Mapping(path)
        assert str(path) in str(caught.value) and caught.value.errno
        assert isinstance(caught.value, OSError) and isinstance(caught.value, MmrtError)


def test_an_empty_file_breaks_every_format(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(FormatError, match=r"empty: the file is empty"):
        Mapping(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(FileError, match="Permission denied"):
        Mapping(file)


def test_a_path_with_nul_is_refused() -> None:
    with pytest.raises(ArgumentError, match="NUL"):
        Mapping("a\0b")


def test_close_waits_for_views(file: Path) -> None:
    mapping = Mapping(file)
    view = memoryview(mapping)
    part = view[PAGE : PAGE + 2]
    assert mapping.views == 1
    with pytest.raises(BufferError, match="views of it are alive"):
        mapping.close()
    assert bytes(part) == b"\1\1"
    part.release()
    view.release()
    mapping.close()
    mapping.close()
    assert repr(mapping).endswith("closed>")


def test_views_keep_the_file_mapped(file: Path) -> None:
    view = memoryview(Mapping(file))
    assert view[PAGE] == 1


def test_a_closed_mapping_says_so(file: Path) -> None:
    mapping = Mapping(file)
    mapping.close()
    for use in (
        lambda: memoryview(mapping),
        lambda: mapping.advise("normal"),
        lambda: mapping.lock(),
        lambda: mapping.unlock(),
        lambda: mapping.residency(),
        lambda: mapping.modified_ns,
    ):
        with pytest.raises(ArgumentError, match="is closed"):
            use()


def test_buffers_are_read_only(file: Path) -> None:
    with Mapping(file) as mapping:
        with pytest.raises(TypeError), memoryview(mapping) as view:
            view[0] = 1
        with pytest.raises((BufferError, TypeError)):
            file.open("rb").readinto(mapping)


def test_residency_follows_eviction_and_population(file: Path) -> None:
    with Mapping(file) as mapping:
        evicted(mapping)
        residency = mapping.residency()
        assert (residency.resident, residency.total) == (0, 9)
        assert residency.source == "mincore" and residency.fraction == 0

        mapping.advise("populate_read", 2 * PAGE, 3 * PAGE)
        assert mapping.residency(2 * PAGE, 3 * PAGE).fraction == 1

        mapping.advise("populate_read")
        mapping.advise("evict", 2 * PAGE + 1, 3 * PAGE)  # two whole pages, two edges
        assert mapping.residency().pages == bytes([1, 1, 1, 0, 0, 1, 1, 1, 1])
        assert mapping.residency(3 * PAGE, PAGE) == (0, 1, b"\0", "mincore")


def test_willneed_reads_exactly_the_range(file: Path) -> None:
    with Mapping(file) as mapping:
        evicted(mapping)
        mapping.advise("willneed", 3 * PAGE, 2 * PAGE)
        for _ in range(1000):
            if mapping.residency(3 * PAGE, 2 * PAGE).fraction == 1:
                break
            threading.Event().wait(0.001)
        assert mapping.residency().pages == bytes([0, 0, 0, 1, 1, 0, 0, 0, 0])


def test_an_empty_range_is_no_pages(file: Path) -> None:
    with Mapping(file) as mapping:
        assert mapping.residency(5, 0).total == 0
        assert mapping.residency(5, 0).fraction == 1
        assert mapping.residency(PAGE - 1, 2).total == 2
        mapping.advise("evict", mapping.size, 0)


def test_locked_pages_stay(file: Path) -> None:
    with Mapping(file) as mapping:
        try:
            mapping.lock(PAGE, 2 * PAGE)
        except OutOfMemoryError as refused:
            assert "RLIMIT_MEMLOCK" in str(refused)
            pytest.skip("locking is not allowed here")
        with pytest.raises(ArgumentError, match="locked pages cannot be evicted"):
            mapping.advise("evict")
        assert mapping.residency(PAGE, 2 * PAGE).fraction == 1
        mapping.unlock()
        mapping.advise("evict")


def test_ranges_and_words_are_checked(file: Path) -> None:
    with Mapping(file) as mapping:
        size = mapping.size
        for offset, length in ((-1, 1), (0, size + 1), (size + 1, None), (1, 2**64), (2**64, 1)):
            with pytest.raises(ArgumentError, match="outside"):
                mapping.advise("normal", offset, length)
            with pytest.raises(ArgumentError, match="outside"):
                mapping.residency(offset, length)
        with pytest.raises(ArgumentError, match="willneed"):
            mapping.advise("soon")  # type: ignore[arg-type]


def test_it_pickles_as_its_path(file: Path) -> None:
    with Mapping(file) as mapping:
        copy = pickle.loads(pickle.dumps(mapping))
        assert copy.path == str(file) and copy.size == mapping.size
        copy.close()
        pickled = pickle.dumps(mapping)
    with file.open("ab") as out:
        out.write(b"more")
    with pytest.raises(FileError, match="has changed since it was pickled"):
        pickle.loads(pickled)
