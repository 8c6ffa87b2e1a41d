"""Page tables: the arithmetic, and the kernel's own count."""

import mmap
from pathlib import Path

import pytest
from machine import needs_line

from mmrt import counters, pagetables
from mmrt.core.mapping import Mapping

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB


@pytest.mark.parametrize(
    ("address", "length", "huge", "leaf", "middle"),
    [
        (0, 20 * GIB, False, 10240, 20),
        (0, 20 * GIB, True, 0, 20),
        (PAGE, 20 * GIB, False, 10241, 21),
        (PAGE, 20 * GIB, True, 2, 21),
        (7 * GIB + 2 * MIB - PAGE, 2 * PAGE, False, 2, 1),
        (8 * GIB - PAGE, 2 * PAGE, False, 2, 2),
        (PAGE, PAGE, True, 1, 1),
        (PAGE, 2 * MIB, True, 2, 1),
        (2 * MIB, 2 * MIB, True, 0, 1),
        (0, 1, False, 1, 1),
        (0, 0, False, 0, 0),
    ],
)
def test_tables_for_a_range(address: int, length: int, huge: bool, leaf: int, middle: int) -> None:
    found = pagetables.spanning(address, length, page=PAGE, huge=huge)
    assert (found.leaf, found.middle) == (leaf, middle)


def test_the_figure_that_is_quoted() -> None:
    tables = pagetables.spanning(0, 20 * GIB, page=PAGE)
    assert tables.tables == 10260
    assert tables.nbytes / MIB == 40.078125


def test_larger_pages_need_fewer_tables() -> None:
    tables = pagetables.spanning(0, 20 * GIB, page=64 * KIB)
    assert (tables.leaf, tables.middle) == (40, 1)
    assert pagetables.leaf_span(64 * KIB) == 512 * MIB


def test_tables_of_what_is_mapped() -> None:
    span = 512  # pages of a leaf table
    pages = bytearray(4 * span)
    assert pagetables.mapped(0, bytes(pages), page=PAGE) == pagetables.PageTables(0, 0, PAGE)
    pages[span] = pages[span + 7] = pages[4 * span - 1] = 1
    assert pagetables.mapped(0, bytes(pages), page=PAGE).leaf == 2
    # Three pages further on, the last page lies beyond the next table's beginning.
    assert pagetables.mapped(3 * PAGE, bytes(pages), page=PAGE).leaf == 2
    assert pagetables.mapped(3 * PAGE, b"\1" * span, page=PAGE).leaf == 2
    assert pagetables.mapped(GIB - PAGE, b"\1\1", page=PAGE) == pagetables.PageTables(2, 2, PAGE)
    full = pagetables.mapped(0, b"\1" * 4 * span, page=PAGE, huge_bytes=3 * 2 * MIB)
    assert (full.leaf, full.middle) == (1, 1)


def test_the_prediction_is_what_the_kernel_then_counts(tmp_path: Path) -> None:
    """A sparse file of 256 MiB, touched in every page, one page in each huge page, and not at
    all."""
    needs_line("/proc/self/status", "VmPTE")
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(256 * MIB)
    with Mapping(path) as mapping, memoryview(mapping) as view:
        predicted = pagetables.spanning(mapping.address, mapping.size)
        assert predicted.leaf in (128, 129) or mmap.PAGESIZE != PAGE
        bare = counters.page_tables()
        assert pagetables.mapped(mapping.address, mapping.mapped().pages).tables == 0

        assert not any(view[:: pagetables.leaf_span()])
        sparse = counters.page_tables()
        assert not any(view[:: mmap.PAGESIZE])
        full = counters.page_tables()
        assert bare is not None and sparse is not None and full is not None

        huge = counters.of_file(path).huge
        now = pagetables.mapped(mapping.address, mapping.mapped().pages, huge_bytes=huge)
        if not huge:
            assert now == predicted
        # Tables at the ends may be shared with neighbours, or be another level's first.
        slack = 4 * mmap.PAGESIZE
        assert abs((full - bare) - now.nbytes) <= slack
        # One page in each stretch of a leaf table takes all of the tables, or all but one.
        assert full - sparse <= slack
