"""Conversations: what is remembered of them, and what is read again."""

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from test_chat import CHATML

import mmrt
from mmrt import counters
from mmrt.errors import ArgumentError, InUseError, UnsupportedError
from mmrt.run.prefixes import Prefixes

HELLO = [{"role": "user", "content": "What is a page fault, and what does it cost?"}]
OTHER = [{"role": "user", "content": "Name a colour."}]
MIB = 1 << 20


def chatting(**shape: Any) -> tiny_models.TinyModel:
    model = tiny_models.llama(n_layers=3, type="Q8_0", separate_output=True, **shape)
    model.metadata["tokenizer.chat_template"] = CHATML
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(context=600).write(tmp_path_factory.mktemp("conversation") / "m.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path) as model:
        yield model


class Reads:
    """Counts the tokens that prompts take: reads.options are a stream's."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.options: Any = {"max_tokens": 12, "on_prefill": self._note}

    def _note(self, done: int, total: int) -> None:
        if done == total:
            self.totals.append(total)


def going_on(messages: list[dict[str, str]], answer: str) -> list[dict[str, str]]:
    return [*messages, {"role": "assistant", "content": answer}, *OTHER]


# ---- Model.chat ----


def test_a_conversation_is_not_read_again(model: mmrt.Model) -> None:
    reads = Reads()
    first = model.chat(HELLO, **reads.options)
    longer = going_on(HELLO, first)
    model.chat(longer, **reads.options)
    prompts = [len(model.chat_tokens(m)) for m in (HELLO, longer)]
    assert reads.totals[0] == prompts[0]
    assert reads.totals[1] <= prompts[1] - prompts[0]
    text = model.chat(longer, **reads.options)
    assert text.prompt_tokens == prompts[1] == text.cached_tokens + reads.totals[2]


def test_the_same_question_has_the_same_answer(model: mmrt.Model) -> None:
    reads = Reads()
    answers = {model.chat(HELLO, **reads.options) for _ in range(3)}
    assert len(answers) == 1
    assert reads.totals[1] == reads.totals[2] < reads.totals[0]


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_0"])
def test_logits_after_a_kept_prefix_are_the_same_to_the_bit(
    tmp_path: Path, type: str, isa: str
) -> None:
    path = tiny_models.llama(type=type).write(tmp_path / "m.gguf")
    ids = [(7 * i + i * i) % 250 for i in range(150)]
    with mmrt.Model(path) as model:
        for n in (3, 8, 9, 40, 150):
            with model.sequence() as sequence:
                whole = sequence.extend(ids[:n])
                sequence.truncate(0)
                sequence.extend([*ids[:n], 1, 2, 3])
                kept = sequence.keep_prefix(ids[:n])
                assert kept == max(n - 8, 0) == len(sequence)
                assert np.array_equal(sequence.extend(ids[kept:n]), whole)


def test_another_conversation_begins_anew(model: mmrt.Model, path: Path) -> None:
    reads = Reads()
    model.chat(HELLO, **reads.options)
    answer = model.chat(OTHER, **reads.options)
    shared = len("<|im_start|>user\n")
    assert reads.totals[1] >= len(model.chat_tokens(OTHER)) - shared
    with mmrt.Model(path) as fresh:
        assert fresh.chat(OTHER, max_tokens=12) == answer


def test_conversations_in_turn_are_not_read_again(model: mmrt.Model) -> None:
    """Five of them, round robin: the engines that keep a few slots read each anew."""
    talks = [[{"role": "user", "content": f"{i} pages of notes"}] for i in range(5)]
    for turn in range(3):
        for talk in talks:
            text = model.chat(talk, max_tokens=5, ignore_eos=True)
            new = text.prompt_tokens - text.cached_tokens
            assert turn == 0 or new <= len(model.chat_tokens(OTHER)) + 32
            talk += [{"role": "assistant", "content": text}, *OTHER]


def test_a_beginning_is_shared_with_a_longer_conversation(model: mmrt.Model) -> None:
    system = [{"role": "system", "content": "Be brief, polite and exact in all that you say."}]
    model.chat(going_on([*system, *HELLO], "A fault in a page."), max_tokens=12)
    text = model.chat([*system, *OTHER], max_tokens=5)
    assert text.cached_tokens >= len(model.chat_tokens(system)) - 30


def test_threads_may_converse_at_once(model: mmrt.Model) -> None:
    questions = [[{"role": "user", "content": f"{i} " * 30}] for i in range(6)]
    alone = [model.chat(question, max_tokens=12) for question in questions]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda q: model.chat(q, max_tokens=12), questions)) == alone
    assert model.memory.kv <= model.memory.kv_page * 40  # of one alone


def test_a_stream_that_is_left_can_be_gone_on_with(model: mmrt.Model) -> None:
    reads = Reads()
    stream = model.stream_chat(HELLO, **reads.options)
    first = next(stream).text
    stream.close()
    model.chat(going_on(HELLO, first), **reads.options)
    assert reads.totals[1] < reads.totals[0]


def test_a_sequence_may_keep_the_conversation(model: mmrt.Model) -> None:
    reads = Reads()
    with model.sequence() as sequence:
        first = model.chat(HELLO, sequence=sequence, **reads.options)
        model.chat(OTHER)  # kept by the model
        longer = going_on(HELLO, first)
        model.chat(longer, sequence=sequence, **reads.options)
        assert sequence.tokens[: len(model.chat_tokens(longer))] == model.chat_tokens(longer)
    assert reads.totals[1] < len(model.chat_tokens(longer)) - len(model.chat_tokens(HELLO)) + 12


def test_what_is_kept_goes_with_the_model(path: Path) -> None:
    model = mmrt.Model(path)
    model.chat(HELLO, max_tokens=4)
    assert model.memory.kv > 0
    model.close()
    assert model.memory.kv == 0

    dropped = mmrt.Model(path)
    dropped.chat(HELLO, max_tokens=4)
    gone = weakref.ref(dropped)
    gc.disable()
    try:
        del dropped
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_what_is_kept_is_given_back_to_a_budget(tmp_path: Path) -> None:
    # 512 KiB of keys and values a token, so that they count.
    wide = chatting(n_kv_heads=256, n_heads=256, head_dim=256, context=600)
    path = wide.write(tmp_path / "wide.gguf")
    long = [{"role": "user", "content": "ab " * 40}]
    budget = counters.resident().anon + 400 * MIB
    with mmrt.Model(path, memory=budget) as model:
        model.chat(long, max_tokens=1)
        kept = model.memory.kv
        assert kept > 20 * MIB
        texts = []
        while True:
            texts.append(model.sequence())
            try:
                texts[-1].extend([5] * 40)
            except mmrt.OutOfMemoryError:
                break
        assert model.memory.kv == sum(text.nbytes for text in texts)


# ---- Conversation ----


def test_a_turn_reads_only_what_is_new(model: mmrt.Model) -> None:
    reads = Reads()
    with model.conversation() as conversation:
        first = conversation.say(HELLO[0]["content"], **reads.options)
        second = conversation.say(OTHER[0]["content"], **reads.options)
        assert conversation.messages == [
            *going_on(HELLO, first),
            {"role": "assistant", "content": second},
        ]
    assert reads.totals[1] < reads.totals[0]


def test_what_was_said_before_other_questions_is_not_read_again(model: mmrt.Model) -> None:
    """Undone, cleared, asked otherwise and asked anew: the engine's tree has it."""
    one, two, three = "abc " * 20, "def " * 20, "ghi " * 20

    def read(question: str) -> int:
        text = conversation.stream(question, max_tokens=4, ignore_eos=True)
        list(text)
        return text.prompt_tokens - text.cached_tokens

    with model.conversation("Be brief and polite in whatever you say.") as conversation:
        first, _ = read(one), read(two)
        assert first > 80
        assert conversation.undo() == two and read(two) == 8
        assert conversation.undo() == two and read(three) <= 30 + len(three)
        assert conversation.undo() == three and read(two) == 8
        told = list(conversation.messages)
        conversation.clear()
        assert read(two) <= 30 + len(two)
        conversation.take_up(told[:3])
        assert read(two) == 8
        conversation.close()
        assert model.memory.kv == 0
        assert read(one) > 80


def test_the_last_answer_stays_whatever_memory_it_takes(
    model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmrt.Model, "spare_bytes", 0)
    with model.conversation() as conversation:
        conversation.say("abc " * 40, max_tokens=4, ignore_eos=True)
        assert conversation.say("def", max_tokens=4).cached_tokens > 100


@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_that_is_dropped_leaves_no_text(model: mmrt.Model, begun: bool) -> None:
    with model.conversation() as conversation:
        stream = conversation.stream("abc", max_tokens=400, ignore_eos=True)
        if begun:
            next(stream)
        del stream
        answer = conversation.say("def", max_tokens=4, ignore_eos=True)
    with mmrt.Model(model.path) as fresh:
        asked = [*conversation.messages[:-1]]
        assert fresh.chat(asked, max_tokens=4, ignore_eos=True) == answer


def test_an_interrupt_amid_a_step_leaves_the_conversation_whole(model: mmrt.Model) -> None:
    with model.conversation() as conversation:
        expected = [conversation.say("abc", max_tokens=6), conversation.say("def", max_tokens=6)]
        run, calls = model.run_step, []

        def breaks(*given: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            run(*given)

        model.run_step = breaks
        with pytest.raises(KeyboardInterrupt):
            conversation.say("ghi", max_tokens=6, ignore_eos=True)
        model.run_step = run
        assert conversation.undo() == "ghi"
        assert conversation.undo() == "def"
        assert conversation.say("def", max_tokens=6) == expected[1]


@pytest.mark.parametrize("amid", ["grow", "release", "follow"])
def test_an_interrupt_between_steps_leaves_the_conversation_whole(
    model: mmrt.Model, monkeypatch: pytest.MonkeyPatch, amid: str
) -> None:
    """What the tree of beginnings then knows is of no worth any more: all is read again."""
    work = getattr(Prefixes, amid)

    def breaks(self: Prefixes, *given: Any) -> Any:
        monkeypatch.undo()
        text = work(self, *given) if amid == "follow" else given[0]
        del text.path[-1].ends[text]  # as between two lines of it
        raise KeyboardInterrupt

    with model.conversation() as conversation:
        expected = [
            conversation.say("abc " * 40, max_tokens=6),
            conversation.say("d", max_tokens=6),
        ]
        monkeypatch.setattr(Prefixes, amid, breaks)
        with pytest.raises(KeyboardInterrupt):
            conversation.say("ghi " * 40, max_tokens=6, ignore_eos=True)
        conversation.messages = conversation.messages[:2]
        assert conversation.say("d", max_tokens=6) == expected[1]
        assert conversation.say("efg", max_tokens=6).cached_tokens > 100
    assert model.memory.kv == 0


def test_messages_may_be_changed(model: mmrt.Model) -> None:
    with model.conversation("Be brief.") as conversation:
        conversation.say("abc " * 20, max_tokens=4)
        conversation.say("def " * 20, max_tokens=4)
        del conversation.messages[1:3]  # the first turn
        reads = Reads()
        conversation.say("ghi", **reads.options)
        assert [m["content"] for m in conversation.messages[:2]] == ["Be brief.", "def " * 20]
        conversation.clear()
        assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_a_question_without_an_answer_is_forgotten(model: mmrt.Model) -> None:
    with model.conversation() as conversation:
        conversation.stream("Hello?", max_tokens=4).close()
        assert conversation.messages == []
        with pytest.raises(ArgumentError, match="are more than the context of 600"):
            conversation.say("ab " * 600)
        assert conversation.messages == []
        assert next(conversation.stream("Hello?", max_tokens=4)).text
        assert len(conversation.messages) == 2


def test_one_answer_at_a_time(model: mmrt.Model) -> None:
    with model.conversation() as conversation:
        first = conversation.stream("abc", max_tokens=6)
        with pytest.raises(InUseError, match="in use by a stream"):
            conversation.stream("def", max_tokens=6)
        next(first)
        with pytest.raises(InUseError, match="in use by a stream"):
            conversation.say("def", max_tokens=6)
        while not next(first).finish:
            pass
        assert [m["content"] for m in conversation.messages][::2] == ["abc"]
        conversation.say("def", max_tokens=6)
        assert [m["content"] for m in conversation.messages][::2] == ["abc", "def"]


def test_what_forgets_an_answer_ends_it(model: mmrt.Model) -> None:
    with model.conversation("Be brief.") as conversation:
        stream = conversation.stream("abc", max_tokens=6)
        next(stream)
        conversation.clear()
        assert [m["role"] for m in conversation.messages] == ["system"]
        stream = conversation.stream("def", max_tokens=6)
        next(stream)
    assert list(stream) == [] and len(conversation.messages) == 3


def test_a_model_without_a_template_does_not_converse(tmp_path: Path) -> None:
    path = tiny_models.llama().write(tmp_path / "m.gguf")
    with mmrt.Model(path) as model, pytest.raises(UnsupportedError, match="no chat template"):
        model.conversation()
