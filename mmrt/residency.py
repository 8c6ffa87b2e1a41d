"""Which pages of a range are in memory, and how that is known."""

from typing import NamedTuple


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

    source: str
    """Who says so. "mincore": the page is in the page cache, whoever brought it there. "pagemap":
    the page is mapped by this process; used where the kernel would not tell the truth about the
    cache, to a process that neither owns nor may write the file."""

    @property
    def fraction(self) -> float:
        """The resident part, 0 to 1; 1 for an empty range."""
        return self.resident / self.total if self.total else 1.0
