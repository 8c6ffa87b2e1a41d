"""Which pages of a range are in memory, and how that is known."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Source = Literal["mincore", "pagemap"]


class Residency(NamedTuple):
    """Which pages of a byte range are in memory.

    Edge pages count in full, so two tensors that share a page both count it.
    """

    resident: int
    """Pages in memory."""

    total: int
    """Pages that the range touches."""

    pages: bytes
    """One byte a page, in order: 1 if it is in memory, else 0."""

    source: Source
    """Who says so. "mincore": the page is in the page cache, whoever brought it there. "pagemap":
    the page is mapped by this process; used where the kernel would not tell the truth about the
    cache, to a process that neither owns nor may write the file."""

    def __repr__(self) -> str:
        return f"<Residency: {self.resident} of {self.total} pages in memory ({self.source})>"

    @classmethod
    def of(cls, pages: bytes, source: Source) -> "Residency":
        return cls(pages.count(1), len(pages), pages, source)

    @classmethod
    def join(cls, ranges: Sequence["Residency"]) -> "Residency":
        """Of several ranges one after another. "pagemap" if any of them is: it promises less."""
        pages = b"".join(part.pages for part in ranges)
        less = any(part.source == "pagemap" for part in ranges)
        return cls.of(pages, "pagemap" if less else "mincore")

    @property
    def fraction(self) -> float:
        """The resident part, 0 to 1; 1 for an empty range."""
        return self.resident / self.total if self.total else 1.0

    def parts(self, n: int) -> list[float]:
        """The resident fraction of each of `n` equal stretches of the range, each a page at least:
        they overlap where there are more of them than pages. [] for an empty range.
        """
        if not self.total:
            return []
        edges = [i * self.total / n for i in range(n + 1)]
        stretches = [
            self.pages[int(start) : max(int(start) + 1, int(end))] for start, end in pairwise(edges)
        ]
        return [stretch.count(1) / len(stretch) for stretch in stretches]

    def runs(self) -> list[tuple[int, int]]:
        """Where the resident pages are: (the first, how many) of each unbroken run."""
        found, start = [], self.pages.find(1)
        while start >= 0:
            end = self.pages.find(0, start)
            end = self.total if end < 0 else end
            found.append((start, end - start))
            start = self.pages.find(1, end)
        return found
