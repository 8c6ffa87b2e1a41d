"""Sampling: its settings, what a sampler makes of a text so far, and draws that follow the odds."""

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference_sampler import log_softmax
from test_draw import random_logits, words

import mmrt
from mmrt.core.kernels import Pool
from mmrt.core.sampling import Filters, Sampling
from mmrt.errors import ArgumentError
from mmrt.run.sampler import Sampler, mask_without, sample_together

# Probabilities 1/2, 1/4, 1/8, 1/8.
HALVES = np.log(np.array([4, 2, 1, 1], np.float32))


# ---- settings ----


def test_every_field_is_an_option() -> None:
    names = {field.name for field in fields(Sampling)}
    assert names == Filters.__annotations__.keys() | {"temperature"}
    assert names <= mmrt.Options.__annotations__.keys()
    for name in names:
        assert f"\n    {name}: " in str(Sampling.__doc__)


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
        {"presence_penalty": math.inf},
        {"presence_penalty": "1"},
        {"frequency_penalty": 1e7},
        {"frequency_penalty": None},
        {"repeat_last_n": -2},
        {"logit_bias": [1]},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {1: math.inf}},
        {"seed": -1},
        {"seed": "x"},
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    for make in (Sampling, Sampler):
        with pytest.raises(ArgumentError, match=next(iter(settings))):
            make(**settings)


def test_settings_are_plain_numbers_and_stay() -> None:
    make: Any = Sampling
    given = make(np.float32(0.5), np.int64(3), top_p=1, presence_penalty=np.float16(-2))
    assert given == Sampling(0.5, 3, presence_penalty=-2.0)
    assert repr(given) == repr(Sampling(0.5, 3, presence_penalty=-2.0))
    with pytest.raises(FrozenInstanceError):
        given.top_k = 4
    assert Sampler(0.5, top_k=3, presence_penalty=-2).sampling == given


# ---- filters and penalties ----


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0: 1 / 2, 1: 1 / 4, 2: 1 / 8, 3: 1 / 8}),
        ({"top_k": 3}, {0: 4 / 7, 1: 2 / 7, 2: 1 / 7}),
        ({"top_p": 0.6}, {0: 2 / 3, 1: 1 / 3}),
        ({"top_p": 0.8}, {0: 4 / 7, 1: 2 / 7, 2: 1 / 7}),
        ({"min_p": 0.4}, {0: 2 / 3, 1: 1 / 3}),
        ({"min_p": 0.2}, {0: 1 / 2, 1: 1 / 4, 2: 1 / 8, 3: 1 / 8}),
        ({"top_k": 2, "top_p": 0.6}, {0: 1.0}),
        ({"top_p": 0.6, "min_p": 0.6}, {0: 1.0}),
        ({"temperature": 0.5, "top_k": 2}, {0: 4 / 5, 1: 1 / 5}),
        ({"temperature": 0.5, "top_p": 0.6}, {0: 4 / 5, 1: 1 / 5}),
        ({"temperature": 0.0, "top_p": 0.9}, {0: 1.0}),
    ],
    ids=str,
)
def test_distributions_by_hand(settings: dict[str, Any], expected: dict[int, float]) -> None:
    ids, odds = Sampler(**{"temperature": 1.0} | settings).distribution(HALVES)
    assert dict(zip(ids.tolist(), odds, strict=True)) == pytest.approx(expected, rel=1e-5)


def test_biases_come_before_penalties() -> None:
    logits = np.array([4, 2, -1, -2, 3], dtype=np.float32)
    sampler = Sampler(1.0, repeat_penalty=2.0, logit_bias={0: -5.0, 3: 4.0})
    ids, odds = sampler.distribution(logits, [0, 0])
    assert ids.tolist() == [0, 1, 2, 3, 4]
    expected = log_softmax(np.array([-2.0, 2, -1, 2, 3]))
    np.testing.assert_allclose(np.log(odds), expected, atol=1e-5)
    drawn = Sampler(logit_bias={1: 100.0}).sample(logits, logprobs=1)
    assert drawn.token == 1 and drawn.alternatives[0][0] == 0  # those are the model's


def test_greedy_takes_the_highest_and_of_equals_the_first() -> None:
    assert Sampler()(np.array([0, 3, 1, 3], dtype=np.float32)) == 1
    logits = random_logits(1, 262144)
    assert Sampler(top_k=5, top_p=0.1)(logits) == int(np.argmax(logits))
    ids, odds = Sampler().distribution(logits)
    assert (ids.tolist(), odds.tolist()) == ([int(np.argmax(logits))], [1.0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"repeat_penalty": 2.0}, [2, 2, -2, -2, 3]),
        ({"presence_penalty": 0.5}, [3.5, 2, -1.5, -2, 3]),
        ({"frequency_penalty": 0.5}, [3, 2, -1.5, -2, 3]),
        (
            {"repeat_penalty": 2.0, "presence_penalty": 1, "frequency_penalty": -1},
            [3, 2, -2, -2, 3],
        ),
    ],
    ids=str,
)
def test_penalties_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    logits = np.array([4, 2, -1, -2, 3], dtype=np.float32)
    ids, odds = Sampler(1.0, **settings).distribution(logits, [0, 2, 0])
    assert ids.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.log(odds), log_softmax(np.array(expected)), atol=1e-5)
    assert logits.tolist() == [4, 2, -1, -2, 3]


@pytest.mark.parametrize(("repeat_last_n", "expected"), [(0, 0), (1, 0), (2, 1), (64, 1), (-1, 1)])
@pytest.mark.parametrize("penalty", [{"repeat_penalty": 2.0}, {"presence_penalty": 2.0}], ids=str)
def test_the_window_of_penalties(
    repeat_last_n: int, expected: int, penalty: dict[str, Any]
) -> None:
    logits = np.array([4, 3, 0], dtype=np.float32)
    sampler = Sampler(**penalty, repeat_last_n=repeat_last_n)
    assert sampler(logits, [0, 2]) == expected
    assert sampler(logits, np.array([0, 2])) == expected  # type: ignore[arg-type]


# ---- draws ----


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
    ids, odds = sampler.distribution(logits)
    assert set(np.flatnonzero(counts).tolist()) <= set(ids.tolist())
    chi_square = ((counts[ids] - draws * odds) ** 2 / (draws * odds)).sum()
    # Mean: the degrees of freedom d; deviation sqrt(2 d). The seed makes the outcome a fixed one.
    freedom = len(ids) - 1
    assert freedom > 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_a_seed_fixes_the_draws() -> None:
    logits = random_logits(5)
    first, second, other = (Sampler(1.0, seed=seed) for seed in (1, 1, 2))
    draws = [first(logits) for _ in range(50)]
    assert draws == [second(logits) for _ in range(50)]
    assert draws != [other(logits) for _ in range(50)]
    assert len(set(draws)) > 1


def test_texts_together_have_the_draws_of_each_alone() -> None:
    settings: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_k": 30, "seed": 2},
        {},
        {"temperature": 1.0, "repeat_penalty": 3.0, "seed": 1},
    ]
    logits = np.stack([random_logits(seed) for seed in range(4)])
    histories = [[], [1, 2], [3], np.argsort(-logits[3])[:9].tolist()]
    masks = [None, mask_without([5, 7], 200), None, mask_without(range(0, 200, 2), 200)]
    alone, together = ([Sampler(**one) for one in settings] for _ in range(2))
    for logprobs in (None, 3):
        for _ in range(10):
            expected = [
                sampler.sample(row, history, mask, logprobs)
                for sampler, row, history, mask in zip(alone, logits, histories, masks, strict=True)
            ]
            drawn = sample_together(together, logits, histories, masks, logprobs, Pool(2))
            assert drawn == expected


def test_what_a_mask_forbids_is_not_drawn() -> None:
    logits = random_logits(6, 100)
    allowed = [3, 40, 99]
    mask = mask_without(sorted(set(range(100)) - set(allowed)), 100)
    assert (
        mask[:4].tolist() == words(np.isin(np.arange(128), [*allowed, *range(100, 128)])).tolist()
    )
    sampler = Sampler(1.5, seed=0)
    assert {sampler.sample(logits, mask=mask).token for _ in range(200)} == set(allowed)
    assert sampler.distribution(logits, mask=mask)[0].tolist() == allowed


def test_log_probabilities_are_the_models_own() -> None:
    logits = random_logits(7, 100)
    expected = log_softmax(logits)
    order = np.argsort(-logits)
    mask = mask_without(order[:1].tolist(), 100)
    drawn = Sampler(0.3, top_k=9, repeat_penalty=2.0, seed=0).sample(logits, [5, 6], mask, 4)
    assert drawn.token != order[0]
    assert drawn.logprob == pytest.approx(expected[drawn.token], abs=1e-5)
    assert [token for token, _ in drawn.alternatives] == order[:4].tolist()
    assert [p for _, p in drawn.alternatives] == pytest.approx(expected[order[:4]], abs=1e-5)
    assert Sampler().sample(logits).logprob is None


def test_logits_are_left_unchanged() -> None:
    logits = random_logits(6)
    before = logits.copy()
    logits.flags.writeable = False
    sampler = Sampler(0.7, top_k=50, top_p=0.9, min_p=0.05, repeat_penalty=1.3, seed=0)
    sampler.sample(logits, [1, 2, 3], mask_without([9], 200), 5)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_logits_of_other_floats(dtype: type) -> None:
    logits: NDArray[Any] = np.array([0, 3, 1, -np.inf]).astype(dtype)[::-1]
    assert Sampler()(logits) == 2
    assert Sampler(1.0).distribution(logits)[0].tolist() == [1, 2, 3]


def test_tokens_of_no_probability_are_never_drawn() -> None:
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


# ---- what makes no sense ----


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros(0, dtype=np.float32),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros(3, dtype=np.int32),
        np.array([1, math.nan], dtype=np.float32),
        np.array([1, math.inf], dtype=np.float32),
        np.full(3, -math.inf, dtype=np.float32),
        np.array([1, 1e300]),
        "text",
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits(temperature: float, logits: Any) -> None:
    for call in (Sampler(temperature), Sampler(temperature).distribution):
        with pytest.raises(ArgumentError, match="logits"):
            call(logits)


@pytest.mark.parametrize("token", [-1, 3, 2**40, 2**70, 1.5, "a", True])
def test_history_out_of_range(token: Any) -> None:
    history = [token] if token is True else [0, token]
    with pytest.raises(ArgumentError, match="history: token ids must be whole numbers below 3"):
        Sampler(repeat_penalty=1.1)(np.zeros(3, dtype=np.float32), history)


@pytest.mark.parametrize(
    "mask",
    [np.ones(100, bool), np.ones(3, np.uint32), np.ones((1, 4), np.uint32), [1, 1, 1, 1], "x"],
    ids=repr,
)
def test_what_is_no_mask(mask: Any) -> None:
    for call in (Sampler().sample, Sampler(1.0).distribution):
        with pytest.raises(ArgumentError, match=r"mask: expected uint32 of \(4,\), found"):
            call(random_logits(8, 100), mask=mask)


@pytest.mark.parametrize("logprobs", [-1, 1.5, True, "3"])
def test_what_is_no_number_of_log_probabilities(logprobs: Any) -> None:
    with pytest.raises(ArgumentError, match="logprobs"):
        Sampler().sample(random_logits(9), logprobs=logprobs)
