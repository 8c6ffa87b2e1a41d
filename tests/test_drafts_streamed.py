"""Drafts where weights are streamed: on by default, within the budget, and read while guessed."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models

import mmrt
from mmrt.core.streaming import Streaming
from mmrt.errors import OutOfMemoryError
from mmrt.run.drafts import Guess
from mmrt.run.ngrams import Ngrams
from mmrt.run.smaller import Smaller

WIDE: dict[str, Any] = {"n_layers": 10, "n_embd": 512, "n_ff": 2048, "head_dim": 64, "n_heads": 8}


@pytest.fixture(autouse=True)
def _steps_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each, whatever its tokens are: what is drafted does not depend on the machine's load."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("mmrt.run.drafts.time", clock)


def write_wide(directory: Path) -> Path:
    """A model that is larger than the memory which these tests leave it."""
    made = tiny_models.llama(type="Q8_0", separate_output=True, n_vocab=4000, n_kv_heads=8, **WIDE)
    return made.write(directory / "streamed.gguf")


def hold_resident(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the process from now on: other tests leave memory that comes and goes."""
    used = mmrt.counters.resident()
    monkeypatch.setattr(mmrt.counters, "resident", lambda: used)
    return sum(used)


def test_on_by_default_where_weights_are_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_wide(tmp_path)
    ids = [9, 8, 7, 6] * 8
    with mmrt.Model(file) as model:
        expected = list(model.stream(ids, max_tokens=40, logprobs=1))
        assert model.drafts.record.drafted == 0
    memory = hold_resident(monkeypatch) + (28 << 20)
    with mmrt.Model(file, memory=memory) as model:
        assert model.streaming is not None and model.streaming.streamed
        assert list(model.stream(ids, max_tokens=40, logprobs=1)) == expected
        record = model.drafts.record
        assert record.accepted > 0
        assert model.streaming.steps == 1 + 39 - record.accepted
    shape = WIDE | {"n_layers": 1, "n_embd": 64, "n_ff": 64}
    small = tiny_models.llama(n_vocab=4000, **shape).write(tmp_path / "small.gguf")
    with mmrt.Model(file, memory=memory, draft=small) as model:
        assert model.streaming is not None and model.streaming.streamed
        assert list(model.stream(ids, max_tokens=40, logprobs=1)) == expected
        assert model.drafts.record.drafted > 0
        total = model.memory
        assert total.draft > small.stat().st_size // 2 and "draft model" in str(total)
    # Weights that a large one holds are not there for the model's own.
    shape["n_ff"] = 12000
    large = tiny_models.llama(type="Q8_0", n_vocab=4000, **shape).write(tmp_path / "large.gguf")
    kept = []
    for draft in (small, large):
        with mmrt.Model(file, memory=memory, draft=draft) as model:
            kept.append(model.memory.kept)
    assert kept[0] - kept[1] > (large.stat().st_size - small.stat().st_size) // 2
    with pytest.raises(OutOfMemoryError, match=r"small\.gguf|streamed\.gguf"):
        mmrt.Model(file, memory=memory - (27 << 20), draft=small)
    with mmrt.Model(file, memory=memory, draft="off") as model:
        assert list(model.stream(ids, max_tokens=40, logprobs=1)) == expected
        assert model.drafts.record.drafted == 0


@pytest.mark.parametrize("draft", ["ngram", "small"])
def test_weights_are_read_while_guesses_are_made(
    draft: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end of a step on, as many as there is room for; and none of them in vain."""
    file, guesser = write_wide(tmp_path), Ngrams if draft == "ngram" else Smaller
    if draft == "small":
        shape = WIDE | {"n_layers": 1, "n_embd": 64, "n_ff": 64}
        draft = str(tiny_models.llama(n_vocab=4000, **shape).write(tmp_path / "small.gguf"))
    make = guesser.guesses
    needed: list[int] = []  # by each step
    ahead: list[int] = []  # when guesses were asked for

    def streaming() -> Streaming:
        assert model.streaming is not None
        return model.streaming

    def wait(self: Any) -> Iterator[Guess]:
        deadline = monotonic() + 10
        while streaming().read <= sum(needed) and monotonic() < deadline:
            sleep(0.001)
        ahead.append(streaming().read - sum(needed))
        yield from make(self)

    monkeypatch.setattr(guesser, "guesses", wait)
    with mmrt.Model(file, memory=hold_resident(monkeypatch) + (28 << 20), draft=draft) as model:
        run = model.run_step

        def counted(parts: Any, logits: Any) -> None:
            run(parts, logits)
            needed.append(streaming().streamed)

        model.run_step = counted
        list(model.stream([9, 8, 7, 6] * 8 + [5], max_tokens=20))  # within two pages of keys
        assert len(set(needed)) == 1 and len(ahead) > 1
        assert min(ahead) > 0
        assert max(ahead) <= streaming().ring
        assert model.drafts.record.drafted > 0
