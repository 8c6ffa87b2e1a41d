"""Turns of conversations with recurrent models: each evaluates what is new, and no more than one
interval between checkpoints besides; what is written is that of a model that begins anew."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures
from test_chat import CHATML

import mmrt
from mmrt.run import checkpoints
from mmrt.run.generation import Piece, Stream
from mmrt.run.prefixes import common

INTERVAL = 64
OPTIONS: dict[str, Any] = {"max_tokens": 9, "temperature": 0, "ignore_eos": True, "logprobs": 1}
QUESTIONS = [
    "What is a page fault, and what does it cost? " * 3,
    "Why? " * 9,
    "No.",
    "Go on. " * 30,
]

Messages = list[dict[str, Any]]
Turn = tuple[list[Piece], int]  # an answer, and how many tokens of its prompt were evaluated


@pytest.fixture(scope="module", params=tiny_architectures.HYBRIDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_architectures.tiny(request.param, True, type="Q8_0", n_embd=64)
    made.metadata["tokenizer.chat_template"] = CHATML
    made.metadata[f"{request.param}.context_length"] = 4096
    return made.write(tmp_path_factory.mktemp("turns") / "m.gguf")


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "interval", lambda store: INTERVAL)
    monkeypatch.setattr("mmrt.run.model.STEP_TOKENS", INTERVAL)  # they are where steps end


@pytest.fixture(scope="module")
def fresh(path: Path) -> Iterator[mmrt.Model]:
    """What reads each text from its beginning."""
    with mmrt.Model(path, exact=True, threads=2) as model:
        yield model


@pytest.fixture
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path, exact=True, threads=2) as opened:
        yield opened


def read(stream: Stream) -> Turn:
    pieces = list(stream)
    return pieces, stream.prompt_tokens - stream.cached_tokens


def chats(model: mmrt.Model) -> Iterator[Callable[[Messages], Turn]]:
    def ask(messages: Messages) -> Turn:
        return read(model.stream_chat(messages, **OPTIONS))

    yield ask


def engines(model: mmrt.Model) -> Iterator[Callable[[Messages], Turn]]:
    with model.engine() as engine:

        def ask(messages: Messages) -> Turn:
            before = engine.evaluated_tokens
            pieces = list(engine.submit_chat(messages, **OPTIONS))
            return pieces, engine.evaluated_tokens - before - (OPTIONS["max_tokens"] - 1)

        yield ask


class Talk:
    """A conversation by `ask`, whose answers are those of `fresh`."""

    def __init__(self, fresh: mmrt.Model, ask: Callable[[Messages], Turn]) -> None:
        self._fresh, self._ask = fresh, ask
        self._read: list[list[int]] = []  # all texts so far

    def turn(self, messages: Messages) -> str:
        """The answer; the prompt's tokens that no text had were evaluated, and few others."""
        ids = self._fresh.chat_tokens(messages)
        pieces, evaluated = self._ask(messages)
        assert pieces == list(self._fresh.stream(ids, **OPTIONS))
        known = max((common(ids, text) for text in self._read), default=0)
        assert evaluated <= len(ids) - known + INTERVAL
        self._read.append([*ids, *(piece.token for piece in pieces if piece.token is not None)])
        return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("asked_by", [chats, engines])
def test_each_turn_evaluates_what_is_new(
    model: mmrt.Model, fresh: mmrt.Model, asked_by: Callable[..., Iterator[Any]]
) -> None:
    for ask in asked_by(model):
        talk = Talk(fresh, ask)
        messages: Messages = [{"role": "system", "content": "You are brief. " * 12}]
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": talk.turn(messages)})
        talk.turn(messages[:-1])  # the last answer anew
        edited = [*messages[:-2], {"role": "user", "content": "Else? " * 20}]
        talk.turn(edited)
        branch = [*messages[:3], {"role": "user", "content": "And then? " * 9}]
        talk.turn(branch)
        stranger = [*messages[:1], {"role": "user", "content": "Who are you? " * 9}]
        talk.turn(stranger)
    assert len(messages) == 1 + 2 * len(QUESTIONS)


def test_undo_and_retry_evaluate_little(model: mmrt.Model, fresh: mmrt.Model) -> None:
    with model.conversation(system="You are brief. " * 12) as chat:

        def ask(messages: Messages) -> Turn:
            assert messages[:-1] == chat.messages
            return read(chat.stream(messages[-1]["content"], **OPTIONS))

        talk = Talk(fresh, ask)

        def say(question: str) -> str:
            return talk.turn([*chat.messages, {"role": "user", "content": question}])

        answers = [say(question) for question in QUESTIONS]
        for _ in range(2):  # /retry
            assert chat.undo() == QUESTIONS[-1]
            assert say(QUESTIONS[-1]) == answers[-1]
        for _ in range(2):  # /undo
            chat.undo()
        say("Is that so? " * 9)
        assert len(chat.messages) == 1 + 2 * (len(QUESTIONS) - 1)


def test_forks_and_rewinds_give_the_bits_of_a_fresh_run(
    model: mmrt.Model, fresh: mmrt.Model
) -> None:
    ids = np.random.default_rng(9).integers(0, 290, 420).tolist()
    expected = fresh.logits(ids)
    with model.sequence() as text:
        text.extend(ids[:300])
        for length in (290, 222, 130, 41):
            with text.fork() as fork:
                reached = fork.truncate(length)
                assert length - INTERVAL <= reached <= length
                found = fork.extend(ids[reached : length + 30], outputs="all")
                assert np.array_equal(found, expected[reached : length + 30])
            assert len(text) == 300
        assert np.array_equal(text.extend(ids[300:], outputs="all"), expected[300:])
        reached = text.truncate(205)
        assert reached >= 205 - INTERVAL
        assert np.array_equal(text.extend(ids[reached:], outputs="all"), expected[reached:])
    assert model.store.nbytes == 0
