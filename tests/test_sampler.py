"""Sampling: the filters keep exactly what their formulae say, and draws follow the odds."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmrt.errors import ArgumentError
from mmrt.run.sampler import Sampler

Logits = NDArray[np.float32]


def random_logits(seed: int, count: int = 200, distinct: bool = True) -> Logits:
    random = np.random.default_rng(seed)
    if distinct:
        return random.normal(0, 3, count).astype(np.float32)
    return random.integers(-4, 5, count).astype(np.float32)


# The formulae once more, one token at a time


def naive_softmax(logits: dict[int, float], temperature: float = 1.0) -> dict[int, float]:
    peak = max(logits.values())
    powers = {token: math.exp((x - peak) / temperature) for token, x in logits.items()}
    total = math.fsum(powers.values())
    return {token: power / total for token, power in powers.items()}


def naive_distribution(
    row: Logits, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    logits = {token: float(x) for token, x in enumerate(row)}
    ranked = sorted(logits, key=lambda token: (-logits[token], token))
    if top_k:
        ranked = ranked[:top_k]
    if top_p < 1:
        odds = naive_softmax({token: logits[token] for token in ranked})
        kept, mass = [], 0.0
        for token in ranked:
            if mass >= top_p:
                break
            kept.append(token)
            mass += odds[token]
        ranked = kept
    if min_p:
        odds = naive_softmax({token: logits[token] for token in ranked})
        ranked = [token for token in ranked if odds[token] >= min_p * max(odds.values())]
    return naive_softmax({token: logits[token] for token in ranked}, temperature)


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.02},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.9},
    {"top_k": 40, "min_p": 0.1},
    {"top_k": 50, "top_p": 0.97, "min_p": 0.03},
]


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_keep_what_the_formulae_say(filters: dict[str, Any], distinct: bool) -> None:
    for seed in range(10):
        logits = random_logits(seed, distinct=distinct)
        temperature = [0.3, 1.0, 2.5][seed % 3]
        ids, odds = Sampler(temperature, **filters).distribution(logits)
        expected = naive_distribution(logits, temperature, **filters)
        assert dict(zip(ids.tolist(), odds, strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_a_nucleus_larger_than_the_first_sort(top_p: float) -> None:
    logits = random_logits(0, 20_000) / np.float32(10)
    ids, _ = Sampler(1.0, top_p=top_p).distribution(logits)
    assert set(ids.tolist()) == set(naive_distribution(logits, 1.0, top_p=top_p))


def test_greedy_takes_the_highest_and_of_equals_the_first() -> None:
    assert Sampler()(np.array([0, 3, 1, 3], dtype=np.float32)) == 1
    logits = random_logits(1, 262144)
    assert Sampler(top_k=5, top_p=0.1)(logits) == int(np.argmax(logits))
    ids, odds = Sampler().distribution(logits)
    assert (ids.tolist(), odds.tolist()) == ([int(np.argmax(logits))], [1.0])


def test_repetition_penalty() -> None:
    logits = np.array([4, 2, -1, -2, 3], dtype=np.float32)
    sampler = Sampler(1.0, repeat_penalty=2.0)
    ids, odds = sampler.distribution(logits, [0, 2, 0])
    expected = naive_distribution(np.array([2, 2, -2, -2, 3], dtype=np.float32), 1.0)
    assert dict(zip(ids.tolist(), odds, strict=True)) == pytest.approx(expected)
    assert Sampler(repeat_penalty=2.0)(logits, [0]) == 4
    assert logits.tolist() == [4, 2, -1, -2, 3]


@pytest.mark.parametrize(("repeat_last_n", "expected"), [(0, 0), (1, 0), (2, 1), (64, 1), (-1, 1)])
def test_repetition_window(repeat_last_n: int, expected: int) -> None:
    logits = np.array([4, 3, 0], dtype=np.float32)
    sampler = Sampler(repeat_penalty=2.0, repeat_last_n=repeat_last_n)
    assert sampler(logits, [0, 2]) == expected


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 0.5, "top_k": 6}, {"temperature": 2.0, "top_p": 0.97}],
    ids=str,
)
def test_draws_follow_the_odds(settings: dict[str, Any]) -> None:
    draws = 4000
    logits = random_logits(3, 12) / np.float32(2)
    sampler = Sampler(**settings, seed=11)
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=len(logits))
    expected = naive_distribution(logits, **settings)
    assert set(np.flatnonzero(counts).tolist()) <= expected.keys()
    chi_square = sum(
        (counts[token] - draws * odds) ** 2 / (draws * odds) for token, odds in expected.items()
    )
    # Mean: the degrees of freedom d; deviation sqrt(2 d). The seed makes the outcome a fixed one.
    freedom = len(expected) - 1
    assert freedom > 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_a_seed_fixes_the_draws() -> None:
    logits = random_logits(5)
    first, second, other = (Sampler(1.0, seed=seed) for seed in (1, 1, 2))
    draws = [first(logits) for _ in range(50)]
    assert draws == [second(logits) for _ in range(50)]
    assert draws != [other(logits) for _ in range(50)]
    assert len(set(draws)) > 1


def test_logits_are_left_unchanged() -> None:
    logits = random_logits(6)
    before = logits.copy()
    logits.flags.writeable = False
    sampler = Sampler(0.7, top_k=50, top_p=0.9, min_p=0.05, repeat_penalty=1.3, seed=0)
    sampler(logits, [1, 2, 3])
    assert np.array_equal(logits, before)


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, dtype=np.float32)
    logits[[20, 70]] = 1.0
    for settings in ({}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.1}):
        sampler = Sampler(1.0, **settings, seed=0)
        assert {sampler(logits) for _ in range(50)} == {20, 70}


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e9])
def test_extreme_temperatures(temperature: float) -> None:
    _, odds = Sampler(temperature).distribution(random_logits(7))
    assert math.isclose(odds.sum(), 1.0)
    assert temperature > 1 or odds.max() == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": math.nan},
        {"repeat_last_n": -2},
        {"seed": -1},
        {"seed": "x"},
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        Sampler(**settings)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros(0, dtype=np.float32),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros(3, dtype=np.int32),
        np.array([1, math.nan], dtype=np.float32),
        np.array([1, math.inf], dtype=np.float32),
        np.full(3, -math.inf, dtype=np.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits(temperature: float, logits: Any) -> None:
    with pytest.raises(ArgumentError, match="logits"):
        Sampler(temperature)(logits)


@pytest.mark.parametrize("token", [-1, 3])
def test_history_out_of_range(token: int) -> None:
    with pytest.raises(ArgumentError, match="history"):
        Sampler(repeat_penalty=1.1)(np.zeros(3, dtype=np.float32), [0, token])
