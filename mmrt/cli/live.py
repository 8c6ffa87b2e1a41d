"""A line behind the text that says what a slow model is doing."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmrt.core.streaming import Streaming
from mmrt.memory.sizes import human

if TYPE_CHECKING:
    from mmrt.run.model import Model

_PATIENCE = 1.0  # seconds without a token before there is something to say
_EVERY = 0.25

# Saves the cursor, writes faintly and without wrapping, clears what follows, and goes back.
_FRAME = "\x1b7\x1b[?7l\x1b[2m {} \x1b[0m\x1b[K\x1b[?7h\x1b8"
_CLEAR = "\x1b[K"


class Live:
    """begin() at each token; the line is gone then, and comes again after a second."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._lock = threading.Lock()
        self._shown = self._over = False
        self._began = time.monotonic()
        self._before = model.streaming
        self._ended = threading.Event()

    def begin(self, *_: object) -> None:
        """Clears the line, so that text can follow; a step begins."""
        with self._lock:
            if self._shown:
                print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._shown = False
            self._began, self._before = time.monotonic(), self._model.streaming

    def watch(self) -> None:
        """Draws until end()."""
        while not self._ended.wait(_EVERY):
            with self._lock:
                seconds = time.monotonic() - self._began
                if seconds > _PATIENCE:
                    said = status_line(seconds, self._before, self._model.streaming)
                    print(_FRAME.format(said), end="", file=sys.stderr, flush=True)
                    self._shown = True

    def end(self) -> None:
        self._ended.set()


def status_line(seconds: float, before: Streaming | None, now: Streaming | None) -> str:
    """The text of the line, `seconds` into a step."""
    said = f"{seconds:.0f} s"
    if before is None or now is None:
        return f"[{said}]"
    loaded = now.loaded - before.loaded
    if loaded > now.read - before.read:  # the first step, or memory has become more
        return f"[{said}: {human(min(loaded, now.kept))} of {human(now.kept)} kept]"
    n_bytes = now.read - before.read
    if now.streamed:
        said += f": {human(min(n_bytes, now.streamed))} of {human(now.streamed)} read"
        said += f", {n_bytes / seconds / 1e9:.2f} GB/s"
    return f"[{said}]"


@contextmanager
def live(model: "Model") -> Iterator[Live]:
    """For as long as the model writes; draws only where text and line are on one terminal."""
    line = Live(model)
    thread = threading.Thread(target=line.watch, daemon=True)
    if sys.stderr.isatty() and sys.stdout.isatty():
        thread.start()
    try:
        yield line
    finally:
        line.end()
        if thread.is_alive():
            thread.join()
        line.begin()
