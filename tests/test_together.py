"""Several texts in one step: what each reads and writes is what it would alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import mmrt
from mmrt import counters
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.errors import ArgumentError
from mmrt.memory.budget import Budget
from mmrt.run.sequence import extend_together

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


def test_what_is_refused(path: Path) -> None:
    with mmrt.Model(path) as model, mmrt.Model(path) as other:
        one, two = model.sequence(), model.sequence()
        for parts, word in (
            ([], "no sequences"),
            ([(one, [1]), (one, [2])], "twice"),
            ([(one, [1]), (other.sequence(), [2])], "several models"),
            ([(one, [1]), (two, [])], "empty"),
            ([(one, [1]), (two, [10**6])], "token ids"),
            ([(one, [1]), (two, [1] * 3000)], "context"),
        ):
            with pytest.raises(ArgumentError, match=word):
                extend_together(parts)
        assert len(one) == len(two) == 0


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
        model.generate_all(TEXTS, max_tokens=3, on_prefill=lambda *said: calls.append(said))
        total = sum(map(len, TEXTS))
        assert calls == [(0, total), (256, total), (total, total)]
        one: list[tuple[int, int]] = []
        model.generate_all(TEXTS[4:5], max_tokens=3, on_prefill=lambda *said: one.append(said))
        alone: list[tuple[int, int]] = []
        model.generate(TEXTS[4], max_tokens=3, on_prefill=lambda *said: alone.append(said))
        assert one == alone == [(0, 300), (256, 300), (300, 300)]


@pytest.mark.parametrize("parts", [None, 5, [5], "ab", [(5, [1])], [(None, [1])]])
def test_what_are_no_parts(parts: object) -> None:
    with pytest.raises(ArgumentError, match="parts: expected pairs of a Sequence and ids"):
        extend_together(parts)  # type: ignore[arg-type]
