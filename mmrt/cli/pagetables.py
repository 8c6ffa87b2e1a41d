"""`mmrt pagetables`: the arithmetic of page tables."""

import argparse
import mmap

from mmrt.cli.options import UsageError, size
from mmrt.memory.sizes import human
from mmrt.sight.pagetables import ENTRY, PageTables, leaf_span, middle_span, spanning

DESCRIPTION = """\
Explains how many page tables mapping SIZE bytes takes, once every page has been
touched: in the smallest pages, in huge pages, and where the mapping begins at an
address that is no boundary between tables. `mmrt residency FILE --json` says it
of a file at its real address, beside the kernel's count.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("size", type=size, metavar="SIZE", help="bytes, or such as 20GiB or 98M")
    parser.add_argument(
        "--page", type=size, default=mmap.PAGESIZE, metavar="SIZE",
        help=f"bytes in a page (default: this system's, {mmap.PAGESIZE})",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    page = arguments.page
    if page & (page - 1) or not 1 << 10 <= page <= 1 << 30:
        raise UsageError(f"--page: {page} is no power of two from 1 KiB to 1 GiB")
    print(explain(arguments.size, arguments.page))


def explain(length: int, page: int) -> str:
    best, worst = spanning(0, length, page=page), spanning(page, length, page=page)
    huge = spanning(0, length, page=page, huge=True)
    entries, pages = page // ENTRY, -(-length // page)
    leaf, middle = leaf_span(page), middle_span(page)
    share = f"{best.nbytes / length:.2%} of what they map"
    return f"""\
{_exact(length)} in pages of {_exact(page)}: {pages:,} pages.
A page table is itself a page: {entries} entries of {ENTRY} bytes.

  leaf tables    {best.leaf:>10,}   each maps {_exact(leaf)}: {pages:,} / {entries}
  middle tables  {best.middle:>10,}   each maps {_exact(middle)}: {best.leaf:,} / {entries}
  in all         {best.tables:>10,}   {_cost(best)}, {share}

At the worst address, one page beyond a boundary: {_tables(worst)}.
In huge pages of {_exact(leaf)}, which middle tables point at themselves: {_tables(huge)}.

Tables come with the first touch of a page, not with the mapping. The levels
above the middle one (a table for each {_exact(middle * entries)}) a process has in any case.
The kernel's own count is VmPTE in /proc/PID/status."""


def _tables(tables: PageTables) -> str:
    return f"{tables.tables:,} table{'s' * (tables.tables != 1)}, {_cost(tables)}"


def _cost(tables: PageTables) -> str:
    """40.078125 MiB: exact, for it is often quoted rounded."""
    return f"{tables.nbytes / (1 << 20):.10g} MiB"


def _exact(n_bytes: int) -> str:
    """The largest unit that gives a whole number."""
    for factor, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n_bytes >= factor and n_bytes % factor == 0:
            return f"{n_bytes // factor:,} {unit}"
    return f"{n_bytes:,} bytes ({human(n_bytes)})" if n_bytes >= 1024 else f"{n_bytes} bytes"
