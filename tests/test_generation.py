"""From prompt to text: what is said, in which pieces, and when it ends."""

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command import STORY
from vocabularies import CONTROL, NORMAL, sentence_piece

import mmrt
from mmrt.errors import ArgumentError
from mmrt.run.generation import Finish, Piece
from mmrt.run.sampler import Sampler
from mmrt.text.grammar import Without

PROMPT = "abcab cacc"


@pytest.fixture(scope="module")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on and on, as its ends of text are as unlikely as any other token."""
    model = tiny_models.llama(n_layers=3, context=200, separate_output=True)
    return model.write(tmp_path_factory.mktemp("generation") / "random.gguf")


@pytest.fixture
def random(random_path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(random_path) as model:
        yield model


@pytest.fixture
def speaks(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """speaks(*says, ...): the open model tiny_models.speaker(*says, ...)."""
    models: list[mmrt.Model] = []

    def opened(*says: bytes, **options: Any) -> mmrt.Model:
        path = tmp_path / f"{len(models)}.gguf"
        models.append(mmrt.Model(tiny_models.speaker(*says, **options).write(path)))
        return models[-1]

    yield opened
    for model in models:
        model.close()


def texts(pieces: Iterator[Piece]) -> list[str]:
    return [piece.text for piece in pieces]


# ---- ends ----


def test_a_model_is_heard_to_its_end(speaks: Callable[..., Any]) -> None:
    model = speaks(b"Hello", b",", b" world")
    assert model.generate(PROMPT) == "Hello, world"
    *said, end = model.stream(PROMPT)
    assert [(p.text, p.finish) for p in said] == [("Hello", None), (",", None), (" world", None)]
    assert [model.detokenize([p.token]) for p in said] == ["Hello", ",", " world"]
    assert end == Piece("", model.tokenizer.eos_id, "stop")


def test_a_model_may_have_nothing_to_say(speaks: Callable[..., Any]) -> None:
    model = speaks()
    assert list(model.stream(PROMPT)) == [Piece("", model.tokenizer.eos_id, "stop")]


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(0, ""), (1, "a"), (2, "ab"), (3, "abc"), (4, "abc"), (9, "abc")]
)
def test_max_tokens(speaks: Callable[..., Any], max_tokens: int, expected: str) -> None:
    pieces = list(speaks(b"a", b"b", b"c").stream(PROMPT, max_tokens=max_tokens))
    assert "".join(p.text for p in pieces) == expected
    finish: Finish = "length" if max_tokens < 4 else "stop"
    assert [p.finish for p in pieces] == [None] * (len(pieces) - 1) + [finish]
    assert sum(p.token is not None for p in pieces) == min(max_tokens, 4)


@pytest.mark.parametrize("max_tokens", [-1, 1.5, "3", True])
def test_max_tokens_that_make_no_sense(random: mmrt.Model, max_tokens: Any) -> None:
    with pytest.raises(ArgumentError, match="max_tokens"):
        random.stream(PROMPT, max_tokens=max_tokens)


def test_the_context_ends_a_text(speaks: Callable[..., Any]) -> None:
    model = speaks(b"la", b"li", ends=False, context=50)
    for n_prompt in (1, 10, 49, 50):
        *_, end = pieces = list(model.stream([97] * n_prompt))
        assert sum(p.token is not None for p in pieces) == 50 - n_prompt
        assert end == Piece("", None, "length")
    with pytest.raises(ArgumentError, match="51 tokens are more than the context of 50"):
        model.stream([97] * 51)
    assert model.generate([97] * 48, max_tokens=100) == "lali"


def test_a_smaller_context_may_be_asked_for(random_path: Path) -> None:
    with mmrt.Model(random_path, context=20) as model:
        assert (model.context, model.config.context_length) == (20, 200)
        pieces = list(model.stream([97] * 15, max_tokens=100))
        assert sum(p.token is not None for p in pieces) <= 5
        with pytest.raises(ArgumentError, match="21 tokens are more than the context of 20"):
            model.logits([97] * 21)


# ---- whole characters ----


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ([b"\xf0", b"\x9f", b"\x98", b"\x80"], ["", "", "", "😀", ""]),
        ([b"a\xf0\x9f", b"\x98\x80b\xc3", b"\xa9"], ["a", "😀b", "é", ""]),
        ([b"\xe4\xb8", b"\xad\xe6\x96\x87", b"\xe5"], ["", "中文", "", "\ufffd"]),
        ([b"\xf0\x9f", b"ok", b"\xff"], ["", "\ufffdok", "\ufffd", ""]),
        ([b"\xe2\x80", b"\x8d\xf0\x9f\x91", b"\xa9"], ["", "\u200d", "👩", ""]),
    ],
)
def test_pieces_are_whole_characters(
    speaks: Callable[..., Any], says: list[bytes], expected: list[str]
) -> None:
    model = speaks(*says)
    assert texts(model.stream(PROMPT)) == expected
    assert model.generate(PROMPT) == b"".join(says).decode("utf-8", "replace")
    cut = model.generate(PROMPT, max_tokens=len(says))  # by the number of tokens, not their end
    assert cut == model.generate(PROMPT)


SPELLED_IN_PARTS = {"llama": "🦖🦕🐙 🦖🦕🐙 🦖🦕🐙 🦖🦕", "gemma3": "𓀀𓀁𓀂 𓀀𓀁𓀂 𓀀𓀁𓀂 𓀀𓀁"}


@pytest.mark.slow
def test_pieces_of_a_real_model_are_whole_characters(real_path: Path) -> None:
    with mmrt.Model(real_path) as model:
        pieces = list(model.stream(SPELLED_IN_PARTS[model.config.architecture], max_tokens=30))
        text = "".join(p.text for p in pieces)
        assert text == model.detokenize(p.token for p in pieces if p.token is not None)
        assert sum(p.text == "" for p in pieces) > 10
        assert len(text) > 5 and "\ufffd" not in text[:-1]  # the last one may have been cut


def test_a_prompt_continues_the_text_of_its_sequence(tmp_path: Path) -> None:
    pieces = [("▁a", -1.0), ("a", -2.0), ("b", -2.0), ("▁", -2.0)]
    vocabulary = sentence_piece(pieces, add_space_prefix=True)
    made = tiny_models.llama(n_layers=1, n_vocab=300)
    padding = [(f"<pad{i}>", NORMAL) for i in range(300 - len(vocabulary["tokenizer.ggml.tokens"]))]
    made.metadata |= sentence_piece(pieces, padding, add_space_prefix=True)
    with mmrt.Model(made.write(tmp_path / "spaces.gguf")) as model, model.sequence() as sequence:
        list(model.stream("a", max_tokens=0, sequence=sequence))
        list(model.stream("b", max_tokens=0, sequence=sequence))
        assert sequence.tokens == model.tokenize("ab")


def test_control_tokens_in_a_prompt_are_the_caller_s_choice(speaks: Callable[..., Any]) -> None:
    model = speaks(b"a")
    text = "a<|im_start|>"
    for parse_special in (True, False):
        with model.sequence() as sequence:
            list(model.stream(text, sequence=sequence, max_tokens=0, parse_special=parse_special))
            assert any(map(model.tokenizer.is_special, sequence.tokens)) == parse_special
            assert model.detokenize(sequence.tokens) == text
            assert sequence.tokens == model.tokenize(text, parse_special=parse_special)


# ---- stop strings ----


@pytest.mark.parametrize(
    ("says", "stop", "expected"),
    [
        ("Hel|lo wor|ld", ["o w"], "Hell"),  # within a token
        ("Hel|lo wor|ld", ["lo"], "Hel"),  # a whole token
        ("Hel|lo wor|ld", ["elo", "lo world"], "Hel"),  # two tokens
        ("Hel|lo wor|ld", ["ello world"], "H"),  # three
        ("Hel|lo wor|ld", ["worldly", "low", "x"], "Hello world"),  # none, though begun
        ("Hel|lo wor|ld", ["world", "o"], "Hell"),  # the first of several
        ("Hel|lo wor|ld", ["lo wor", "ell"], "H"),
        ("ab|ab|ac|!", ["abac"], "ab"),  # begun twice
        ("aa|a|ab|!", ["aab"], "aa"),
        ("a|b|a|b|c|d", ["abcx", "babcd"], "a"),
        ("x|Hello", ["Hello"], "x"),  # the very end
        ("Hello", ["H"], ""),  # the very start
        ("caf|é |ole", ["é o"], "caf"),
        ("one\n|\n|two", ["\n\n"], "one"),
    ],
)
def test_stop_strings(
    speaks: Callable[..., Any], says: str, stop: list[str], expected: str
) -> None:
    model = speaks(*[said.encode() for said in says.split("|")])
    pieces = list(model.stream(PROMPT, stop=stop))
    assert "".join(p.text for p in pieces) == expected
    assert [p.finish for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert model.generate(PROMPT, stop=tuple(stop)) == expected


def test_text_is_held_back_no_longer_than_it_must(speaks: Callable[..., Any]) -> None:
    model = speaks(b"<", b"ab", b"<b", b"r", b"i", b"<")
    assert texts(model.stream(PROMPT, stop=["<br>", "<bra"])) == [
        "",
        "<ab",
        "",
        "",
        "<bri",
        "",
        "<",
    ]


def test_a_stop_string_in_characters_that_come_in_parts(speaks: Callable[..., Any]) -> None:
    model = speaks(b"a\xf0\x9f", b"\x98", b"\x80b", b"c")
    assert texts(model.stream(PROMPT, stop=["😀b"])) == ["a", "", ""]


def test_held_text_comes_out_at_the_length_too(speaks: Callable[..., Any]) -> None:
    model = speaks(b"x", b"<b", b"r>")
    *_, held = model.stream(PROMPT, stop=["<br>"], max_tokens=2)
    assert held == Piece("<b", None, "length")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["<|im_start|>"], "ab"),
        (["b<|im_start|>c"], "a"),
        (["c<|im_start|>", "<|im_start|>d"], "abcd"),
        (["art|>cd"], "ab"),
        (["x"], "abcd"),
    ],
)
def test_a_stop_string_may_spell_control_tokens(
    tmp_path: Path, stop: list[str], expected: str
) -> None:
    made = tiny_models.speaker(b"a", b"b", b"<|im_start|>", b"c", b"d")
    tokens, kinds = (made.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    kinds[tokens.index("<|im_start|>")] = CONTROL
    with mmrt.Model(made.write(tmp_path / "control.gguf")) as model:
        *_, end = model.stream(PROMPT, stop=stop)
        assert end.finish == "stop"
        assert model.generate(PROMPT, stop=stop) == expected


@pytest.mark.parametrize("stop", ["text", [""], ["a", ""], [3], None])
def test_stops_that_make_no_sense_are_refused_at_once(random: mmrt.Model, stop: Any) -> None:
    with pytest.raises(ArgumentError, match="stop"):
        random.stream(PROMPT, stop=stop)


# ---- what is drawn ----


def test_greedy_text_is_always_the_same(random: mmrt.Model, random_path: Path) -> None:
    text = random.generate(PROMPT, max_tokens=60)
    assert text and text == random.generate(PROMPT, max_tokens=60)
    assert text == random.generate(PROMPT, max_tokens=60, seed=7)
    assert text == random.generate(PROMPT, max_tokens=60, temperature=2.0, top_k=1)
    assert text == random.generate(random.tokenize(PROMPT), max_tokens=60)
    for threads in (1, 3):
        with mmrt.Model(random_path, threads=threads) as other:
            assert text == other.generate(PROMPT, max_tokens=60)


@pytest.mark.slow
def test_the_seed_decides(random: mmrt.Model) -> None:
    def drawn(seed: int | None, **settings: Any) -> str:
        return random.generate(PROMPT, max_tokens=40, temperature=1.5, seed=seed, **settings)

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(5)}) == 5
    assert len({drawn(None) for _ in range(5)}) == 5
    assert drawn(1, repeat_penalty=5.0) != drawn(1)


@pytest.mark.slow
def test_a_penalty_sees_the_prompt_too(random: mmrt.Model) -> None:
    sampler = Sampler(repeat_penalty=1.5)
    changed = 0
    for start in range(200):
        ids = list(range(start, start + 50))
        logits = random.logits(ids)[-1]
        token = next(random.stream(ids, repeat_penalty=1.5)).token
        assert token == sampler(logits, ids)
        changed += token != logits.argmax()
    assert changed > 10


def test_sampling_settings_are_refused_at_once(random: mmrt.Model) -> None:
    with pytest.raises(ArgumentError, match="temperature"):
        random.stream(PROMPT, temperature=-1)
    with pytest.raises(ArgumentError, match="'temprature'; did you mean 'temperature'"):
        random.generate(PROMPT, temprature=1)  # type: ignore[call-arg]


# ---- prompts ----


@pytest.mark.parametrize("prompt", ["", [], (), iter([])])
def test_empty_prompts_are_refused_at_once(random: mmrt.Model, prompt: Any) -> None:
    with pytest.raises(ArgumentError, match="the prompt is empty"):
        random.stream(prompt)


@pytest.mark.parametrize("ids", [[300], [-1], [2**40], [1, 2, 1.5], ["a"], [None]])
def test_ids_that_are_no_tokens_are_refused(random: mmrt.Model, ids: Any) -> None:
    with pytest.raises(ArgumentError, match="whole numbers from 0 to 299"):
        random.generate(ids)
    with pytest.raises(ArgumentError, match="whole numbers from 0 to 299"):
        random.logits(ids)


def test_progress_of_a_prompt(random_path: Path, tmp_path: Path) -> None:
    path = tiny_models.llama(context=1000).write(tmp_path / "model.gguf")
    seen: list[tuple[int, int]] = []
    with mmrt.Model(path) as model:
        model.generate([5] * 600, max_tokens=1, on_prefill=lambda *counts: seen.append(counts))
    assert seen == [(0, 600), (256, 600), (512, 600), (600, 600)]


# ---- texts that go on ----


def test_a_text_goes_on_in_its_sequence(random: mmrt.Model) -> None:
    prompt = random.tokenize(PROMPT)
    whole = [p.token for p in random.stream(prompt, max_tokens=30) if p.token is not None]
    assert len(whole) == 30
    with random.sequence() as sequence:
        first = list(random.stream(prompt, max_tokens=12, sequence=sequence))
        ids = [p.token for p in first if p.token is not None]
        assert sequence.tokens == prompt + ids[:-1]  # what is said last has not been read yet
        again = random.stream([ids[-1]], max_tokens=18, sequence=sequence)
        assert ids + [p.token for p in again if p.token is not None] == whole
        assert sequence.tokens == prompt + whole[:-1]


def test_only_a_text_that_begins_gets_its_first_token(smollm2_path: Path) -> None:
    with mmrt.Model(smollm2_path) as model, model.sequence() as sequence:
        model.generate(STORY, max_tokens=0, sequence=sequence)
        model.generate(" there was", max_tokens=0, sequence=sequence)
        assert sequence.tokens == model.tokenize(STORY + " there was")


def test_a_full_sequence_takes_no_more(random: mmrt.Model) -> None:
    with random.sequence() as sequence:
        random.generate([5] * 150, max_tokens=0, sequence=sequence)
        with pytest.raises(ArgumentError, match="201 tokens are more than the context of 200"):
            random.stream([5] * 51, sequence=sequence)
        assert len(list(random.stream([5] * 50, sequence=sequence))) == 1


def test_sequences_belong_to_their_model(random: mmrt.Model, random_path: Path) -> None:
    with mmrt.Model(random_path) as other, pytest.raises(ArgumentError, match="another model"):
        random.stream(PROMPT, sequence=other.sequence())


def test_a_stream_that_is_left_gives_its_memory_back(random: mmrt.Model) -> None:
    stream = random.stream(PROMPT, max_tokens=50)
    next(stream)
    assert random.memory.kv > 0
    stream.close()
    assert random.memory.kv == 0


# ---- several at once ----


@contextmanager
def in_threads(*work: Callable[[], object]) -> Iterator[None]:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 2])
def test_threads_may_share_a_model(random_path: Path, n_threads: int) -> None:
    prompts = [[i, 97, i + 1, 98] * 9 for i in range(6)]
    with mmrt.Model(random_path, threads=n_threads) as model:
        alone = [model.generate(prompt, max_tokens=40) for prompt in prompts]
        together: dict[int, list[str]] = {i: [] for i in range(len(prompts))}

        def work(i: int) -> None:
            for _ in range(8):
                together[i].append(model.generate(prompts[i], max_tokens=40))

        with in_threads(*[lambda i=i: work(i) for i in together]):
            for _ in range(20_000):  # while they run
                assert model.memory.kv % model.memory.kv_page == 0
        assert together == {i: [text] * 8 for i, text in enumerate(alone)}
        assert model.memory.kv == 0


def test_streams_may_take_turns(random: mmrt.Model) -> None:
    prompts = [[5], [6, 7], [8] * 40]
    alone = [texts(random.stream(prompt, max_tokens=20)) for prompt in prompts]
    streams = [random.stream(prompt, max_tokens=20) for prompt in prompts]
    rounds = list(zip_longest(*streams))
    assert [[p.text for p in pieces if p] for pieces in zip(*rounds, strict=True)] == alone


# ---- what a text knows of itself ----


def test_a_text_knows_how_it_came_about(speaks: Callable[..., Any]) -> None:
    model = speaks(b"Hello", b",", b" world")
    whole = model.generate(PROMPT)
    assert (whole, whole.finish, whole.tokens) == ("Hello, world", "stop", 4)
    assert (whole.prompt_tokens, whole.cached_tokens) == (len(model.tokenize(PROMPT)), 0)
    assert 0 < whole.seconds < 60
    cut = model.generate(PROMPT, max_tokens=2)
    assert (cut, cut.finish, cut.tokens) == ("Hello,", "length", 2)
    stopped = model.generate(PROMPT, stop=["wor"])
    assert (stopped, stopped.finish, stopped.tokens) == ("Hello, ", "stop", 3)
    copy = pickle.loads(pickle.dumps(cut))
    assert (copy, copy.finish, copy.tokens) == (cut, "length", 2)
    for text, prompt in zip(model.generate_all([PROMPT, [5]]), (PROMPT, "a"), strict=True):
        assert (text, text.finish, text.tokens) == ("Hello, world", "stop", 4)
        assert text.prompt_tokens == len(model.tokenize(prompt))


def test_a_stream_knows_it_so_far(speaks: Callable[..., Any]) -> None:
    stream = speaks(b"Hello", b",", b" world").stream(PROMPT)
    assert (stream.tokens, stream.finish) == (0, None)
    next(stream)
    assert (stream.tokens, stream.finish) == (1, None)
    assert stream.text() == ", world"
    assert (stream.tokens, stream.finish) == (4, "stop")
    assert list(stream) == []


@pytest.mark.slow
def test_a_text_ends_though_nobody_says_when(speaks: Callable[..., Any]) -> None:
    model = speaks(b"la", ends=False, context=600)
    text = model.generate([97])
    assert (text, text.tokens, text.finish) == ("la" * 512, 512, "length")
    assert [each.tokens for each in model.generate_all([[97]])] == [512]
    assert model.generate([97], max_tokens=None).tokens == 599


def test_suppressed_tokens_are_never_written(tmp_path: Path) -> None:
    made = tiny_models.llama(n_layers=3, context=200, separate_output=True)
    with mmrt.Model(made.write(tmp_path / "free.gguf")) as model:
        pieces = model.stream(PROMPT, max_tokens=40, temperature=0, ignore_eos=True)
        written = sorted({piece.token for piece in pieces if piece.token is not None})
    assert len(written) > 1
    made.metadata["tokenizer.ggml.suppress_tokens"] = written
    with mmrt.Model(made.write(tmp_path / "held.gguf")) as model:
        assert model.tokenizer.suppressed_ids == tuple(written)
        for options in ({"ignore_eos": True}, {"grammar": (Without(("zzz",)),)}):
            pieces = model.stream(PROMPT, max_tokens=40, temperature=0, **options)
            again = {piece.token for piece in pieces}
            assert len(again) > 1 and not again & set(written)
