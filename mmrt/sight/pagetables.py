"""The page tables that a mapping needs, by arithmetic.

A table is one page of 8-byte entries: 512 of them, with pages of 4 KiB. A leaf table points at
pages (2 MiB of them), a middle table at leaf tables (1 GiB), or straight at huge pages, which need
no leaf tables. The levels above, a table for each 512 GiB, a process has in any case.

20 GiB in 4 KiB pages: 10240 leaf and 20 middle tables, 40.078125 MiB, if the range begins where
tables begin; one more of each where it does not.
"""

import mmap
from dataclasses import dataclass

ENTRY = 8  # bytes


def leaf_span(page: int = mmap.PAGESIZE) -> int:
    """Bytes that one leaf table maps; also the size of a huge page."""
    return page // ENTRY * page


def middle_span(page: int = mmap.PAGESIZE) -> int:
    """Bytes that one middle table maps."""
    return page // ENTRY * leaf_span(page)


@dataclass(frozen=True)
class PageTables:
    """How many tables of each level."""

    leaf: int
    middle: int
    page: int = mmap.PAGESIZE  # bytes: of a page, and of a table

    @property
    def tables(self) -> int:
        return self.leaf + self.middle

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return self.tables * self.page


def spanning(
    address: int, length: int, *, page: int = mmap.PAGESIZE, huge: bool = False
) -> PageTables:
    """For `length` bytes from `address`, every page of them touched.

    huge: all that can be is mapped by huge pages; of the ends, what does not fill one is not.
    """
    leaf = _touched(address, length, leaf_span(page))
    if huge:
        inside = (address + length) // leaf_span(page) - -(-address // leaf_span(page))
        leaf -= max(inside, 0)
    return PageTables(leaf, _touched(address, length, middle_span(page)), page)


def mapped(
    address: int, pages: bytes, *, page: int = mmap.PAGESIZE, huge_bytes: int = 0
) -> PageTables:
    """For the pages that are mapped of a range that begins at `address`: `pages` has one byte for
    each, 1 if it is (Mapping.mapped().pages). huge_bytes: so much of it is mapped by huge pages
    (counters.of_file().huge)."""
    first = address // page
    leaf = _with_pages(first, pages, leaf_span(page) // page)
    middle = _with_pages(first, pages, middle_span(page) // page)
    return PageTables(max(leaf - huge_bytes // leaf_span(page), 0), middle, page)


def _touched(address: int, length: int, span: int) -> int:
    return (address + length - 1) // span - address // span + 1 if length else 0


def _with_pages(first: int, pages: bytes, span: int) -> int:
    """How many spans of `span` pages have a page in them, the range's first being page `first`."""
    starts = range(-(first % span), len(pages), span)
    return sum(pages.find(1, max(start, 0), start + span) >= 0 for start in starts)
