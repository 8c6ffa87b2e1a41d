"""Draws in the core: what they are made from is what the formulae say, on every instruction set."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_sampler import FILTERS, naive_distribution, random_logits

from mmrt.core.draw import Settings, distribution, draw
from mmrt.core.kernels import Pool
from mmrt.errors import ArgumentError

OFF = Settings(1.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0)
NONE = np.array([], np.int32)

Logits = NDArray[np.float32]


def settings(**given: Any) -> Settings:
    return OFF._replace(**given)


def log_softmax(row: Logits) -> NDArray[np.float64]:
    wide = row.astype(np.float64)
    shifted: NDArray[np.float64] = wide - wide.max()
    return shifted - np.log(np.exp(shifted).sum())


def words(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """The mask that allows these tokens."""
    padded = np.zeros((len(allowed) + 31) // 32 * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_keep_what_the_formulae_say(
    filters: dict[str, Any], distinct: bool, isa: str
) -> None:
    for seed, count in enumerate([1, 2, 63, 64, 65, 200, 1000]):
        logits = random_logits(seed, count, distinct)
        temperature = [0.3, 1.0, 2.5][seed % 3]
        ids, odds = distribution(logits, settings(temperature=temperature, **filters), NONE)
        expected = naive_distribution(logits, temperature, **filters)
        assert ids.tolist() == sorted(expected)
        np.testing.assert_allclose(odds, [expected[t] for t in sorted(expected)], rtol=1e-5)


@pytest.mark.parametrize("spread", [0.5, 3, 8])
def test_many_tokens_are_filtered_as_few_are(spread: float) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, spread, 50_000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    sums = np.cumsum(np.exp(log_softmax(logits))[order])
    ids, _ = distribution(logits, settings(top_k=3000), NONE)
    assert ids.tolist() == sorted(order[:3000].tolist())
    for top_p in (0.1, 0.5, 0.9):
        ids, _ = distribution(logits, settings(top_p=top_p), NONE)
        expected = np.searchsorted(sums, top_p) + 1
        assert abs(len(ids) - expected) <= 1 + expected * 1e-5  # sums of floats at the edge
        assert set(ids.tolist()) == set(order[: len(ids)].tolist())


def test_draws_follow_the_odds(isa: str) -> None:
    logits = random_logits(3, 300)
    for chosen in (settings(temperature=0.7), settings(top_k=20), settings(top_p=0.8, min_p=0.01)):
        ids, odds = distribution(logits, chosen, NONE)
        sums = np.cumsum(odds, dtype=np.float64)
        for uniform in np.linspace(0, 1, 200, endpoint=False):
            place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
            near = {int(ids[min(max(place + d, 0), len(ids) - 1)]) for d in (-1, 0, 1)}
            [drawn] = draw(logits[None], [chosen], [NONE], [uniform])
            assert drawn.token in near
            if min(abs(sums - uniform * sums[-1])) > 1e-5:
                assert drawn.token == ids[min(place, len(ids) - 1)]


def test_the_likeliest_token_and_of_equal_ones_the_lowest() -> None:
    logits = np.zeros((1, 500), np.float32)
    logits[0, [70, 130, 131]] = 2
    [drawn] = draw(logits, [settings(temperature=0.0)], [NONE], [0.9])
    assert drawn.token == 70


def test_a_draw_near_one_takes_the_last_candidate() -> None:
    logits = np.full((1, 130), -np.inf, np.float32)
    logits[0, [5, 100]] = 0
    for chosen in (OFF, settings(top_k=50), settings(min_p=0.5)):
        [drawn] = draw(logits, [chosen], [NONE], [np.nextafter(1, 0)])
        assert drawn.token == 100


def test_penalties_are_what_the_formulae_say() -> None:
    logits = random_logits(5, 100)
    recent = np.array([3, 7, 3, 99, 3], np.int32)
    chosen = settings(repeat_penalty=1.3, presence_penalty=0.25, frequency_penalty=0.5)
    expected = logits.astype(np.float64)
    for token, times in {3: 3, 7: 1, 99: 1}.items():
        repeated = expected[token]
        repeated = repeated / 1.3 if repeated > 0 else repeated * 1.3
        expected[token] = repeated - 0.25 - 0.5 * times
    _, odds = distribution(logits, chosen, recent)
    np.testing.assert_allclose(
        np.log(odds), log_softmax(expected.astype(np.float32)), rtol=1e-4, atol=1e-4
    )


def test_a_mask_leaves_what_it_allows() -> None:
    random = np.random.default_rng(6)
    logits = random_logits(6, 1000)
    allowed = random.random(1000) < 0.1
    ids, odds = distribution(logits, OFF, NONE, words(allowed))
    assert ids.tolist() == np.flatnonzero(allowed).tolist()
    np.testing.assert_allclose(np.log(odds), log_softmax(logits[allowed]), rtol=1e-4, atol=1e-4)
    best = int(np.flatnonzero(allowed)[np.argmax(logits[allowed])])
    chosen = [settings(temperature=0.0), settings(top_k=1)]
    drawn = draw(
        np.stack([logits] * 2), chosen, [NONE] * 2, [0.5] * 2, masks=[words(allowed), None]
    )
    assert [one.token for one in drawn] == [best, int(np.argmax(logits))]


@pytest.mark.parametrize("masked", [False, True])
def test_log_probabilities_are_the_models_own(masked: bool) -> None:
    logits = random_logits(7, 1000)
    recent = np.argsort(-logits)[:20].astype(np.int32)
    mask = words(np.arange(1000) % 3 > 0) if masked else None
    chosen = settings(temperature=0.3, top_k=9, repeat_penalty=2.0)
    [drawn] = draw(logits[None], [chosen], [recent], [0.3], [mask], alternatives=5)
    expected = log_softmax(logits)
    order = np.argsort(-logits, kind="stable")[:5]
    assert drawn.logprob == pytest.approx(expected[drawn.token], abs=1e-5)
    assert [token for token, _ in drawn.alternatives] == order.tolist()
    assert [p for _, p in drawn.alternatives] == pytest.approx(expected[order], abs=1e-5)


def test_more_alternatives_than_tokens() -> None:
    [drawn] = draw(random_logits(8, 7)[None], [OFF], [NONE], [0.1], alternatives=100)
    assert len(drawn.alternatives) == 7
    [drawn] = draw(random_logits(8, 7)[None], [OFF], [NONE], [0.1], alternatives=0)
    assert drawn.alternatives == () and drawn.logprob is not None


def test_threads_do_not_matter() -> None:
    random = np.random.default_rng(9)
    logits = random.normal(0, 3, (40, 2000)).astype(np.float32)
    uniforms = random.random(40).tolist()
    chosen = [settings(top_k=1 + i, temperature=0.5 + i / 20) for i in range(40)]
    alone = draw(logits, chosen, [NONE] * 40, uniforms, alternatives=3)
    assert draw(logits, chosen, [NONE] * 40, uniforms, alternatives=3, pool=Pool(4)) == alone


def test_extreme_temperatures() -> None:
    logits = random_logits(10, 300)
    for temperature in (1e-45, 1e-30, 1e-3):
        [drawn] = draw(logits[None], [settings(temperature=temperature)], [NONE], [0.999])
        assert drawn.token == np.argmax(logits)
    _, odds = distribution(logits, settings(temperature=3e38), NONE)
    np.testing.assert_allclose(odds, 1 / 300, rtol=1e-5)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    logits = random_logits(11, 100)
    for spoilt, word in ((np.nan, "not a number"), (np.inf, "highest is inf")):
        row = logits.copy()
        row[77] = spoilt
        with pytest.raises(ArgumentError, match=word):
            draw(row[None], [OFF], [NONE], [0.5])
    with pytest.raises(ArgumentError, match="highest is -inf"):
        distribution(np.full(100, -np.inf, np.float32), OFF, NONE)
    with pytest.raises(ArgumentError, match="no token is allowed"):
        draw(logits[None], [OFF], [NONE], [0.5], [np.zeros(4, np.uint32)])
    with pytest.raises(ArgumentError, match="3 words where 4"):
        draw(logits[None], [OFF], [NONE], [0.5], [np.zeros(3, np.uint32)])
    for token in (-1, 100):
        with pytest.raises(ArgumentError, match="below 100"):
            draw(logits[None], [OFF], [np.array([token], np.int32)], [0.5])
    with pytest.raises(ArgumentError, match="of 1 rows"):
        draw(logits[None], [OFF] * 2, [NONE], [0.5])
    with pytest.raises(ArgumentError, match="empty"):
        draw(np.zeros((1, 0), np.float32), [OFF], [NONE], [0.5])
    assert draw(np.zeros((0, 5), np.float32), [], [], []) == []
