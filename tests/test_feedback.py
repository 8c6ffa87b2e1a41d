"""Feedback scheduling on a virtual clock: worked examples, theory, and nobody starves."""

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrt.run.feedback import Feedback, Job, simulate


def play(names: dict[str, int], blocks: dict[str, tuple[float, float]], end: float) -> list[str]:
    """Who runs when, from 0 to `end`, as "X 0-1", and the numbers at the end of each interval.

    names: the processes in order of arrival, with their P. blocks: of some, how long they run
    before they wait, and for how long they wait. Slices and intervals are 10 long.
    """
    feedback = Feedback(10)
    jobs = {name: Job() for name in names}
    for name, job in jobs.items():
        job.p = names[name]
        feedback.join(job, 0)
    name_of = {job: name for name, job in jobs.items()}
    wakes: list[tuple[float, str]] = []
    ran = dict.fromkeys(names, 0.0)  # since it last waited
    moves: list[str] = []
    now = 0.0
    while now < end:
        job = feedback.ready()[0]
        name = name_of[job]
        until = min(end, feedback.interval_end, now + 10, *(at for at, _ in wakes))
        if name in blocks:
            until = min(until, now + blocks[name][0] - ran[name])
        feedback.charge(job, until - now)
        ran[name] += until - now
        if moves and moves[-1].startswith(f"{name} ") and moves[-1].endswith(f"-{now:g}"):
            moves[-1] = moves[-1].rpartition("-")[0] + f"-{until:g}"
        else:
            moves.append(f"{name} {now:g}-{until:g}")
        now = until
        if name in blocks and ran[name] == blocks[name][0]:
            feedback.block(job)
            ran[name] = 0.0
            heapq.heappush(wakes, (now + blocks[name][1], name))
        while wakes and wakes[0][0] <= now:
            at, woken = heapq.heappop(wakes)
            feedback.join(jobs[woken], at)
        if now >= feedback.interval_end:
            feedback.advance(now)
            moves.append(" ".join(f"{n}={jobs[n].p}" for n in names))
    return moves


WAITING = {"X": (1.0, 5.0), "Y": (1.0, 5.0)}


def test_the_example_of_equal_numbers() -> None:
    moves = play({"X": 0, "Y": 0, "A": 0, "B": 0}, WAITING, 11)
    assert moves == ["X 0-1", "Y 1-2", "A 2-10", "X=1 Y=1 A=8 B=0", "B 10-11"]


def test_the_example_of_numbers_from_before() -> None:
    moves = play({"X": 0, "Y": 0, "A": 6, "B": 6}, WAITING, 20)
    assert moves == [
        *["X 0-1", "Y 1-2", "A 2-6", "X 6-7", "Y 7-8", "A 8-10", "X=2 Y=2 A=9 B=3"],
        *["B 10-12", "X 12-13", "Y 13-14", "B 14-18", "X 18-19", "Y 19-20", "X=3 Y=3 A=4 B=7"],
    ]


def test_a_class_comes_first_whatever_it_has_had() -> None:
    feedback = Feedback(1000)
    low, high = Job(1), Job(0)
    feedback.join(low, 0)
    feedback.join(high, 1)
    feedback.charge(high, 900)
    feedback.advance(1000)
    assert high.p == 900
    assert feedback.ready() == [high, low]


def test_what_is_less_than_a_whole_unit_is_not_lost() -> None:
    feedback, job = Feedback(10), Job()
    feedback.join(job, 0)
    total = 0
    for i in range(1, 41):
        feedback.charge(job, 0.25)
        before = job.p
        feedback.advance(10 * i)
        total += job.p - before // 2
    assert total == 10


def test_equal_long_jobs_take_turns() -> None:
    """By the order of arrival alone, the last of many would never run."""
    feedback = Feedback(1000)
    jobs = [Job() for _ in range(20)]
    for job in jobs:
        feedback.join(job, 0)
    runs = dict.fromkeys(jobs, 0)
    for i in range(1, 401):
        job = feedback.ready()[0]
        runs[job] += 1
        feedback.charge(job, 1000)
        feedback.advance(1000 * i)
    assert min(runs.values()) >= 19 and max(runs.values()) <= 21


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
)
def test_nobody_starves_under_new_jobs(uses: list[int], newcomers: list[int]) -> None:
    """An old job with much behind it, while in each interval new ones come that want it all."""
    feedback = Feedback(1000)
    old = Job()
    old.p = 2000  # where one that has had all of the machine stands
    feedback.join(old, 0)
    joined_before = 0
    for i in range(1, 4000):
        for _ in range(newcomers[i % len(newcomers)] if i < 60 else 0):
            feedback.join(Job(), 1000 * (i - 1))
            joined_before += i < 14
        first = feedback.ready()[0]
        if first is old:
            assert i <= 12 + joined_before + sum(newcomers) * 60
            return
        feedback.charge(first, uses[i % len(uses)])
        feedback.advance(1000 * i)
        if first.p > 5000 or i % 3 == 0:
            feedback.leave(first)
    pytest.fail("the old job never ran")


def test_a_share_of_the_machine_is_a_number() -> None:
    """A job that has the share s of every interval Q settles at P = 2 s Q, less rounding."""
    feedback, job = Feedback(1000), Job()
    feedback.join(job, 0)
    for i in range(1, 30):
        feedback.charge(job, 300)
        feedback.advance(1000 * i)
    assert 597 <= job.p <= 600


# ---- theory ----


def arrivals(n: int, load: float, seed: int) -> list[tuple[float, Job, float]]:
    """Poisson arrivals of jobs of mean 1, most of them short."""
    draw = random.Random(seed)
    now, made = 0.0, []
    for _ in range(n):
        now += draw.expovariate(load)
        mean = 0.5 if draw.random() < 0.9 else 5.5
        made.append((now, Job(), draw.expovariate(1 / mean)))
    return made


def mean_response(jobs: list[tuple[float, Job, float]], ended: dict[Job, float]) -> float:
    return sum(ended[job] - at for at, job, _ in jobs) / len(jobs)


def served_by(
    jobs: list[tuple[float, Job, float]], rates: Callable[[dict[int, float]], list[int]]
) -> float:
    """The mean response where those that `rates` picks share the processor, computed directly.
    rates: of job -> what it has had."""
    had: dict[int, float] = {}
    total, now, i = 0.0, 0.0, 0
    while had or i < len(jobs):
        coming = jobs[i][0] if i < len(jobs) else float("inf")
        if not had:
            now = coming
        if now >= coming:
            had[i] = 0.0
            i += 1
            continue
        picked = rates(had)
        left = min(jobs[j][2] - had[j] for j in picked) * len(picked)
        others = [had[j] for j in had if j not in picked]
        level = had[picked[0]]
        if others:
            left = min(left, max(min(others) - level, 1e-9) * len(picked))
        step = min(left, coming - now)
        now += step
        for j in picked:
            had[j] += step / len(picked)
            if had[j] >= jobs[j][2] - 1e-9:
                total += now - jobs[j][0]
                del had[j]
    return total / len(jobs)


@pytest.mark.slow
def test_long_intervals_are_first_come_first_served() -> None:
    """In the limit it is M/G/1: E[W] = load * E[S^2] / (2 (1 - load)) (Pollaczek 1930, Khinchine
    1932)."""
    jobs = arrivals(200_000, 0.7, 1)
    ended = simulate(jobs, Feedback(1e12), 1e12)
    free = 0.0
    for at, job, size in jobs:
        free = max(free, at) + size
        assert ended[job] == pytest.approx(free)
    second = 0.9 * 2 * 0.5**2 + 0.1 * 2 * 5.5**2  # E[S^2] of the sizes
    expected = 1 + 0.7 * second / (2 * (1 - 0.7))
    assert mean_response(jobs, ended) == pytest.approx(expected, rel=0.03)


class Remembering(Feedback):
    """Nothing is forgotten: the limit is that who has had least runs."""

    def aged(self, p: int, c: int) -> int:
        return p + c


def in_units(jobs: list[tuple[float, Job, float]], unit: float) -> list[tuple[float, Job, float]]:
    return [(at * unit, job, size * unit) for at, job, size in jobs]


@pytest.mark.slow
def test_short_intervals_share_the_processor() -> None:
    jobs = arrivals(4_000, 0.7, 3)
    expected = shared(jobs)
    scaled = in_units(jobs, 100.0)
    ended = simulate(scaled, Feedback(1.0), 1.0)
    assert mean_response(scaled, ended) / 100 == pytest.approx(expected, rel=0.03)


def shared(jobs: list[tuple[float, Job, float]]) -> float:
    """Processor sharing, directly: all present have equal shares."""
    left: list[tuple[float, int]] = []  # (what all will have had when it ends, job)
    level = now = total = 0.0
    for i, (at, _, size) in enumerate([*jobs, (float("inf"), Job(), 0.0)]):
        while left and now + (left[0][0] - level) * len(left) <= at:
            now += (left[0][0] - level) * len(left)
            level, j = heapq.heappop(left)
            total += now - jobs[j][0]
        if left:
            level += (at - now) / len(left)
        now = at
        heapq.heappush(left, (level + size, i))
    return total / len(jobs)


@pytest.mark.slow
def test_without_forgetting_who_has_had_least_runs() -> None:
    jobs = arrivals(4_000, 0.7, 4)
    expected = served_by(jobs, lambda had: [j for j in had if had[j] <= min(had.values()) + 1e-9])
    scaled = in_units(jobs, 100.0)
    ended = simulate(scaled, Remembering(1.0), 1.0)
    assert mean_response(scaled, ended) / 100 == pytest.approx(expected, rel=0.03)


def test_arrivals_come_in_order() -> None:
    assert all(a[0] <= b[0] for a, b in pairwise(arrivals(50, 0.5, 1)))
