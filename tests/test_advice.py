"""Advice: what each word does to the pages of a mapping and of its file."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import in_child
from filters import without_advice
from hostile import make_gguf as make
from machine import evict, needs_advice, needs_collapse, needs_locking, needs_read_ahead
from pages import PAGE, smaps, told, without_privilege, write_file

import mmrt
from mmrt.core.mapping import Mapping
from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.memory.system import os_info

N = 64  # pages of the file; and four bytes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = b"".join(bytes([i]) * PAGE for i in range(N))
    return write_file(tmp_path_factory.mktemp("advice") / "weights.bin", data + b"tail")


@pytest.fixture
def cold(path: Path) -> Iterator[Mapping]:
    """The file, none of it in memory."""
    evict(path)
    with Mapping(path) as mapping:
        yield mapping


@pytest.fixture
def warm(cold: Mapping) -> Mapping:
    """The file, all of it in memory and mapped."""
    cold.advise("populate_read")
    return cold


@pytest.fixture
def memory() -> Iterator[Mapping]:
    """Written pages of private memory."""
    with Mapping(length=512 * PAGE) as mapping:
        with memoryview(mapping) as view:
            view[:] = b"x" * len(view)
        yield mapping


def pages(of: bytes) -> set[int]:
    return {i for i, there in enumerate(of) if there}


def arrive(mapping: Mapping, offset: int, length: int) -> None:
    """Waits until the range is in memory."""
    for _ in range(5000):
        if mapping.residency(offset, length).fraction == 1:
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not come")


# ---- how faults read ----


def test_sequential_random_and_normal_are_told_to_the_kernel(cold: Mapping) -> None:
    cold.advise("sequential")
    assert "sr" in told(cold.address)
    cold.advise("random", 0, 4 * PAGE)
    assert "rr" in told(cold.address) and "sr" in told(cold.address + 4 * PAGE)
    cold.advise("normal")
    assert not {"sr", "rr"} & told(cold.address)


def test_random_faults_read_one_page_and_others_more(cold: Mapping, path: Path) -> None:
    cold.advise("random")
    with memoryview(cold) as view:
        assert view[30 * PAGE] == 30
    assert pages(cold.residency().pages) == {30}
    needs_read_ahead(path, 4 * PAGE)
    for word in ("normal", "sequential"):
        cold.advise("evict")
        evict(path)
        cold.advise(word)
        with memoryview(cold) as view:
            assert view[30 * PAGE] == 30
        assert cold.residency().resident > 1


# ---- bringing in ----


def test_willneed_reads_exactly_the_range(cold: Mapping) -> None:
    cold.advise("willneed", 3 * PAGE, 2 * PAGE)
    cold.advise("willneed", 20 * PAGE + 1, PAGE)  # touches two
    arrive(cold, 3 * PAGE, 2 * PAGE)
    arrive(cold, 20 * PAGE, 2 * PAGE)
    assert pages(cold.residency().pages) == {3, 4, 20, 21}
    assert cold.mapped().resident == 0


def test_willneed_reads_more_than_the_read_ahead(tmp_path: Path) -> None:
    """The kernel drops what is more than that from one request, in silence."""
    path = write_file(tmp_path / "large", bytes(24 << 20))
    evict(path)
    with Mapping(path) as mapping:
        mapping.advise("willneed")
        arrive(mapping, 0, mapping.size)


def test_populate_read_has_read_and_mapped(cold: Mapping) -> None:
    cold.advise("populate_read", 2 * PAGE, 3 * PAGE)
    assert cold.residency(2 * PAGE, 3 * PAGE).fraction == 1
    assert cold.mapped(2 * PAGE, 3 * PAGE).fraction == 1


def test_populate_write_readies_pages_for_writing(tmp_path: Path, cold: Mapping) -> None:
    with Mapping(length=8 * PAGE) as memory:
        before = smaps(memory.address, "Anonymous")  # the kernel may join it with its neighbours
        memory.advise("populate_write", 2 * PAGE, 3 * PAGE)
        assert pages(memory.mapped().pages) == {2, 3, 4}
        assert smaps(memory.address, "Anonymous") - before == 3 * PAGE
    path = write_file(tmp_path / "file", bytes(4 * PAGE))
    with Mapping(path, protection="rw") as mapping:
        mapping.advise("populate_write")
        assert mapping.mapped().fraction == 1
    with pytest.raises(ArgumentError, match="populate_write needs a writable mapping"):
        cold.advise("populate_write")


# ---- letting go ----


def test_dontneed_unmaps_here_and_leaves_the_page_cache(warm: Mapping) -> None:
    warm.advise("dontneed", 2 * PAGE + 1, 3 * PAGE)  # two whole pages, two edges
    assert pages(warm.mapped().pages) == set(range(N + 1)) - {3, 4}
    assert warm.residency().fraction == 1


def test_dontneed_forgets_memory(memory: Mapping) -> None:
    memory.advise("dontneed", PAGE, 2 * PAGE)
    assert bytes(memory) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * (509 * PAGE)


def test_evict_drops_whole_pages_from_the_page_cache(warm: Mapping) -> None:
    warm.advise("evict", 2 * PAGE + 1, 3 * PAGE)
    assert pages(warm.residency().pages) == set(range(N + 1)) - {3, 4}
    assert warm.residency(3 * PAGE, PAGE) == (0, 1, b"\0", "mincore")
    warm.advise("evict", N * PAGE, 4)  # the last page is whole where the file ends
    assert N not in pages(warm.residency().pages)
    warm.advise("evict")
    assert warm.residency().resident == 0


def test_evict_of_memory_forgets_it(memory: Mapping) -> None:
    memory.advise("evict")
    assert memory.mapped().resident == 0 and not any(bytes(memory))


def test_cold_pages_are_no_longer_referenced(warm: Mapping) -> None:
    with memoryview(warm) as view:
        assert sum(view[::PAGE]) > 0
    assert smaps(warm.address, "Referenced") >= N * PAGE
    warm.advise("cold")
    assert smaps(warm.address, "Referenced") < N * PAGE // 2  # the kernel passes over some
    assert warm.residency().fraction == 1


def test_pageout_drops_pages_now(warm: Mapping) -> None:
    warm.advise("pageout", 0, 32 * PAGE)
    assert warm.residency(0, 32 * PAGE).resident == 0
    assert warm.residency(32 * PAGE).fraction == 1


def test_free_lets_memory_go_when_it_is_short(memory: Mapping, cold: Mapping) -> None:
    memory.advise("free")
    assert smaps(memory.address, "LazyFree") > 0  # the kernel counts the last few later
    with pytest.raises(ArgumentError, match="free needs private memory"):
        cold.advise("free")


@pytest.mark.parametrize("word", ["dontneed", "cold", "pageout", "evict"])
def test_locked_pages_are_not_let_go(warm: Mapping, word: str) -> None:
    needs_locking(4 * PAGE)
    warm.lock(0, 4 * PAGE)
    with pytest.raises(ArgumentError, match=f"{word} needs pages that are n.* locked"):
        warm.advise(word, 0, 2 * PAGE)  # type: ignore[arg-type]
    assert warm.residency(0, 4 * PAGE).fraction == 1


# ---- how pages are held ----


@pytest.mark.parametrize(
    ("word", "number", "flag"), [("hugepage", 14, "hg"), ("nohugepage", 15, "nh")]
)
def test_huge_pages_wanted_or_not(memory: Mapping, word: str, number: int, flag: str) -> None:
    needs_advice(number)
    memory.advise(word)  # type: ignore[arg-type]
    assert flag in told(memory.address)


def test_collapse_makes_huge_pages(cold: Mapping) -> None:
    needs_collapse()
    huge = 2 << 20
    with Mapping(length=2 * huge) as memory:
        memory.advise("nohugepage")
        memory.advise("populate_write")
        memory.advise("hugepage")
        start = -memory.address % huge
        memory.advise("collapse", start, huge)
        assert smaps(memory.address + start, "AnonHugePages") >= huge


def test_mergeable_memory(memory: Mapping) -> None:
    needs_advice(12)
    memory.advise("mergeable")
    assert "mg" in told(memory.address)
    memory.advise("unmergeable")
    assert "mg" not in told(memory.address)


# ---- on the file ----


@pytest.mark.parametrize("word", ["willneed", "readahead"])
def test_reading_ahead_by_descriptor(cold: Mapping, path: Path, word: str) -> None:
    cold.advise_file(word, 3 * PAGE, 2 * PAGE)  # type: ignore[arg-type]
    arrive(cold, 3 * PAGE, 2 * PAGE)
    with Mapping(path, offset=40 * PAGE) as part:  # whose bytes begin there
        part.advise_file(word, PAGE, PAGE)  # type: ignore[arg-type]
        arrive(part, PAGE, PAGE)
    assert pages(cold.residency().pages) == {3, 4, 41}


def test_dontneed_drops_what_is_not_mapped(warm: Mapping) -> None:
    warm.advise("dontneed", 0, 8 * PAGE)
    warm.advise_file("dontneed")
    assert warm.residency(0, 8 * PAGE).resident == 0
    assert warm.residency(8 * PAGE, 8 * PAGE).fraction == 1  # still mapped


def test_random_reads_by_descriptor_read_one_page(cold: Mapping, path: Path) -> None:
    cold.advise_file("random", 0, 1)  # for the whole file, whatever the range
    assert os.pread(cold.fileno(), 1, 30 * PAGE) == bytes([30])
    assert pages(cold.residency().pages) == {30}
    needs_read_ahead(path, 4 * PAGE)
    for word in ("normal", "sequential", "noreuse"):
        cold.advise_file("dontneed")
        cold.advise_file(word)
        assert os.pread(cold.fileno(), PAGE, 0) == bytes(PAGE)
        assert cold.residency().resident > 1
        cold.advise_file("normal")


# ---- what is refused ----


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda mapping: mapping.advise("soon"), "advice is one of normal, .*; not 'soon'"),
        (lambda mapping: mapping.advise_file("soon"), "one of normal, .* dontneed; not 'soon'"),
        (lambda mapping: mapping.advise("normal", -1), "outside"),
        (lambda mapping: mapping.advise_file("normal", 0, 2**64), "outside"),
    ],
)
def test_wrong_words_and_ranges(cold: Mapping, use: Callable[[Mapping], None], words: str) -> None:
    with pytest.raises(ArgumentError, match=words) as caught:
        use(cold)
    assert "\n" not in str(caught.value)


def test_every_advice_is_known_or_said_to_be_lacking(cold: Mapping) -> None:
    for word, state in os_info().advice.items():
        if state != "available":
            with pytest.raises(UnsupportedError, match=f"does not know the advice {word}"):
                cold.advise(word)  # type: ignore[arg-type]


def test_a_kernel_that_lacks_an_advice(path: Path) -> None:
    populate_read, collapse = 22, 25

    def work() -> None:
        with Mapping(path) as mapping:
            without_advice(populate_read, collapse)
            with pytest.raises(UnsupportedError, match=r"populate_read; Linux has it since 5\.14"):
                mapping.advise("populate_read")
            with pytest.raises(UnsupportedError, match=r"collapse; Linux has it since 6\.1"):
                mapping.advise("collapse")
            mapping.advise("willneed")
            states = os_info().advice
            lacking = {word for word, state in states.items() if state != "available"}
            assert {"populate_read", "collapse"} <= lacking and "normal" not in lacking
            assert "populate_read: not in this kernel (Linux has it since 5.14" in str(os_info())

    in_child(work)


# ---- by tensor ----


def test_tensors_are_advised_on_their_bytes(tmp_path: Path) -> None:
    tensors = tuple(make.tensor(f"t{i}", (4 * PAGE,), 24, i * 4 * PAGE) for i in range(64))
    path = write_file(tmp_path / "t.gguf", make.gguf((), tensors, bytes(64 * 4 * PAGE)))
    evict(path)
    with mmrt.open(path) as file:
        tensor = file["t40"]
        tensor.prefetch()
        arrive(tensor.mapping, tensor.offset, tensor.nbytes)
        assert file["t50"].residency().resident == 0
        tensor.evict()
        assert tensor.residency().resident <= 2  # edges, shared with neighbours
        tensor.advise_file("readahead")
        arrive(tensor.mapping, tensor.offset, tensor.nbytes)
        tensor.advise("random")
        assert "rr" in told(tensor.mapping.address + tensor.offset)


# ---- locking ----


def test_locked_pages_stay(cold: Mapping) -> None:
    needs_locking(2 * PAGE)
    cold.lock(PAGE, 2 * PAGE)
    assert "lo" in told(cold.address + PAGE) and "lo" not in told(cold.address)
    assert cold.residency(PAGE, 2 * PAGE).fraction == 1
    cold.unlock()
    assert "lo" not in told(cold.address + PAGE)
    cold.advise("evict")
    assert cold.residency().resident == 0


def test_locking_on_fault_reads_nothing(cold: Mapping) -> None:
    needs_locking(cold.size)
    cold.advise("random")
    cold.lock(on_fault=True)
    assert cold.residency().resident == 0
    with memoryview(cold) as view:
        assert view[9 * PAGE] == 9
    assert pages(cold.residency().pages) == {9}
    assert smaps(cold.address, "Locked") == PAGE


def test_the_limit_on_locked_memory_is_named(path: Path) -> None:
    with path.open("rb") as file:

        def work() -> None:
            with Mapping(file) as mapping:
                mapping.lock(0, 2 * PAGE)
                for on_fault in (False, True):
                    with pytest.raises(mmrt.OutOfMemoryError, match="RLIMIT_MEMLOCK") as caught:
                        mapping.lock(2 * PAGE, 8 * PAGE, on_fault=on_fault)
                    assert f"cannot lock {8 * PAGE} bytes" in str(caught.value)
                    assert str(caught.value).endswith(f"lock {4 * PAGE}")
                assert os_info().memlock_limit == 4 * PAGE

        without_privilege(work, memlock=4 * PAGE)


def test_no_right_to_lock_at_all(path: Path) -> None:
    with path.open("rb") as file:

        def work() -> None:
            with Mapping(file) as mapping, pytest.raises(mmrt.OutOfMemoryError, match=r"lock 0$"):
                mapping.lock()

        without_privilege(work, memlock=0)
