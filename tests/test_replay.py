"""Simulated caches of experts, beside slow ones that follow the rules word by word."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from mmrt.sight.replay import POLICIES, forecast, replay, slots
from mmrt.sight.routing import RoutingTrace

Item = tuple[int, int]  # layer, expert


def trace(
    seed: int, steps: list[int], layers: int = 3, experts: int = 8, used: int = 2, bytes: int = 10
) -> RoutingTrace:
    """Some experts are chosen more often than others; the last layer leaves out first tokens."""
    random, n = np.random.default_rng(seed), sum(steps)
    liking = random.standard_normal((layers, experts))
    scores = liking + random.standard_normal((n, layers, experts))
    choices = np.argsort(-scores, axis=-1)[..., :used].astype(np.int16)
    for first, size in zip(np.cumsum([0, *steps]), steps, strict=False):
        choices[first : first + size - 1, -1] = -1
    return RoutingTrace("t", experts, list(range(layers)), [bytes] * layers, 0, steps, choices)


def uses(trace: RoutingTrace) -> Iterator[tuple[int, list[list[int]]]]:
    """(layer, what its tokens choose) by steps and layers."""
    for rows in np.split(trace.choices, np.cumsum(trace.steps)[:-1]):
        for layer in range(len(trace.layers)):
            yield layer, [row[row >= 0].tolist() for row in rows[:, layer] if row[0] >= 0]


def found_by_the_rule(trace: RoutingTrace, n_slots: int, lru: bool) -> list[tuple[int, int]]:
    """As docs/streaming.md says it."""
    fast: dict[Item, float] = {}
    slow: dict[Item, float] = {}
    last: dict[Item, int] = {}
    held: set[Item] = set()
    results = []

    def score(item: Item) -> float:
        return last[item] if lru else 0.3 * fast[item] + slow[item]

    for now, (layer, chosen) in enumerate(uses(trace)):
        mine = [(layer, expert) for expert in range(trace.n_experts)]
        recent = chosen[-16:]
        for token in recent:
            for item in mine:
                fast[item] = fast.get(item, 0.0) * 0.6 + (1 - 0.6) * (item[1] in token)
                slow[item] = slow.get(item, 0.0) * 0.98 + (1 - 0.98) * (item[1] in token)
        wanted = sorted({(layer, expert) for token in chosen for expert in token})
        last |= dict.fromkeys(wanted, now)
        missing = [item for item in wanted if item not in held]
        results.append((len(wanted), len(wanted) - len(missing)))
        for item in missing:
            if len(held) < n_slots:
                held.add(item)
            elif any(item[1] in token for token in recent) and held - set(wanted):
                victim = min(held - set(wanted), key=lambda each: (score(each), each))
                if score(item) >= score(victim):
                    held = held - {victim} | {item}
    return results


@pytest.mark.parametrize("policy", ["score", "lru"])
@pytest.mark.parametrize("n_slots", [0, 1, 3, 5, 12, 20, 24])
@pytest.mark.parametrize("steps", [[1] * 60, [30, 1, 1, 1, 5, 1, 17, 1, 1, 1]], ids=str)
def test_policies_are_as_their_rules_say(policy: str, n_slots: int, steps: list[int]) -> None:
    for seed in range(3):
        of = trace(seed, steps)
        found = replay(of, policy, {10: n_slots})
        expected = np.array(found_by_the_rule(of, n_slots, policy == "lru"))
        shape = len(steps), 3
        assert np.array_equal(found.wanted, expected[:, 0].reshape(shape))
        assert np.array_equal(found.found, expected[:, 1].reshape(shape))
        assert np.array_equal(found.missed_bytes, 10 * (found.wanted - found.found))


def most_found(wanted: list[frozenset[Item]], n_slots: int) -> int:
    """By trying everything that a cache may keep of what it holds and what has just been used."""

    @cache
    def best(at: int, held: frozenset[Item]) -> int:
        if at == len(wanted):
            return 0
        everything = held | wanted[at]
        kept = combinations(sorted(everything), min(n_slots, len(everything)))
        return len(held & wanted[at]) + max(best(at + 1, frozenset(each)) for each in kept)

    return best(0, frozenset())


@pytest.mark.parametrize("n_slots", [0, 1, 2, 3, 4])
def test_no_cache_finds_more_than_belady(n_slots: int) -> None:
    for seed in range(4):
        of = trace(seed, [1, 3, 1, 1, 2, 1, 1, 1], layers=2, experts=4)
        wanted = [
            frozenset((layer, expert) for token in chosen for expert in token)
            for layer, chosen in uses(of)
        ]
        assert replay(of, "belady", {10: n_slots}).found.sum() == most_found(wanted, n_slots)


def test_belady_bounds_the_others() -> None:
    of = trace(5, [20] + [1] * 80, experts=16)
    for part in (0.1, 0.3, 0.6):
        rates = [replay(of, policy, slots(of, part)).hit_rate() for policy in POLICIES]
        assert max(rates) == rates[list(POLICIES).index("belady")] > min(rates)


def test_below_one_token_lru_finds_nothing_and_scores_something() -> None:
    of = trace(6, [1] * 200, layers=8, experts=16, used=4)
    half = {10: 8 * 4 // 2}
    assert (
        replay(of, "lru", half).hit_rate(50) < 0.02 < 0.15 < replay(of, "score", half).hit_rate(50)
    )


def test_sizes_have_slots_of_their_own() -> None:
    of = trace(7, [1] * 40)
    of.expert_bytes = [10, 20, 10]
    found = replay(of, "score", {10: 6, 20: 3})
    alone = replay(of, "score", {20: 3})
    assert np.array_equal(found.found[:, 1], alone.found[:, 1])
    assert not alone.wanted[:, ::2].any() and found.wanted.all()
    assert slots(of, 0.5) == {10: 8, 20: 4} and slots(of, 2) == {10: 16, 20: 8}


def test_forecast() -> None:
    """All found: what memory gives. None: reading, and the rest of the arithmetic, one by one."""
    of = trace(8, [1] * 10)
    of.dense_bytes = 100
    of.choices[:, -1] = of.choices[:, 0]
    everything = replay(of, "score", {10: 24})
    assert forecast(of, everything, 1.0, 1000.0, first=9) == pytest.approx(1000 / (100 + 6 * 10))
    nothing = replay(of, "score", {10: 0})
    each = 0.0002 + 20 / 50 + 0.35 * 20 / 1000
    assert forecast(of, nothing, 50.0, 1000.0) == pytest.approx(1 / (0.1 + 3 * each))
