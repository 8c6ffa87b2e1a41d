"""Who runs next: feedback scheduling, on whatever clock the caller has.

Each job has a class and a number P. Jobs that are ready run in the order of (class, P, when they
joined the ready queue), the lowest first. C is what a job has used in the present interval. At the
end of each interval P = P // 2 + C and C = 0, for all jobs, those that wait too: who has had much
steps back, and forgets it within a few intervals. Whole numbers, so that P comes down to 0: a job
that waits under a steady stream of new ones is at the front after some log2(P) intervals.
"""

from collections.abc import Iterable
from math import floor


class Job:
    """Something that wants to run. rank_class: a smaller one runs first, whatever its P."""

    def __init__(self, rank_class: int = 0) -> None:
        self.rank_class = rank_class
        self.p = 0
        self.used = 0.0  # in the present interval; what was less than one is carried over
        self.had = 0.0  # in all
        self.joined = (0.0, 0)  # when, and the number of the joining
        self.is_ready = False

    @property
    def rank(self) -> tuple[int, int, tuple[float, int]]:
        return self.rank_class, self.p, self.joined


class Feedback:
    """The jobs, ready and blocked. Times and uses are in any one unit, such as milliseconds, of
    which P counts whole ones."""

    def __init__(self, interval: float, now: float = 0.0) -> None:
        self.interval = interval
        self._end = now + interval
        self._jobs: dict[Job, None] = {}
        self._n_joined = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def join(self, job: Job, now: float) -> None:
        """The job is ready from now on, behind its equals; a new one or one that was blocked."""
        self._jobs[job] = None
        job.joined = now, self._n_joined
        job.is_ready = True
        self._n_joined += 1

    def block(self, job: Job) -> None:
        """The job waits for something else. Its P goes on falling."""
        job.is_ready = False

    def leave(self, job: Job) -> None:
        """The job has ended."""
        job.is_ready = False
        self._jobs.pop(job, None)

    def charge(self, job: Job, amount: float) -> None:
        """The job has used so much."""
        job.used += amount
        job.had += amount

    def ready(self) -> list[Job]:
        """The jobs that are ready, who is to run first before the others."""
        return sorted((job for job in self._jobs if job.is_ready), key=lambda job: job.rank)

    @property
    def interval_end(self) -> float:
        """When the present interval ends."""
        return self._end

    def advance(self, now: float) -> None:
        """Ends the intervals that are over."""
        while now >= self._end:
            ran = [job for job in self.ready() if job.used >= 1]
            for job in self._jobs:
                c = floor(job.used)
                job.p = self.aged(job.p, c)
                job.used -= c
            for job in ran:  # behind equals that have not run
                self.join(job, self._end)
            self._end += self.interval

    def aged(self, p: int, c: int) -> int:
        """The P of the next interval."""
        return p // 2 + c


def simulate(
    arrivals: Iterable[tuple[float, Job, float]], feedback: Feedback, slice_: float
) -> dict[Job, float]:
    """One processor that runs jobs of (arrival, job, what it takes in all), in order of arrival, by
    the rule, and changes over when one of a lower number arrives, at the end of an interval and
    after `slice_`. Returns when each has ended."""
    waiting = iter(arrivals)
    coming = next(waiting, None)
    left: dict[Job, float] = {}
    ended: dict[Job, float] = {}
    now = 0.0
    while left or coming:
        if not left and coming:
            now = max(now, coming[0])
        feedback.advance(now)
        while coming and coming[0] <= now:
            _, job, left[job] = coming
            feedback.join(job, coming[0])
            coming = next(waiting, None)
        job = feedback.ready()[0]
        until = min(now + left[job], now + slice_, feedback.interval_end)
        if coming:
            until = min(until, max(coming[0], now))
        feedback.charge(job, until - now)
        left[job] -= until - now
        now = until
        if left[job] <= 1e-9:
            del left[job]
            feedback.leave(job)
            ended[job] = now
    return ended
