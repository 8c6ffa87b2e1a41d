"""What each text of an engine was doing, and when."""

from collections import deque
from collections.abc import Iterable
from typing import Literal, NamedTuple

Doing = Literal["waiting", "reading", "writing", "parked"]

# Stretches that are remembered, 2 MB of them; older ones are forgotten.
_MOST = 1 << 14


class Span(NamedTuple):
    """From `start` to `end`, in seconds since its engine began, a text was doing one thing:
    waiting for its turn, having its prompt read, writing, or, as memory was short, parked."""

    text: int
    doing: Doing
    start: float
    end: float


class Phases:
    """The spans of an engine's texts. Times are on one clock, in seconds."""

    def __init__(self, began: float, most: int = _MOST) -> None:
        self.began = began
        self._past: deque[Span] = deque(maxlen=most)
        self._present: dict[int, tuple[Doing, float]] = {}

    def note(self, texts: Iterable[tuple[int, Doing]], now: float) -> None:
        """What these texts are doing from now on."""
        for text, doing in texts:
            before = self._present.get(text)
            if before is None or before[0] != doing:
                self._close(text, now)
                self._present[text] = doing, now

    def end(self, text: int, now: float) -> None:
        """The text has ended."""
        self._close(text, now)
        self._present.pop(text, None)

    def _close(self, text: int, now: float) -> None:
        if text in self._present:
            self._past.append(self._span(text, now))

    def _span(self, text: int, now: float) -> Span:
        doing, start = self._present[text]
        return Span(text, doing, start - self.began, now - self.began)

    def doing(self, text: int) -> Doing | None:
        """None: it has ended, or is not known."""
        return self._present[text][0] if text in self._present else None

    def spans(self, now: float) -> list[Span]:
        """What is remembered, in order of the ends; spans that go on end now."""
        return [*self._past, *(self._span(text, now) for text in self._present)]
