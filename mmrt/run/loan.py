"""Who may write in a text: one stream at a time."""

import weakref
from collections.abc import Callable
from typing import Protocol

from mmrt.errors import InUseError

_IN_USE = "the text is in use by a stream that has not ended: close() that first"


class Writer(Protocol):
    """What goes on with a text until it ends: a Stream."""

    def close(self) -> None:
        """Ends it."""


class Loan:
    """A text that is lent to one writer at a time."""

    def __init__(self) -> None:
        self._free = [True]  # empty while a writer has it: of two threads, one pops
        self._writer: weakref.ref[Writer] | None = None

    def lend(self, writer: Writer) -> Callable[[], object]:
        """Leaves the text to `writer` alone, which has it until it calls what is returned, or is
        dropped. Raises InUseError where another one has it."""
        try:
            self._free.pop()
        except IndexError:
            raise InUseError(_IN_USE) from None
        self._writer = weakref.ref(writer)
        give_back = weakref.finalize(writer, self._free.append, True)
        give_back.atexit = False
        return give_back

    def end_writer(self) -> None:
        """Closes the stream that writes in the text, if there is one."""
        writer = None if self._writer is None else self._writer()
        if writer is not None:
            writer.close()

    def require_free(self) -> None:
        """Raises InUseError while a writer has it."""
        if not self._free:
            raise InUseError(_IN_USE)
