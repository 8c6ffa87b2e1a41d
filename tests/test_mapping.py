"""Mappings: what can be mapped, how long it stays, and what is said of its pages."""

import errno
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import in_child
from command import HOME
from filters import (
    ADD_X,
    ALLOW,
    AND,
    EQUAL,
    GREATER,
    LOAD,
    MADVISE,
    MMAP,
    REFUSE,
    RETURN,
    TO_X,
    argument,
    restrict,
)  # fmt: skip
from machine import evict, needs_line, needs_locking, needs_read_ahead, read_ahead
from pages import PAGE, smaps, told, without_privilege, write_file

from mmrt import counters
from mmrt.core.mapping import Mapping
from mmrt.errors import (
    ArgumentError,
    FileError,
    FormatError,
    MmrtError,
    OutOfMemoryError,
    UnsupportedError,
)
from mmrt.memory.system import os_info


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of eight pages and a bit."""
    pages = b"".join(bytes([i]) * PAGE for i in range(8))
    return write_file(tmp_path / "weights.bin", pages + b"tail")


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


def test_a_file_without_permission_is_named(file: Path) -> None:
    with file.open("rb") as opened:
        file.chmod(0)

        def work() -> None:
            with pytest.raises(FileError, match="Permission denied"):
                Mapping(f"/proc/self/fd/{opened.fileno()}")

        without_privilege(work)


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


def test_an_empty_range_is_no_pages(file: Path) -> None:
    with Mapping(file) as mapping:
        assert mapping.residency(5, 0).total == 0
        assert mapping.residency(5, 0).fraction == 1
        assert mapping.residency(PAGE - 1, 2).total == 2
        mapping.advise("evict", mapping.size, 0)


def test_ranges_and_words_are_checked(file: Path) -> None:
    with Mapping(file) as mapping:
        size = mapping.size
        for offset, length in ((-1, 1), (0, size + 1), (size + 1, None), (1, 2**64), (2**64, 1)):
            with pytest.raises(ArgumentError, match="outside"):
                mapping.advise("normal", offset, length)
            with pytest.raises(ArgumentError, match="outside"):
                mapping.residency(offset, length)
            with pytest.raises(ArgumentError, match="outside"):
                mapping.flush(offset, length)
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


# ---- laziness ----


def test_mapping_a_large_file_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as out:
        out.truncate(64 << 30)
    before = counters.reads()
    with Mapping(path) as mapping:
        spent = counters.reads() - before
        assert mapping.size == 64 << 30
        assert spent.read_bytes in (0, None)
        assert spent.major_faults == 0 and spent.minor_faults < 200
        for offset in range(0, mapping.size, 8 << 30):
            assert mapping.residency(offset, 64 << 20).resident == 0
        with memoryview(mapping) as view:
            assert view[40 << 30] == 0
        assert mapping.residency(40 << 30, PAGE).resident == 1


@pytest.fixture(scope="module")
def many_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("mapping") / "pages", bytes(range(256)) * (8 * PAGE))


TOUCHED = [3, 500, 501, 700, 1023, 2000, 2047]


def touch(mapping: Mapping, pages: list[int]) -> None:
    with memoryview(mapping) as view:
        assert all(view[page * PAGE] == 0 for page in pages)


def test_touching_pages_reads_these_pages(many_pages: Path) -> None:
    evict(many_pages)
    with Mapping(many_pages) as mapping:
        mapping.advise("random")
        touch(mapping, TOUCHED)
        pages = mapping.residency().pages
        assert [i for i, there in enumerate(pages) if there] == TOUCHED


def test_touching_pages_reads_what_was_asked_ahead(many_pages: Path) -> None:
    evict(many_pages)
    ahead = [(100, 5), (1500, 32)]  # first page, pages
    with Mapping(many_pages) as mapping:
        mapping.advise("random")
        for first, n in ahead:
            mapping.advise("willneed", first * PAGE, n * PAGE)
        touch(mapping, [*TOUCHED, 104, 1500])
        for first, n in ahead:
            mapping.advise("populate_read", first * PAGE, n * PAGE)  # waits for them
        pages = mapping.residency().pages
        expected = {*TOUCHED, *range(100, 105), *range(1500, 1532)}
        assert {i for i, there in enumerate(pages) if there} == expected


def test_unadvised_faults_read_no_more_than_the_device_says(many_pages: Path) -> None:
    needs_read_ahead(many_pages, PAGE)
    evict(many_pages)
    with Mapping(many_pages) as mapping:
        touch(mapping, [1000])
        assert 1 <= mapping.residency().resident <= read_ahead(many_pages) // PAGE


# ---- the six arguments ----


def test_a_part_of_a_file(file: Path) -> None:
    with Mapping(file, offset=2 * PAGE, length=PAGE + 1) as mapping:
        assert (mapping.offset, mapping.size) == (2 * PAGE, PAGE + 1)
        assert bytes(mapping) == file.read_bytes()[2 * PAGE : 3 * PAGE + 1]
        assert mapping.residency().total == 2
    with Mapping(file, offset=8 * PAGE) as mapping:
        assert bytes(mapping) == b"tail"


def test_parts_outside_the_file_are_refused(file: Path) -> None:
    for offset, length in ((0, 8 * PAGE + 5), (9 * PAGE, None), (8 * PAGE, 5), (0, 2**62)):
        with pytest.raises(ArgumentError, match=r"weights.bin: .* lie outside its 32772 bytes"):
            Mapping(file, length, offset=offset)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"offset": 1}, f"offset: 1 is not a multiple of the page size, {PAGE}"),
        ({"offset": PAGE // 2}, "not a multiple"),
        ({"offset": -PAGE}, "offset: -4096 is not from 0"),
        ({"offset": 2**64}, "is not from 0"),
        ({"length": 0}, "length: a mapping has at least one byte"),
        ({"length": -1}, "length: -1"),
        ({"address": 12345}, "address: 0x3039 is not a multiple of the page size"),
        ({"protection": "w"}, "protection is 'r' or 'rw'; not 'w'"),
        ({"flags": "shard"}, "flags are shared, private, anonymous, .*; not 'shard'"),
        ({"flags": ["shared", "private"]}, "either shared or private"),
        ({"flags": "anonymous"}, "anonymous mapping has no file"),
        ({"flags": "hugepages"}, "hugepages is for memory without a file"),
    ],
)
def test_wrong_arguments_are_said_in_a_line(
    file: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words) as caught:
        Mapping(file, **arguments)
    assert "\n" not in str(caught.value)
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_a_descriptor(file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with file.open("rb") as opened:
        by_number, by_object = Mapping(opened.fileno()), Mapping(opened)
    for mapping in (by_number, by_object):  # whose descriptor is its own
        assert mapping.path == str(file) and bytes(mapping) == file.read_bytes()
        assert os.fstat(mapping.fileno()).st_ino == file.stat().st_ino
        mapping.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="Bad file descriptor"):
        Mapping(987654)
    with pytest.raises(ArgumentError, match="-3 is no descriptor"):
        Mapping(-3)
    read, write = os.pipe()
    with pytest.raises(FileError, match="a FIFO and not a regular file"):
        Mapping(read)
    os.close(read)
    os.close(write)


def test_a_file_without_a_name() -> None:
    fd = os.memfd_create("weights")
    os.write(fd, b"abc" * PAGE)
    with Mapping(fd) as mapping:
        os.close(fd)
        assert bytes(mapping) == b"abc" * PAGE and "weights" in mapping.path


def test_the_address_is_a_hint(file: Path) -> None:
    with Mapping(file) as mapping:
        taken = mapping.address
        with Mapping(file, address=taken) as other:
            assert other.address != taken  # the first stays where it is
    wanted = taken - (1 << 30)
    with Mapping(file, address=wanted) as mapping:
        assert mapping.address == wanted or mapping.address % PAGE == 0
        assert bytes(mapping)[-4:] == b"tail"


def test_writing_to_a_shared_mapping_reaches_the_file(file: Path) -> None:
    with Mapping(file, protection="rw") as mapping:
        assert mapping.writable
        with memoryview(mapping) as view:
            assert not view.readonly
            view[PAGE] = 77
        mapping.flush(PAGE, 1)
        assert file.read_bytes()[PAGE] == 77


def test_writing_to_a_private_mapping_stays_here(file: Path) -> None:
    before = file.read_bytes()
    file.chmod(0o444)
    with Mapping(file, protection="rw", flags="private") as mapping:
        with memoryview(mapping) as view:
            view[PAGE] = 77
            assert view[PAGE] == 77
        assert file.read_bytes() == before
        with pytest.raises(UnsupportedError, match="cannot be pickled"):
            pickle.dumps(mapping)


def test_writing_needs_the_right_to_it(file: Path) -> None:
    with file.open("rb") as opened, pytest.raises(FileError, match=r"cannot map .*: Permission"):
        Mapping(opened, protection="rw")

    file.chmod(0o444)
    with file.open("rb") as opened:

        def work() -> None:
            with pytest.raises(FileError, match=r"cannot open .*: Permission"):
                Mapping(f"/proc/self/fd/{opened.fileno()}", protection="rw")

        without_privilege(work)


def test_populated_from_the_start(file: Path) -> None:
    evict(file)
    with Mapping(file, flags="populate") as mapping:
        assert mapping.residency().fraction == 1 == mapping.mapped().fraction
        assert mapping.flags == ("populate",)


def test_locked_from_the_start(file: Path) -> None:
    needs_locking(file.stat().st_size)
    with Mapping(file, flags="locked") as mapping:
        assert "lo" in told(mapping.address) and mapping.residency().fraction == 1

    with file.open("rb") as opened:

        def work() -> None:
            with pytest.raises(OutOfMemoryError, match=f"RLIMIT_MEMLOCK .* lock {PAGE}$"):
                Mapping(opened, flags="locked")

        without_privilege(work, memlock=PAGE)


def test_no_memory_reserved(file: Path) -> None:
    with Mapping(file, protection="rw", flags="private|noreserve") as mapping:
        assert "nr" in told(mapping.address)
        assert mapping.flags == ("noreserve", "private")


@pytest.fixture
def memory() -> Iterator[Mapping]:
    with Mapping(length=10 * PAGE) as mapping:
        yield mapping


def test_memory_without_a_file(memory: Mapping) -> None:
    assert memory.writable and memory.path == "[anonymous]"
    assert (memory.fileno(), memory.modified_ns, memory.size) == (-1, 0, 10 * PAGE)
    assert memory.mapped().resident == 0  # until it is touched
    with memoryview(memory) as view:
        assert not any(view)
        view[5 * PAGE] = 1
        assert view[5 * PAGE] == 1
    assert memory.residency().source == "mincore"
    with pytest.raises(UnsupportedError, match="cannot be pickled"):
        pickle.dumps(memory)
    with pytest.raises(ArgumentError, match="no file to advise on"):
        memory.advise_file("willneed")


def test_memory_of_all_kinds() -> None:
    for arguments in (
        {"flags": "anonymous"},
        {"flags": ("anonymous", "shared")},
        {"flags": "private|noreserve|populate"},
        {"protection": "r"},
    ):
        with Mapping(None, 3 * PAGE + 1, **arguments) as mapping:
            assert bytes(mapping) == bytes(3 * PAGE + 1)
    with pytest.raises(ArgumentError, match="needs a length, and no offset"):
        Mapping()
    with pytest.raises(ArgumentError, match="needs a length, and no offset"):
        Mapping(length=PAGE, offset=PAGE)
    with pytest.raises(OutOfMemoryError, match="no address space"):
        Mapping(length=1 << 62)


def test_shared_memory_is_shared_with_children() -> None:
    with Mapping(length=PAGE, flags="shared") as mapping, memoryview(mapping) as view:
        child = os.fork()
        if child == 0:
            view[7] = 99
            os._exit(0)
        os.waitpid(child, 0)
        assert view[7] == 99


def test_reserved_huge_pages() -> None:
    needs_line("/proc/meminfo", "Hugepagesize")
    size = os_info().huge_page_size
    assert size is not None
    if re.search(r"HugePages_Free: +0\n", Path("/proc/meminfo").read_text()):
        with pytest.raises(OutOfMemoryError, match=r"vm.nr_hugepages"):
            Mapping(length=size, flags="hugepages")
        pytest.skip("no huge pages are reserved here: vm.nr_hugepages")
    with Mapping(length=size - 5, flags="hugepages") as mapping:
        with memoryview(mapping) as view:
            view[size - 6] = 1
        assert smaps(mapping.address, "KernelPageSize") == size
    assert os_info().huge_pages_free >= 1  # given back


def test_a_part_pickles_as_its_place(file: Path) -> None:
    with Mapping(file, length=10, offset=PAGE) as mapping:
        pickled = pickle.dumps(mapping)
    with pickle.loads(pickled) as copy:
        assert bytes(copy) == b"\1" * 10
    os.truncate(file, PAGE)
    with pytest.raises(FileError, match="has changed since it was pickled"):
        pickle.loads(pickled)


# ---- few descriptors ----

FEW = """
import os, pickle, resource, sys
import mmrt
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
paths = [os.path.join(sys.argv[1], str(i)) for i in range(100)]
for i, path in enumerate(paths):
    with open(path, "wb") as out:
        out.write(bytes([i]) * 10000)
os.chdir(sys.argv[1])
mappings = [mmrt.Mapping(os.path.basename(path)) for path in paths]
os.chdir("/")
assert len(os.listdir("/proc/self/fd")) < 44
for i, mapping in enumerate(mappings):
    mapping.advise("evict")
    mapping.advise_file("readahead")
    assert memoryview(mapping)[9999] == i
assert len(os.listdir("/proc/self/fd")) < 44
last = mappings[-1]
assert pickle.loads(pickle.dumps(last)).size == 10000
before = len(os.listdir("/proc/self/fd"))
fd = last.fileno()
assert os.path.samestat(os.fstat(fd), os.stat(paths[-1])) and fd == last.fileno()
last.close()
assert len(os.listdir("/proc/self/fd")) == before
os.truncate(paths[-2], 5000)
try:
    mappings[-2].verify()
except mmrt.FileError as error:
    assert "was cut to 5000 bytes" in str(error)
    print("cut")
os.replace(paths[0], paths[-3])
for use in (mappings[-3].fileno, lambda: mappings[-3].advise_file("dontneed")):
    try:
        use()
    except mmrt.FileError as error:
        assert paths[-3] in str(error) or "97" in str(error), error
        print("replaced")
assert memoryview(mappings[-3])[0] == 97
"""


def test_more_mappings_than_the_process_may_have_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW, tmp_path], cwd=HOME, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "cut\nreplaced\nreplaced\n"), done.stderr


# ---- what file systems and disks refuse ----


def test_a_file_system_without_shared_mappings(file: Path) -> None:
    """As some of FUSE and 9p are: what is only read is mapped private."""

    def work() -> None:
        no_file = 0xFFFFFFFF
        restrict([
            (LOAD, 0, 0, 0), (EQUAL, 0, 6, MMAP),
            (LOAD, 0, 0, argument(3)), (AND, 0, 0, 1), (EQUAL, 0, 3, 1),  # MAP_SHARED
            (LOAD, 0, 0, argument(4)), (EQUAL, 1, 0, no_file),
            (RETURN, 0, 0, REFUSE | errno.ENODEV), (RETURN, 0, 0, ALLOW),
        ])  # fmt: skip
        ways: list[dict[str, Any]] = [{"flags": "shared"}, {"protection": "rw"}]
        for asked in ways:
            with pytest.raises(FileError, match="maps no files like this"):
                Mapping(file, **asked)
        with Mapping(file) as mapping:
            assert bytes(mapping) == file.read_bytes()
            assert mapping.residency().fraction == 1
            mapping.advise("populate_read")
        with Mapping(file) as mapping:
            os.truncate(file, 0)
            with pytest.raises(FileError, match="was cut to 0 bytes"):
                mapping.verify()

    in_child(work)


def test_a_page_that_the_disk_cannot_read_is_named(tmp_path: Path) -> None:
    path = write_file(tmp_path / "weights.bin", bytes(64 * PAGE))

    def work() -> None:
        mapping = Mapping(path, address=1 << 45)
        end = (mapping.address + 37 * PAGE) % (1 << 32)
        restrict([  # MADV_POPULATE_READ of anything that reaches into page 37: EFAULT
            (LOAD, 0, 0, 0), (EQUAL, 0, 7, MADVISE),
            (LOAD, 0, 0, argument(2)), (EQUAL, 0, 5, 22),
            (LOAD, 0, 0, argument(1)), (TO_X, 0, 0, 0), (LOAD, 0, 0, argument(0)), (ADD_X, 0, 0, 0),
            (GREATER, 1, 0, end),
            (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | errno.EFAULT),
        ])  # fmt: skip
        mapping.advise("populate_read", 0, 37 * PAGE)
        with pytest.raises(FileError, match=f"weights.bin: cannot read at byte {37 * PAGE}:") as e:
            mapping.advise("populate_read")
        assert e.value.errno == errno.EIO

    in_child(work)


def test_files_that_are_made_while_they_are_read() -> None:
    with pytest.raises(UnsupportedError, match="/proc/cpuinfo: it has no size"):
        Mapping("/proc/cpuinfo")
