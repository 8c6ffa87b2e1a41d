"""Drafts on recurrent models, which forget no token: a text is the same with them as without."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_architectures

import mmrt


@pytest.fixture(autouse=True)
def _steps_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each, whatever its tokens are: what is drafted does not depend on the machine's load."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("mmrt.run.drafts.time", clock)


@pytest.fixture(params=tiny_architectures.HYBRIDS)
def recurrent(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tiny_architectures.tiny(request.param, True, type="Q8_0", n_embd=64)
    return made.write(tmp_path / "recurrent.gguf")


@pytest.mark.parametrize("exact", [False, True])
def test_texts_of_recurrent_models_are_the_same(recurrent: Path, exact: bool) -> None:
    told = []
    often: dict[str, Any] = {"logit_bias": {7: 9.0, 8: 8.0}, "temperature": 1.0, "seed": 3}
    options = {"max_tokens": 90, "ignore_eos": True, "logprobs": 2, **often}
    for draft in ("off", "ngram"):
        with mmrt.Model(recurrent, draft=draft, exact=exact, threads=2) as model:
            texts = [list(model.stream([7] * 40, **options))]
            if exact:  # else steps of an engine are cut by the time that they take
                with model.engine(keep=0) as engine:
                    prompts = [[7] * 40, [9, 8] * 20]
                    handles = [engine.submit(prompt, **options) for prompt in prompts]
                    texts += [list(handle) for handle in handles]
            told.append(texts)
            record = model.drafts.record
            assert model.store.nbytes == 0
    assert told[0] == told[1]
    assert record.drafted >= record.accepted > 0


def test_recurrent_texts_go_back_to_each_token_of_an_exact_step(recurrent: Path) -> None:
    ids = [5 + 11 * i % 280 for i in range(40)]
    with mmrt.Model(recurrent, threads=2) as model, model.sequence() as text:
        text.extend(ids[:20])
        with text.fork() as alone:
            expected = [alone.extend([token]) for token in ids[20:32]]
        for n in range(1, 8):
            with text.fork() as fork:
                held = model.store.nbytes
                grows = fork._cache.growth(27, exact=True)
                assert np.array_equal(fork.extend_exactly(ids[20:27]), expected[:7])
                assert model.store.nbytes <= held + grows
                assert fork.truncate(20 + n) == 20 + n
                for i in range(n, 9):
                    assert np.array_equal(fork.extend([ids[20 + i]]), expected[i])
                assert fork.truncate(28) == 0  # what it could go back to is over
        with text.fork() as fork:
            fork.extend_exactly(ids[20:27])
            cache, store = fork._cache, model.store
            cache.trim()
            assert cache.reach(26) == 0
            assert cache.nbytes == len(cache.pages()) * store.page_bytes + store.block_bytes
            assert np.array_equal(fork.extend([ids[27]]), expected[7])
        assert text.tokens == ids[:20]
    assert model.store.nbytes == 0


def test_drafts_of_recurrent_models_stay_within_kv(recurrent: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
    with mmrt.Model(recurrent, draft="ngram", exact=True, threads=2) as model:
        text = model.generate([7] * 40, **options)
        store = model.store
        kv = 3 * store.page_bytes + 3 * store.block_bytes
        most = 0
        run = model.run_step

        def watched(parts: Any, logits: Any) -> None:
            nonlocal most
            run(parts, logits)
            most = max(most, store.nbytes)

        model.run_step = watched
        with model.engine(kv=kv, keep=0) as engine:
            assert engine.submit([7] * 40, **options).text() == text
        assert most <= kv
