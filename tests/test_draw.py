"""Draws in the core: they are what the formulae say, on every instruction set."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference_sampler as reference
from numpy.typing import NDArray
from reference_sampler import log_softmax

from mmrt.core.draw import distribution, draw
from mmrt.core.kernels import Pool
from mmrt.core.sampling import Sampling
from mmrt.errors import ArgumentError

OFF = Sampling(temperature=1.0)
GREEDY = Sampling()
NONE = np.array([], np.int32)

Logits = NDArray[np.float32]


def settings(**given: Any) -> Sampling:
    return replace(OFF, **given)


def random_logits(seed: int, count: int = 200) -> Logits:
    return np.random.default_rng(seed).normal(0, 3, count).astype(np.float32)


def words(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """The mask that allows these tokens."""
    padded = np.zeros((len(allowed) + 31) // 32 * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


# ---- compared with the reference ----


def random_case(
    random: np.random.Generator,
) -> tuple[Sampling, Logits, list[int], NDArray[np.bool_] | None]:
    """Settings, logits (ties and -infinity among them), tokens seen lately, and those allowed."""
    count = int(random.choice([1, 2, 31, 32, 63, 64, 65, 200, 1000, 5000]))
    logits = random.normal(0, 3, count)
    if random.random() < 0.4:
        logits = logits.round()
    if random.random() < 0.3:
        logits[random.random(count) < 0.5] = -np.inf
    allowed = random.random(count) < random.choice([0.02, 0.5, 0.99])
    logits[0], allowed[0] = 0.0, True  # one can be drawn
    some = random.integers(0, count, random.integers(1, 70)).tolist()

    def one_of(*values: Any) -> Any:
        return values[random.integers(len(values))]

    sampling = Sampling(
        temperature=one_of(0.0, 0.3, 1.0, 2.5),
        top_k=one_of(0, 1, 5, 40, 10**6),
        top_p=one_of(1.0, random.uniform(0.01, 1.0), 0.5, 0.999),
        min_p=one_of(0.0, random.uniform(0.0, 1.0), 0.05, 1.0),
        repeat_penalty=one_of(1.0, 1.3, 0.7),
        presence_penalty=one_of(0.0, 0.5, -1.0),
        frequency_penalty=one_of(0.0, 0.25),
        logit_bias=one_of(None, {}, {one: random.normal(0, 5) for one in [*some[::2], count - 1]}),
    )
    return sampling, logits.astype(np.float32), one_of([], some), one_of(None, allowed)


def test_choices_are_those_of_the_reference(isa: str) -> None:
    random = np.random.default_rng(12)
    for number in range(400):
        sampling, logits, recent, allowed = random_case(random)
        mask = None if allowed is None else words(allowed)
        latest, case = np.array(recent, np.int32), f"{number}: {sampling}"
        ids, odds = distribution(logits, sampling, latest, mask)
        expected = [
            reference.distribution(rounded, logits, recent, allowed)
            for rounded in reference.roundings(sampling)
        ]
        same = [(i, o) for i, o in expected if i.tolist() == ids.tolist()]
        assert same, case
        np.testing.assert_allclose(odds, same[0][1], rtol=1e-4, atol=1e-7, err_msg=case)
        for uniform in (0.0, *random.random(3), np.nextafter(1, 0)):
            [drawn] = draw(logits[None], [sampling], [latest], [uniform], [mask], alternatives=3)
            assert drawn.token in reference.choices(*same[0], uniform), case
            by_model = log_softmax(logits)
            assert drawn.logprob == pytest.approx(by_model[drawn.token], abs=1e-4), case
            order = np.argsort(-logits, kind="stable")
            order = order[logits[order] > -np.inf][:3]
            assert [token for token, _ in drawn.alternatives] == order.tolist(), case
            listed = [logprob for _, logprob in drawn.alternatives]
            assert listed == pytest.approx(by_model[order], abs=1e-4), case


def test_greedy_choices_are_those_of_the_reference_to_the_token(isa: str) -> None:
    random = np.random.default_rng(13)
    for _ in range(100):
        sampling, logits, recent, allowed = random_case(random)
        sampling = replace(sampling, temperature=0.0)
        mask = None if allowed is None else words(allowed)
        [drawn] = draw(logits[None], [sampling], [np.array(recent, np.int32)], [0.5], [mask])
        ids, _ = reference.distribution(sampling, logits, recent, allowed)
        assert [drawn.token] == ids.tolist()


@pytest.mark.parametrize("spread", [0.5, 3, 8])
def test_many_tokens_are_filtered_as_few_are(spread: float) -> None:
    logits = np.random.default_rng(1).normal(0, spread, 50_000).astype(np.float32)
    for filters in ({"top_k": 3000}, {"top_p": 0.1}, {"top_p": 0.5}, {"top_p": 0.9}):
        ids, _ = distribution(logits, settings(**filters), NONE)
        rounded = reference.roundings(settings(**filters))
        counts = sorted(len(reference.distribution(one, logits)[0]) for one in rounded)
        assert counts[0] <= len(ids) <= counts[-1]
        order = np.argsort(-logits, kind="stable")
        assert set(ids.tolist()) == set(order[: len(ids)].tolist())


# ---- the rest ----


def test_the_likeliest_token_and_of_equal_ones_the_lowest() -> None:
    logits = np.zeros((1, 500), np.float32)
    logits[0, [70, 130, 131]] = 2
    [drawn] = draw(logits, [GREEDY], [NONE], [0.9])
    assert drawn.token == 70


def test_a_draw_near_one_takes_the_last_candidate() -> None:
    logits = np.full((1, 130), -np.inf, np.float32)
    logits[0, [5, 100]] = 0
    for chosen in (OFF, settings(top_k=50), settings(min_p=0.5)):
        [drawn] = draw(logits, [chosen], [NONE], [np.nextafter(1, 0)])
        assert drawn.token == 100


def test_rows_have_masks_of_their_own() -> None:
    logits = random_logits(6, 1000)
    allowed = np.random.default_rng(6).random(1000) < 0.1
    best = int(np.flatnonzero(allowed)[np.argmax(logits[allowed])])
    chosen = [GREEDY, settings(top_k=1)]
    drawn = draw(
        np.stack([logits] * 2), chosen, [NONE] * 2, [0.5] * 2, masks=[words(allowed), None]
    )
    assert [one.token for one in drawn] == [best, int(np.argmax(logits))]


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


def test_extreme_temperatures(isa: str) -> None:
    logits = random_logits(10, 300)
    logits[7] = -np.inf
    for temperature in (1e-300, 1e-45, 1e-30, 1e-3):
        [drawn] = draw(logits[None], [settings(temperature=temperature)], [NONE], [0.999])
        assert drawn.token == np.argmax(logits)
    for temperature in (3e38, 1.7e308):
        ids, odds = distribution(logits, settings(temperature=temperature), NONE)
        assert len(ids) == 299 and 7 not in ids
        np.testing.assert_allclose(odds, 1 / 299, rtol=1e-5)
        draws = {
            draw(logits[None], [settings(temperature=temperature)], [NONE], [uniform])[0].token
            for uniform in np.linspace(0, 1, 1000, endpoint=False)
        }
        assert draws == set(ids.tolist())


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_and_masks_hide_no_unusable_logit(spoilt: float, temperature: float) -> None:
    logits = random_logits(11, 100)
    logits[77] = spoilt
    chosen = settings(temperature=temperature, repeat_penalty=2.0)
    with pytest.raises(ArgumentError, match="logits"):
        draw(logits[None], [chosen], [np.array([77], np.int32)], [0.5])
    mask = words(np.arange(100) != 77)
    with pytest.raises(ArgumentError, match="logits"):
        draw(logits[None], [chosen], [NONE], [0.5], [mask], alternatives=0)


def test_a_token_of_no_probability_is_not_drawn_for_its_penalty() -> None:
    logits = np.full((1, 100), -np.inf, np.float32)
    for temperature in (0.0, 1.0):
        chosen = settings(temperature=temperature, repeat_penalty=2.0)
        with pytest.raises(ArgumentError, match="highest is -inf"):
            draw(logits, [chosen], [np.array([3], np.int32)], [0.5])


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
    with pytest.raises(ArgumentError, match="logit_bias: token ids must be below 100"):
        draw(random_logits(1, 100)[None], [settings(logit_bias={100: 1.0})], [NONE], [0.5])
    assert draw(np.zeros((0, 5), np.float32), [], [], []) == []
