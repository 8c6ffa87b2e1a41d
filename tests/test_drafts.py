"""Drafts: a text is the same with them as without, and takes fewer steps."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_architectures
import tiny_models
from instruction_sets import ISAS

import mmrt
from mmrt.core.streaming import Demand, Streaming
from mmrt.errors import (
    ArgumentError,
    FormatError,
    MissingFileError,
    UnsupportedError,
)
from mmrt.run.drafts import Guess, Record
from mmrt.run.ngrams import Ngrams
from mmrt.run.smaller import Smaller

# Of a model whose steps read weights from the disk.
STREAMED = Streaming("uring", 0, 0, 1000, 100, 0, 0, 0, 0.0, 0.0)

PROMPT = "one two three one two three one two three one two"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llama(type="Q4_0", n_embd=96, n_ff=352, head_dim=32).write(
        tmp_path_factory.mktemp("drafts") / "tiny.gguf"
    )


@pytest.fixture(autouse=True)
def _steps_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each, whatever its tokens are: what is drafted does not depend on the machine's load."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("mmrt.run.drafts.time", clock)


def count_steps(model: mmrt.Model) -> list[int]:
    """The tokens of each step that the model makes from now on."""
    sizes: list[int] = []
    run = model.run_step

    def counted(parts: Any, logits: Any) -> None:
        sizes.append(sum(len(part.tokens) for part in parts))
        run(parts, logits)

    model.run_step = counted
    return sizes


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 5},
    "filtered": {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 6},
    "penalised": {"repeat_penalty": 1.3, "frequency_penalty": 0.1, "repeat_last_n": -1},
    "biased": {"logit_bias": {40: 5.0, 41: -5.0}, "temperature": 0.5, "seed": 7},
    "endless": {"ignore_eos": True, "temperature": 0.3, "seed": 8},
    "likely": {"logprobs": 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_texts_are_the_same(path: Path, options: dict[str, Any]) -> None:
    told = []
    for draft in ("off", "ngram"):
        with mmrt.Model(path, draft=draft, threads=2) as model:
            first = list(model.stream(PROMPT, max_tokens=150, **options))
            told.append((first, list(model.stream(PROMPT, max_tokens=20, seed=1, temperature=1.0))))
    assert told[0] == told[1]


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "ref"] or ISAS, indirect=True)
@pytest.mark.parametrize("type", ["F32", "Q4_0", "Q6_K", "IQ3_S"])
def test_steps_are_fewer_and_logits_the_same(type: str, isa: str, tmp_path: Path) -> None:
    """Over more than 256 tokens, from where attention goes by sections of the keys."""
    shape: dict[str, Any] = {"n_embd": 256, "n_ff": 256, "head_dim": 64, "n_layers": 1}
    file = tiny_models.llama(type=type, context=512, **shape).write(tmp_path / "tiny.gguf")
    told = []
    for draft in ("off", "ngram"):
        with mmrt.Model(file, draft=draft, threads=2) as model:
            sizes = count_steps(model)
            told.append(list(model.stream([7] * 200, max_tokens=120, logprobs=5)))
            record = model.drafts.record
    assert told[0] == told[1]
    assert record.drafted >= record.accepted > 0
    assert sum(sizes[1:]) == 119 + record.drafted - record.accepted
    assert len(sizes) == 120 - record.accepted
    assert max(sizes[1:]) == 7


def test_experts_are_the_same(tmp_path: Path) -> None:
    file = tiny_models.qwen3moe(experts={"type": "Q8_0"}).write(tmp_path / "tiny.gguf")
    told = []
    for draft in ("off", "ngram"):
        with mmrt.Model(file, draft=draft) as model:
            told.append(list(model.stream(PROMPT, max_tokens=100, logprobs=2)))
            accepted = model.drafts.record.accepted
    assert told[0] == told[1]
    assert accepted > 0


def test_an_exact_model_and_keys_in_int8(path: Path) -> None:
    exact: dict[str, Any] = {"exact": True}
    for options in (exact, {"kv_k": "q8_0", "kv_v": "q8_0"}):
        texts = []
        for draft in ("off", "ngram"):
            with mmrt.Model(path, draft=draft, **options) as model:
                texts.append(list(model.stream(PROMPT, max_tokens=80, logprobs=1)))
        assert texts[0] == texts[1]


def test_a_sequence_holds_what_was_told(path: Path) -> None:
    """After each piece, a stream that is closed leaves what one without drafts leaves."""
    left: list[list[list[int]]] = []
    for draft in ("off", "ngram"):
        left.append([])
        with mmrt.Model(path, draft=draft) as model:
            for n in range(1, 40, 3):
                with model.sequence() as sequence:
                    stream = model.stream(PROMPT, sequence=sequence, max_tokens=60)
                    for _ in itertools.islice(stream, n):
                        pass
                    stream.close()
                    left[-1].append(sequence.tokens)
                    again = model.stream(" and", sequence=sequence, max_tokens=4)
                    left[-1].append([piece.token or -1 for piece in again])
                    left[-1].append(sequence.tokens)
    assert left[0] == left[1]


def test_an_interrupted_step_leaves_no_guesses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come when a draft has been read, and none of it was verified."""

    def interrupt(record: Record, drafted: int, seconds: float) -> None:
        time(record, drafted, 0.001)
        if drafted > 2:
            raise KeyboardInterrupt

    time = Record.time
    with mmrt.Model(path, draft="ngram") as model, model.sequence() as sequence:
        prompt = [1, 2, 3, 4] * 10
        monkeypatch.setattr(Record, "time", interrupt)
        drawn = []
        with pytest.raises(KeyboardInterrupt):
            for piece in model.stream(prompt, sequence=sequence, max_tokens=200, ignore_eos=True):
                drawn.append(piece.token)
        assert sequence.tokens == prompt + drawn


def test_ends(path: Path) -> None:
    """At max_tokens, a stop string and the end of the context."""
    ends: list[dict[str, Any]] = [{"max_tokens": 33}, {"max_tokens": None}]
    for options in (*ends, {"stop": ["e"], "max_tokens": 90}):
        told = []
        for draft in ("off", "ngram"):
            with mmrt.Model(path, draft=draft, context=100) as model:
                sizes = count_steps(model)
                text = model.generate(PROMPT, **options)
                told.append((text, text.finish, text.tokens))
                assert len(sizes) <= max(text.tokens, 1)
                assert sum(sizes) <= 100 + 6 * len(sizes)
        assert told[0] == told[1]


def test_json_is_the_same(path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "array", "items": {"enum": ["one two three"]}, "minItems": 6, "maxItems": 8}
    told = []
    for draft in ("off", "ngram"):
        with mmrt.Model(path, draft=draft) as model:
            told.append(model.generate(PROMPT, json_schema=schema, max_tokens=200))
            accepted = model.drafts.record.accepted
    assert told[0] == told[1]
    assert accepted > 0


def test_chats_are_the_same(path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    told = []
    for draft in ("off", "ngram"):
        with mmrt.Model(path, draft=draft, chat_template=template) as model:
            said = [{"role": "user", "content": PROMPT}]
            answer = model.chat(said, max_tokens=60)
            said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "on"}]
            told.append((answer, model.chat(said, max_tokens=60)))
            accepted = model.drafts.record.accepted
    assert told[0] == told[1]
    assert accepted > 0


def test_no_memory_for_drafts(path: Path) -> None:
    """A draft that finds no memory is left out; the text goes on."""
    with mmrt.Model(path, draft="off") as model:
        expected = model.generate(PROMPT, max_tokens=50)
    with mmrt.Model(path, draft="ngram") as model:
        run = model.run_step

        def refuse(parts: Any, logits: Any) -> None:
            if parts[0].exact:
                raise mmrt.errors.OutOfMemoryError("no memory")
            run(parts, logits)

        model.run_step = refuse
        assert model.generate(PROMPT, max_tokens=50) == expected
        assert model.drafts.record.drafted == 0


def test_what_makes_no_drafts(path: Path) -> None:
    with pytest.raises(MissingFileError, match="draft: 'ngrams' is not ngram, off, or a file"):
        mmrt.Model(path, draft="ngrams")
    wrong: Any = 5
    with pytest.raises(ArgumentError, match="draft"):
        mmrt.Model(path, draft=wrong)


def test_an_exact_step_has_few_tokens(path: Path) -> None:
    ids = list(range(5, 13))
    with mmrt.Model(path) as model, model.sequence() as sequence, model.sequence() as alone:
        with pytest.raises(ArgumentError, match="at most 7 tokens"):
            sequence.extend_exactly(ids)
        rows = sequence.extend_exactly(ids[:7])
        assert np.array_equal(rows, [alone.extend([token]) for token in ids[:7]])
    with mmrt.Model(path, exact=True) as model, model.sequence() as sequence:
        assert len(sequence.extend_exactly(ids)) == 8


# ---- by a smaller model ----


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in another type."""
    made = tiny_models.llama(type="Q8_0", n_embd=96, n_ff=352, head_dim=32)
    return made.write(tmp_path_factory.mktemp("smaller") / "smaller.gguf")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_smaller_model_changes_no_text(
    path: Path, smaller: Path, options: dict[str, Any]
) -> None:
    with mmrt.Model(path) as model:
        expected = list(model.stream(PROMPT, max_tokens=60, **options))
    with mmrt.Model(path, draft=smaller) as model:
        assert list(model.stream(PROMPT, max_tokens=60, **options)) == expected


def test_a_model_is_right_about_itself(path: Path) -> None:
    """All that it guesses but the rounding of its logits is what it writes."""
    with mmrt.Model(path) as model:
        expected = list(model.stream(PROMPT, max_tokens=60))
    with mmrt.Model(path, draft=path) as model:
        sizes = count_steps(model)
        assert list(model.stream(PROMPT, max_tokens=60)) == expected
        record = model.drafts.record
        assert record.accepted == record.drafted > 40
        assert len(sizes) == 60 - record.accepted


def test_a_smaller_model_in_an_engine(path: Path) -> None:
    with mmrt.Model(path, exact=True) as model:
        expected = [model.generate(f"{i} {PROMPT}", max_tokens=40) for i in range(3)]
    with mmrt.Model(path, exact=True, draft=path) as model, model.engine() as engine:
        handles = [engine.submit(f"{i} {PROMPT}", max_tokens=40) for i in range(3)]
        assert [handle.text() for handle in handles] == expected
        assert model.drafts.record.accepted > 0


def test_a_smaller_model_with_a_short_context(path: Path, tmp_path: Path) -> None:
    """Guesses as long as it can, and then no more."""
    file = tiny_models.llama(context=64).write(tmp_path / "short.gguf")
    with mmrt.Model(path) as model:
        expected = model.generate([7] * 30, max_tokens=120)
        longer = model.generate([7] * 100, max_tokens=20)
    with mmrt.Model(path, draft=file) as model:
        assert model.generate([7] * 30, max_tokens=120) == expected
        assert model.generate([7] * 100, max_tokens=20) == longer


def test_a_smaller_model_goes_with_the_model(path: Path, smaller: Path) -> None:
    def mapped() -> bool:
        return str(smaller) in Path("/proc/self/maps").read_text()

    with mmrt.Model(path, draft=smaller) as model:
        assert model.generate(PROMPT, max_tokens=20).tokens == 20
        stream = model.stream(PROMPT, max_tokens=20)
        next(stream)
        assert mapped()
    stream.close()
    del stream
    assert not mapped()


def test_guesses_that_are_not_asked_for_stop_for_a_while(path: Path) -> None:
    with mmrt.Model(path) as model:
        sizes = count_steps(model)
        guesser = Smaller(model, model.vocab_size)
        made = []
        for token in range(5, 65):
            guesser.read([token])
            made.append(len(taken(guesser.guesses(), 1)))
        assert len(sizes) == sum(made) < 12
        assert made[:3] == [1, 0, 1]
        assert sum(sizes) <= 60
        while not taken(guesser.guesses(), 3):  # worth it now
            pass
        guesser.read([5])
        assert len(taken(guesser.guesses(), 2)) == 2


def test_guesses_may_be_asked_for_again(path: Path) -> None:
    """As a step does that is repeated because there was no memory."""
    with mmrt.Model(path) as model:
        guesser = Smaller(model, model.vocab_size)
        guesser.read([5, 6, 7])
        once = taken(guesser.guesses(), 3)
        assert len(once) == 3 and taken(guesser.guesses(), 3) == once


def test_nothing_is_guessed_after_a_token_that_the_smaller_model_lacks(path: Path) -> None:
    with mmrt.Model(path) as model:
        guesser = Smaller(model, model.vocab_size + 10)
        guesser.read([5, model.vocab_size + 3])
        assert taken(guesser.guesses(), 3) == []
        guesser.read([6])
        assert taken(guesser.guesses(), 3) == []


def test_another_vocabulary_is_refused(path: Path, tmp_path: Path) -> None:
    made = tiny_models.llama()
    tokens = made.metadata["tokenizer.ggml.tokens"]
    made.metadata["tokenizer.ggml.tokens"] = [*tokens[:7], "other", *tokens[8:]]
    other = made.write(tmp_path / "other.gguf")
    with pytest.raises(ArgumentError, match=r"another vocabulary.*token 7 is 'other'"):
        mmrt.Model(path, draft=other)
    more = tiny_models.llama(n_vocab=310).write(tmp_path / "more.gguf")
    with pytest.raises(ArgumentError, match="another vocabulary"):
        mmrt.Model(path, draft=more)
    recurrent = tiny_architectures.tiny("lfm2", True, n_embd=64).write(tmp_path / "tiny.gguf")
    with pytest.raises(UnsupportedError, match="recurrent"):
        mmrt.Model(path, draft=recurrent)
    (tmp_path / "no.gguf").write_bytes(b"no model")
    with pytest.raises(FormatError):
        mmrt.Model(path, draft=tmp_path / "no.gguf")


# ---- in an engine ----


def test_one_text_in_an_engine(path: Path) -> None:
    """Is the one that is written alone, for any sampling."""
    with mmrt.Model(path, draft="off") as model:
        expected = [list(model.stream(PROMPT, max_tokens=80, **o)) for o in OPTIONS.values()]
    with mmrt.Model(path, draft="ngram") as model, model.engine(max_gap=10) as engine:
        for options, pieces in zip(OPTIONS.values(), expected, strict=True):
            before = engine.steps
            found = list(engine.submit(PROMPT, max_tokens=80, **options))
            assert found == pieces
            assert engine.steps - before <= 80
        assert model.drafts.record.accepted > 0
        assert engine.evaluated_tokens > engine.steps


def test_several_texts_in_an_engine(path: Path) -> None:
    prompts = [PROMPT, "a b c d e f g a b c d e f g a b", "x y x y x y x y x y x"]
    with mmrt.Model(path, draft="off", exact=True) as model:
        expected = [model.generate(p, max_tokens=150) for p in prompts]
    with mmrt.Model(path, draft="ngram", exact=True) as model, model.engine() as engine:
        sizes = count_steps(model)
        handles = [engine.submit(prompt, max_tokens=150) for prompt in prompts]
        assert [handle.text() for handle in handles] == expected
        assert model.drafts.record.accepted > 0
        assert len(sizes) < 3 * 150
        # What is kept of a text is what was written, and no more.
        again = [engine.submit(prompt, max_tokens=150) for prompt in prompts]
        assert [handle.text() for handle in again] == expected


def test_more_texts_than_an_exact_step_has_tokens(path: Path) -> None:
    with mmrt.Model(path, draft="ngram") as model, model.engine() as engine:
        sizes = count_steps(model)
        handles = [engine.submit(f"{i} {PROMPT}", max_tokens=20) for i in range(9)]
        assert [handle.text().tokens for handle in handles] == [20] * 9
        assert all(size <= 9 for size in sizes if size < 20)


def test_texts_in_little_memory(path: Path) -> None:
    """Drafts take no page that texts do not need without them."""
    with mmrt.Model(path, draft="off", exact=True) as model:
        expected = [model.generate(f"{i} {PROMPT}", max_tokens=90) for i in range(3)]
    with mmrt.Model(path, draft="ngram", exact=True) as model:
        page = model.store.page_bytes
        with model.engine(kv=8 * page, keep=0) as engine:
            handles = [engine.submit(f"{i} {PROMPT}", max_tokens=90) for i in range(3)]
            assert [handle.text() for handle in handles] == expected


# ---- where weights are streamed ----


def test_off_by_default_where_tokens_need_weights_of_their_own(path: Path) -> None:
    demand = Demand(0, 0, 0, 0, 0.0, 4, 100)
    with mmrt.Model(path) as model:
        assert model.drafts.begin(STREAMED) is not None
        assert model.drafts.begin(None) is None
        others: list[dict[str, Any]] = [{"streamed": 0}, {"cache": 100}, {"columns": demand}]
        for other in others:
            assert model.drafts.begin(replace(STREAMED, **other)) is None
    with mmrt.Model(path, draft="ngram") as model:
        assert model.drafts.begin(replace(STREAMED, cache=100)) is not None


# ---- a real model ----


@pytest.mark.slow
def test_a_real_text_is_the_same(real_path: Path) -> None:
    """Also beyond 256 tokens."""
    asked = "The quick brown fox jumps over the lazy dog. " * 30
    for options in (OPTIONS["greedy"], OPTIONS["sampled"]):
        told = []
        for draft in ("off", "ngram"):
            with mmrt.Model(real_path, draft=draft) as model:
                told.append(list(model.stream(asked, max_tokens=40, logprobs=1, **options)))
                record = model.drafts.record
        assert told[0] == told[1]
        assert record.accepted > 0


# ---- guesses ----


def taken(guesses: Iterator[Guess], n: int) -> list[Guess]:
    return list(itertools.islice(guesses, n))


def test_what_was_said_before_is_guessed() -> None:
    text = Ngrams()
    text.read([1, 2, 3, 4, 5, 6, 9, 1, 2])
    assert taken(text.guesses(), 1) == []
    text.read([3])
    assert taken(text.guesses(), 4) == [(4, 3), (5, 4), (6, 5), (9, 6)]
    text.read([4, 5])
    assert taken(text.guesses(), 2) == [(6, 5), (9, 6)]
    text.read([7])
    assert taken(text.guesses(), 1) == []


def test_a_repetition_is_guessed_to_go_on() -> None:
    text = Ngrams()
    text.read([1, 2, 3, 1, 2, 3])
    guessed = taken(text.guesses(), 8)
    assert [guess.token for guess in guessed] == [1, 2, 3, 1, 2, 3, 1, 2]
    assert [guess.sort for guess in guessed] == [3, 4, 5, 6, 7, 8, 8, 8]


def test_any_guess_follows_what_is_the_same() -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(0, 3, 400).tolist()
    text = Ngrams()
    for i, token in enumerate(tokens):
        text.read([token])
        before = tokens[: i + 1]
        for guess in taken(text.guesses(), 1):
            run = [*before[-guess.sort :], guess.token]
            assert any(before[at : at + len(run)] == run for at in range(len(before)))


# ---- what they are worth ----


def guesses(sort: int = 3) -> Iterator[Guess]:
    return (Guess(5, sort) for _ in itertools.count())


def test_nothing_is_drafted_before_a_step_was_timed() -> None:
    assert Record().choose(guesses(), 6) == ([Guess(5, 3)], 0)


def test_what_was_right_is_counted_by_depth() -> None:
    record = Record()
    for drafted, accepted in ((3, 3), (3, 1), (2, 0), (5, 4)):
        record.count(drafted, accepted)
    assert record.by_depth == [(4, 3), (3, 2), (2, 2), (1, 1), (1, 0)]
    assert (record.steps, record.drafted, record.accepted) == (4, 13, 8)


def test_drafts_are_as_long_as_they_are_worth() -> None:
    record = Record()
    record.time(0, 1.0)
    assert record.choose(guesses(), 6)[1] == 6
    assert record.choose(guesses(), 0)[1] == 0
    assert record.choose(iter(()), 6) == ([], 0)
    record.time(2, 1.5)  # 0.25 for each token more, of which half are right
    assert record.choose(guesses(), 6)[1] == 1  # the second is right in a quarter
    for _ in range(200):
        record.judge(taken(guesses(), 6), [5] * 6)
    assert record.choose(guesses(), 6)[1] == 6


def test_guesses_that_are_wrong_are_not_drafted_until_they_are_right() -> None:
    record = Record()
    record.time(0, 1.0)
    record.time(1, 1.3)
    for _ in range(50):
        record.judge(record.choose(guesses(), 6)[0], [6, 6, 6])
    assert record.choose(guesses(), 6)[1] == 0
    assert record.choose(guesses(sort=8), 6)[1] > 0  # another sort
    for _ in range(50):
        made, n = record.choose(guesses(), 6)
        assert len(made) == n + 1 or n == 6
        record.judge(made, [5] * 7)
    assert record.choose(guesses(), 6)[1] > 0


def test_what_tokens_cost_is_measured_again() -> None:
    record = Record()
    record.time(0, 1.0)
    record.time(6, 13.0)  # the disk was busy
    assert record.choose(guesses(), 6)[1] == 0
    assert any(record.choose(guesses(), 6)[1] for _ in range(300))
