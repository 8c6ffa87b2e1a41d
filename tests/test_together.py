"""Several texts in one step: what each reads and writes is what it would alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from together import extend_together, greedy_together

import mmrt
from mmrt import counters
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.errors import ArgumentError, OutOfMemoryError
from mmrt.memory.budget import Budget
from mmrt.run.generation import next_tokens
from mmrt.run.rounds import Rounds

TEXTS = [[5 + 3 * i % 250 for i in range(n)] for n in (1, 40, 33, 7, 300, 2)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(type="Q8_0", context=2048)
    return model.write(tmp_path_factory.mktemp("together") / "m.gguf")


def logits_alone(model: mmrt.Model, ids: list[int]) -> np.ndarray:
    with model.sequence() as sequence:
        return sequence.extend(ids)


@pytest.mark.parametrize("threads", [1, 3])
def test_logits_are_those_of_each_alone(path: Path, threads: int) -> None:
    with mmrt.Model(path, threads=threads) as model:
        alone = [logits_alone(model, ids) for ids in TEXTS]
        sequences = [model.sequence() for _ in TEXTS]
        together = extend_together(list(zip(sequences, TEXTS, strict=True)))
        assert together.shape == (len(TEXTS), model.vocab_size)
        for one, ids, row, expected in zip(sequences, TEXTS, together, alone, strict=True):
            assert one.tokens == ids
            np.testing.assert_allclose(row, expected, rtol=0, atol=0.02 * np.abs(expected).max())
        # And they go on, all by one token and each at its own position.
        together = extend_together([(sequence, [9]) for sequence in sequences])
        for ids, row in zip(TEXTS, together, strict=True):
            expected = logits_alone(model, [*ids, 9])
            np.testing.assert_allclose(row, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_answers_are_those_of_each_alone(path: Path) -> None:
    with mmrt.Model(path) as model:
        expected = [model.generate(ids, max_tokens=12) for ids in TEXTS]
        assert model.generate_all(TEXTS, max_tokens=12) == expected
        assert model.generate_all([], max_tokens=3) == []
        assert model.memory.kv == 0
        with pytest.raises(ArgumentError, match="empty"):
            model.generate_all([[1], []])
        with pytest.raises(ArgumentError, match="max_tokens"):
            model.generate_all([[1]], max_tokens=-1)


def test_draws_are_those_of_each_alone(path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "seed": 3, "ignore_eos": True}
    options |= {"top_k": 50, "presence_penalty": 0.5}
    with mmrt.Model(path, exact=True, threads=2) as model:
        expected = [model.generate(ids, **options) for ids in TEXTS]
        assert model.generate_all(TEXTS, **options) == expected
        assert len(set(expected)) == len(TEXTS)


def test_they_share_each_reading_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"n_layers": 6, "n_embd": 512, "n_ff": 2048, "head_dim": 64, "n_heads": 8}
    model_file = tiny_models.llama(type="Q8_0", n_vocab=4000, context=4096, **shape)
    path = model_file.write(tmp_path / "m.gguf")
    used = counters.resident()
    monkeypatch.setattr(counters, "resident", lambda: used)
    with mmrt.Model(path, memory=Budget(sum(used) + (18 << 20))) as model:

        def steps(n_texts: int) -> int:
            before = model.streaming
            extend_together([(model.sequence(), [7] * 4) for _ in range(n_texts)])
            assert before is not None and model.streaming is not None
            assert model.memory.streamed > 0
            return model.streaming.steps - before.steps

        steps(1)
        assert steps(1) == steps(4) == 1


def test_a_program_refuses_parts_that_do_not_add_up(path: Path) -> None:
    with mmrt.Model(path) as model:
        caches = [Cache(model.program.store), Cache(model.program.store)]
        tokens = np.array([1, 2, 3], np.int32)
        logits = np.empty((2, model.vocab_size), np.float32)
        for n, outputs in (([1, 2], [1, 0]), ([3, 0], [2, 0]), ([1, 2], [2, 0]), ([2, 1], [3, -1])):
            given = zip(caches, (tokens[: n[0]], tokens[: n[1]]), outputs, strict=True)
            parts = [Part(*part) for part in given]
            with pytest.raises((ArgumentError, OverflowError)):
                model.program.run(parts, logits)
            assert all(cache.length == 0 and cache.nbytes == 0 for cache in caches)


def test_progress_counts_the_tokens_of_all(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    with mmrt.Model(path) as model:
        apart = [[3 + i, *ids] for i, ids in enumerate(TEXTS)]  # which share nothing
        model.generate_all(apart, max_tokens=3, on_prefill=lambda *said: calls.append(said))
        total = sum(map(len, apart))
        assert calls == [(0, total), (256, total), (total, total)]
        calls.clear()
        model.generate_all(TEXTS, max_tokens=3, on_prefill=lambda *said: calls.append(said))
        assert calls[0] == (0, 383) and calls[-1] == (383, 383)
        assert calls == sorted(calls)
        one: list[tuple[int, int]] = []
        model.generate_all(TEXTS[4:5], max_tokens=3, on_prefill=lambda *said: one.append(said))
        alone: list[tuple[int, int]] = []
        model.generate(TEXTS[4], max_tokens=3, on_prefill=lambda *said: alone.append(said))
        assert one == alone == [(0, 300), (256, 300), (300, 300)]


SYSTEM = [9 + 5 * i % 240 for i in range(70)]
MIXTURES = {
    "one": [TEXTS[4]],
    "as they come": TEXTS,
    "few tokens in all": [[5, 6], [7], [8, 9, 10]],
    "short twins": [[5, 6, 7, 8]] * 3,
    "long twins": [TEXTS[4], TEXTS[1], TEXTS[4], TEXTS[4]],
    "a beginning": [[*SYSTEM, i] for i in range(2, 7)] + [SYSTEM, [3, 4], SYSTEM[:33]],
    "ends of many": [[*SYSTEM, i] for i in range(2, 40)] + [TEXTS[4]],
    "steps that are full": [[*SYSTEM, i] for i in range(2, 40)] + [[2, 3, 4]] * 3 + [TEXTS[4]],
    "more than a step has": [[3 + i % 200, 3 + i // 200] for i in range(257)],
}


@pytest.fixture(scope="module", params=["F32", "Q4_0", "Q8_0"])
def of_type(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    model = tiny_models.llama(type=request.param, context=512)
    return model.write(tmp_path_factory.mktemp("of_type") / "m.gguf")


@pytest.mark.parametrize("mixture", MIXTURES)
def test_logits_are_to_the_bit_those_of_steps_of_all(
    of_type: Path, monkeypatch: pytest.MonkeyPatch, mixture: str
) -> None:
    """Whatever is shared, and without exact=True: in each round all read, as many as there are."""
    prompts, n = MIXTURES[mixture], 5
    rows: dict[int, list[np.ndarray]] = {}

    def watched(answers: list[Any], logits: np.ndarray, pool: Any) -> Any:
        for answer, row in zip(answers, logits, strict=True):
            rows.setdefault(id(answer), []).append(row.copy())
        kept.extend(answers)  # so that no other gets the same id
        return next_tokens(answers, logits, pool)

    kept: list[Any] = []
    begun: list[int] = []
    begin = Rounds.begin

    def beginning(self: Rounds, *given: Any) -> Any:
        handle = begin(self, *given)
        begun.append(id(self._inbox[-1].answer))
        return handle

    monkeypatch.setattr("mmrt.run.outcome.next_tokens", watched)
    monkeypatch.setattr(Rounds, "begin", beginning)
    with mmrt.Model(of_type, threads=2) as model:
        texts = model.generate_all(prompts, max_tokens=n, temperature=0, ignore_eos=True)
        assert model.memory.kv == 0
        assert [text.tokens for text in texts] == [n] * len(prompts)
        found = np.array([rows[answer] for answer in begun]).swapaxes(0, 1)
        alone = [model.sequence() for _ in prompts]
        wanted = greedy_together(alone, prompts, n)
    np.testing.assert_array_equal(found, wanted)


def test_what_prompts_begin_with_is_read_once(path: Path) -> None:
    with mmrt.Model(path) as model:
        texts = model.generate_all([[*SYSTEM, i] for i in range(2, 10)], max_tokens=1)
        assert [text.cached_tokens for text in texts] == [0, *[63] * 7]
        texts = model.generate_all([SYSTEM] * 4, max_tokens=2)
        assert [text.cached_tokens for text in texts] == [0, *[70] * 3]
        assert [text.prompt_tokens for text in texts] == [70] * 4


def test_texts_that_have_ended_hold_no_memory(path: Path) -> None:
    held: list[int] = []
    with mmrt.Model(path) as model:
        run = model.run_step

        def watched(*given: Any) -> None:
            run(*given)
            held.append(model.store.nbytes)

        model.run_step = watched
        page = model.store.page_bytes
        long = [[i] * 20 for i in (5, 6)]
        model.generate_all([*long, *[[i] * 33 for i in range(10, 30)]], max_tokens=1)
        assert held[-1] == max(held) > 40 * page
        assert model.store.nbytes == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArgumentError])
def test_an_end_amid_a_step_leaves_nothing(path: Path, error: type[BaseException]) -> None:
    with mmrt.Model(path) as model:
        run, calls = model.run_step, []

        def breaks(*given: Any) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise error("now")
            run(*given)

        model.run_step = breaks
        with pytest.raises(error, match="now"):
            model.generate_all(TEXTS, max_tokens=9)
        assert model.store.nbytes == 0
        assert len(model.generate_all(TEXTS, max_tokens=2)) == len(TEXTS)


@pytest.mark.parametrize("saves", [False, True])
def test_texts_wait_for_others_to_end_where_memory_is_short(
    path: Path, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    """None is given up, and none reads again and again."""
    prompts = [[i] * 64 for i in range(10, 16)]
    with mmrt.Model(path, exact=True) as model:
        expected = model.generate_all(prompts, max_tokens=40)
        run, most, read = model.run_step, 10 * model.store.page_bytes, []

        def short(parts: Any, logits: Any) -> None:
            grows = sum(part.cache.growth(part.cache.length + len(part.tokens)) for part in parts)
            if model.store.nbytes + grows > most:
                raise OutOfMemoryError("keys and values have no room")
            read.append(sum(len(part.tokens) for part in parts))
            run(parts, logits)

        model.run_step = short
        monkeypatch.setattr("mmrt.run.worth.Worth.saving", lambda *_: saves)
        assert model.generate_all(prompts, max_tokens=40) == expected
        assert sum(read) <= 3 * 6 * (64 + 40)
