"""What became of a model's texts so far, in numbers."""

import bisect
from collections import Counter
from collections.abc import Iterable

from mmrt.run.handle import Handle

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)


class Histogram:
    """Numbers, counted by size."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class Record:
    """What became of a model's texts so far."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()  # by reason: stop, length, abort, error
        self.refused = 0  # for want of room
        self.prompt_tokens = self.cached_tokens = self.tokens = self.parked = 0
        self.first_token = Histogram(_LONG)
        self.between_tokens = Histogram(_SHORT)
        self.whole = Histogram(_LONG)
        self.queued = Histogram(_LONG)
        self.prefill = Histogram(_LONG)
        self.decode = Histogram(_LONG)

    def end(self, handle: Handle, failed: bool) -> None:
        """A text has ended, or was left by its client."""
        report = handle.report
        self.ended[handle.finish or ("error" if failed else "abort")] += 1
        self.tokens += report.tokens
        self.parked += report.parked
        if report.queued is None:
            return
        self.prompt_tokens += report.prompt_tokens
        self.cached_tokens += report.cached_tokens
        self.queued.observe(report.queued)
        if report.first_token is not None:
            self.first_token.observe(report.first_token)
            self.prefill.observe(report.first_token - report.queued)
        if handle.finish is not None and report.ended is not None:
            self.whole.observe(report.ended)
            if report.first_token is not None:
                self.decode.observe(report.ended - report.first_token)
