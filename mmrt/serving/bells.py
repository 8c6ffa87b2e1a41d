"""Waking coroutines from other threads."""

import asyncio
from collections import deque


class Bells:
    """Events of a loop that any thread may set. The loop is woken once for all that were set since
    it last looked: that takes a system call, and a step of an engine sets many."""

    def __init__(self) -> None:
        """In the loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._rung: deque[asyncio.Event] = deque()
        self._called = False

    def ring(self, event: asyncio.Event) -> None:
        """Has `event` set. Raises RuntimeError where the loop is closed."""
        self._rung.append(event)
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._called = False  # before the last look: what comes later calls again
        while self._rung:
            self._rung.popleft().set()
