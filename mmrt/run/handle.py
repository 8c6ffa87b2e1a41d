"""A text that an engine writes, as whoever asked for it sees it."""

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from mmrt.errors import InUseError, UnsupportedError
from mmrt.run.generation import Finish, Piece, Text
from mmrt.text.toolcalls import ToolParser


def require_process(process: int | None) -> None:
    """Raises UnsupportedError in a child that was forked by `process`: the engine's thread is the
    parent's. None: it has no thread."""
    if process is not None and os.getpid() != process:
        raise UnsupportedError("the engine goes on in the parent process: make one of your own")


@dataclass(frozen=True)
class Report:
    """What became of a text. Seconds since submit(), None for what has not come yet; the tokens of
    the prompt, and of them those that were found in memory; the longest wait between two tokens;
    how often the text gave its memory up and was read again."""

    queued: float | None
    first_token: float | None
    ended: float | None
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    worst_gap: float
    parked: int


class Handle:
    """A text that an engine writes: an iterator of Pieces, also an asynchronous one. Any thread may
    use it."""

    def __init__(
        self,
        prompt_tokens: int,
        cancel: Callable[["Handle"], None],
        parser: ToolParser | None = None,
        drive: Callable[[], object] | None = None,
        thread: threading.Thread | None = None,
    ) -> None:
        """parser: of the calls in the text. drive: has the engine go on, where it has no thread of
        its own that does; else `thread` does."""
        self.number = 0  # of its engine's texts, by order of submit()
        self.prompt_tokens = prompt_tokens
        self._cancel = cancel
        self._parser = parser
        self._drive, self._thread = drive, thread
        # Entered as the lock itself, in C: what a signal's handler raises amid Condition.__enter__
        # would leave it held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._process = None if drive is not None else os.getpid()
        self._pieces: deque[Piece] = deque()
        self._waiters: set[Callable[[], object]] = set()
        self._error: BaseException | None = None
        self._over = False
        self.submitted = time.monotonic()
        self.started: float | None = None
        self._first: float | None = None
        self._last: float | None = None
        self._ended: float | None = None
        self._gap = 0.0
        self.cached_tokens = 0
        self.parked = 0
        self.tokens = 0
        self.finish: Finish | None = None

    # ---- the engine's side ----

    def begin(self, cached_tokens: int) -> None:
        """Its prompt is about to be read, of which so many tokens were in memory."""
        if self.started is None:
            self.started = time.monotonic()
        if self._first is None:
            self.cached_tokens = max(self.cached_tokens, cached_tokens)

    def tell(self, pieces: Sequence[Piece], now: float) -> None:
        """More of it was written."""
        written = sum(piece.token is not None for piece in pieces)
        if written and self._first is None:
            self._first = now
        elif written and self._last is not None:
            self._gap = max(self._gap, now - self._last)
        if written:
            self._last = now
        self.tokens += written
        with self._lock:
            self._pieces.extend(pieces)
            if pieces and pieces[-1].finish is not None:
                self.finish, self._over, self._ended = pieces[-1].finish, True, now
            self._wake()

    def end(self, error: BaseException | None) -> None:
        """Nothing more comes, if that was not clear before."""
        with self._lock:
            if not self._over:
                self._error, self._over, self._ended = error, True, time.monotonic()
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, set()
        for wake in waiters:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                wake()

    # ---- the caller's side ----

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        """The next piece; raises what ended the text, if it was an error."""
        require_process(self._process)
        while self._drive is not None and not self._pieces and not self._over:
            self._drive()
        with self._lock:
            while not self._pieces and not self._over:
                self._require_another_thread()
                self._changed.wait()
            return self._next(StopIteration)

    def _require_another_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise InUseError("the engine, which calls on_prefill, cannot wait for a text then")

    def _next(self, end: type[Exception]) -> Piece:
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            raise self._error
        raise end

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        require_process(self._process)
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self._pieces or self._over:
                    return self._next(StopAsyncIteration)
                self._require_another_thread()
                came = asyncio.Event()
                self._waiters.add(partial(loop.call_soon_threadsafe, came.set))
            await came.wait()

    def take(self, wake: Callable[[], object]) -> list[Piece] | None:
        """The pieces that have come, without waiting for any; None: no more will come. Where there
        are none yet, `wake` is called when there are, once, in the engine's thread. Raises what
        ended the text, if it was an error."""
        require_process(self._process)
        with self._lock:
            if self._pieces:
                taken = list(self._pieces)
                self._pieces.clear()
                return taken
            if self._error is not None:
                raise self._error
            if self._over:
                return None
            self._waiters.add(wake)
            return []

    def text(self) -> Text:
        """All that is still to come, whole; waits for it."""
        return self._as_text(list(self))

    async def text_async(self) -> Text:
        """The same, for a coroutine."""
        return self._as_text([piece async for piece in self])

    def _as_text(self, pieces: Sequence[Piece]) -> Text:
        ended = self.submitted if self._ended is None else self._ended
        return Text.of(
            pieces,
            self.finish,
            self._parser,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            tokens=self.tokens,
            seconds=ended - self.submitted,
        )

    def cancel(self) -> None:
        """Ends it before the engine's next step; what was written is still there to be read."""
        require_process(self._process)
        self._cancel(self)

    @property
    def report(self) -> Report:
        """What became of it so far."""
        times = self.started, self._first, self._ended
        queued, first, ended = (None if t is None else t - self.submitted for t in times)
        return Report(
            queued,
            first,
            ended,
            self.prompt_tokens,
            self.cached_tokens,
            self.tokens,
            self._gap,
            self.parked,
        )

    def __repr__(self) -> str:
        state = "going on" if not self._over else f"ended: {self.finish or self._error}"
        return f"<Handle of {self.tokens} tokens after {self.prompt_tokens}, {state}>"
