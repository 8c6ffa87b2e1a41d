"""Texts of recurrent models go back to checkpoints: what follows is the same to the bit, and no
more is read again than lies between two of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures
from numpy.typing import NDArray
from test_chat import CHATML

import mmrt
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.run import checkpoints
from mmrt.run.checkpoints import Stops
from mmrt.run.prefixes import Prefixes
from mmrt.run.sequence import Sequence

IDS = np.random.default_rng(5).integers(0, 290, 500).tolist()
OPTIONS: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}
BEGINS, ENDS = 298, 299  # control tokens
OPENING = [BEGINS, 5, 10]  # of an answer


def message(first: int, n: int) -> list[int]:
    """A message of n tokens."""
    return [BEGINS, *IDS[first : first + n - 2], ENDS]


@pytest.fixture(scope="module", params=tiny_architectures.HYBRIDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_architectures.tiny(request.param, True, type="Q8_0", n_embd=64)
    made.metadata["tokenizer.chat_template"] = CHATML
    return made.write(tmp_path_factory.mktemp("checkpoints") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path, exact=True, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(model: mmrt.Model) -> NDArray[np.float32]:
    """The logits after each of the first tokens of IDS."""
    return model.logits(IDS[:120])


def read(model: mmrt.Model, ids: list[int], *stops: int) -> Cache:
    """With checkpoints at these lengths."""
    cache = Cache(model.store)
    for begin, end in zip((0, *stops), (*stops, len(ids)), strict=True):
        Sequence(model, cache).extend(ids[begin:end])
        if end in stops:
            cache.checkpoint()
    return cache


def after(model: mmrt.Model, cache: Cache, ids: list[int]) -> NDArray[np.float32]:
    return Sequence(model, cache).extend(ids, outputs="all")


# ---- going back ----


def test_a_text_goes_back_to_its_last_checkpoint(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    for length, reached in ((100, 100), (99, 70), (70, 70), (69, 33), (32, 5), (4, 0)):
        cache = read(model, IDS[:100], 5, 33, 70)
        assert cache.checkpoints == [5, 33, 70]
        assert cache.reach(length) == reached == cache.truncate(length)
        assert cache.tokens == IDS[:reached]
        assert cache.checkpoints == [n for n in (5, 33, 70) if n <= reached]
        cache.checkpoint()
        for _ in range(2):
            found = after(model, cache, IDS[reached : reached + 9])
            assert np.array_equal(found, expected[reached : reached + 9])
            assert cache.truncate(reached) == reached
    del cache
    assert model.store.nbytes == 0


def test_forks_have_the_checkpoints_too(model: mmrt.Model, expected: NDArray[np.float32]) -> None:
    cache = read(model, IDS[:60], 20, 40)
    cache.checkpoint()
    fork = cache.fork()
    held = model.store.nbytes
    assert fork.checkpoints == cache.checkpoints == [20, 40, 60]
    assert model.store.sharing.logical == 2 * held
    assert cache.truncate(50) == 40
    assert np.array_equal(after(model, cache, IDS[40:50]), expected[40:50])
    assert np.array_equal(after(model, fork, IDS[60:70]), expected[60:70])
    assert fork.truncate(39) == 20
    assert np.array_equal(after(model, fork, IDS[20:30]), expected[20:30])
    cache.forget(40)
    cache.forget(7)  # there is none
    assert cache.checkpoints == [20] and cache.truncate(49) == 20


def test_checkpoints_count_as_memory(model: mmrt.Model) -> None:
    store = model.store
    plain, cache = read(model, IDS[:60]), Cache(store)
    held = store.nbytes
    for n in (20, 40, 60):
        grows = cache.growth(n)
        before = store.nbytes
        Sequence(model, cache).extend(IDS[cache.length : n])
        assert store.nbytes == before + grows
        cache.checkpoint()
        cache.checkpoint()  # it is one
    assert store.nbytes - held == plain.nbytes + 2 * store.block_bytes - store.block_bytes
    assert cache.nbytes == store.nbytes - held
    cache.forget(20)
    assert cache.nbytes == plain.nbytes
    cache.truncate(0)
    assert store.nbytes == held and cache.nbytes == 0


def test_a_text_takes_over_the_checkpoints_of_another(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    cache, other = read(model, IDS[:90], 50), read(model, IDS[:60], 20, 50)
    other.checkpoint()
    cache.adopt(other)
    assert cache.checkpoints == [20, 50, 60]
    other.adopt(cache)
    assert other.checkpoints == [20, 50, 60]
    del other
    for length in (60, 20):
        assert cache.truncate(length) == length
        assert np.array_equal(after(model, cache, IDS[length : length + 5]), expected[length:][:5])


def test_steps_that_fail_leave_checkpoints(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    cache = read(model, IDS[:40], 30)
    cache.checkpoint()
    with pytest.raises(mmrt.ArgumentError):
        model.run([Part(cache, np.array([3, 300], np.int32))])
    assert cache.checkpoints == [30, 40]
    assert np.array_equal(after(model, cache, IDS[40:45]), expected[40:45])
    assert cache.truncate(42) == 40


# ---- where they are ----


def test_intervals_cost_what_keys_and_values_do(model: mmrt.Model) -> None:
    n, store = checkpoints.interval(model.store), model.store
    assert n == 256 or abs(n * store.page_bytes / 32 - store.block_bytes) <= store.page_bytes


def test_a_text_has_a_few_for_each_interval(
    model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "interval", lambda store: 50)
    with model.sequence() as text:
        text.extend(IDS[:40])
        for token in IDS[40:400]:
            text.extend([token])
        assert max(np.diff([0, *text._cache.checkpoints, 400])) <= 50
        for first in range(400, 490, 3):
            text.extend(IDS[first : first + 3])
            checkpoints.set_one(text._cache)
        kept = [0, *text._cache.checkpoints]
        assert len(kept) - 1 == 4 + 2 * 490 // 50 and max(np.diff(kept)) <= 50


def test_stops_are_where_messages_end() -> None:
    ids = [*message(0, 100), *message(0, 100), *message(0, 100), *OPENING]
    stops = Stops(ids, 0, {BEGINS, ENDS})
    assert stops.certain == [100, 200, 295]
    assert stops.cut(0, 256) == 100 and stops.cut(100, 256) == 100 and stops.cut(200, 256) == 95
    assert stops.cut(295, 8) == 8 and stops.cut(200, 90) == 87  # no few tokens are left
    assert Stops(ids, 200, {BEGINS, ENDS}).certain == [295]
    assert Stops(IDS[:9], 0, set()).certain == [1] and Stops(IDS[:8], 0, set()).certain == []
    lengths = (80, 150, 90, 30, 20, 60)  # the fourth begins too soon after the third to have one
    near = Stops([token for n in lengths for token in message(0, n)], 0, {BEGINS})
    assert near.certain == [80, 320, 422] and near.reach(421) == 320 and near.reach(79) == 0
    assert near.cut(80, 200) == 150 and near.cut(80, 155) == 150 and near.cut(80, 149) == 149
    assert 230 in near and 320 in near and 350 not in near and 231 not in near


# ---- conversations ----


def ask(engine: mmrt.Engine, alone: mmrt.Model, ids: list[int]) -> tuple[int, list[int]]:
    """(tokens of a prompt that an engine evaluated, what it wrote), which is what it writes
    alone."""
    before = engine.evaluated_tokens
    handle = engine.submit(ids, **OPTIONS)
    pieces = list(handle)
    written = [piece.token for piece in pieces if piece.token is not None]
    assert "".join(piece.text for piece in pieces) == alone.generate(ids, **OPTIONS)
    return engine.evaluated_tokens - before - (len(written) - 1), written


def test_turns_branches_and_edits_read_little_again(model: mmrt.Model) -> None:
    system, first, second = message(0, 90), message(90, 80), message(170, 70)
    with model.engine() as engine:
        turn = [*system, *first, *OPENING]
        evaluated, written = ask(engine, model, turn)
        assert evaluated == len(turn)
        new = [ENDS, *second, *OPENING]  # the answer comes back as it was written
        conversation = [*turn, *written, *new]
        evaluated, _ = ask(engine, model, conversation)
        assert evaluated == len(new) + 1  # the token that it wrote last was not read
        other = [*turn, 9, 9, *new]  # or otherwise
        evaluated, _ = ask(engine, model, other)
        assert evaluated == 8 + 2 + len(new)
        edited = [*turn, *written, ENDS, *message(300, 70), *OPENING]  # the last message
        evaluated, _ = ask(engine, model, edited)
        assert evaluated == 1 + 1 + 70 + 3
        branch = [*system, *message(310, 60), *OPENING]  # from an earlier message
        evaluated, _ = ask(engine, model, branch)
        assert evaluated == 60 + 3
        stranger = [*system, *message(250, 99), *OPENING]  # a shared system prompt
        evaluated, _ = ask(engine, model, stranger)
        assert evaluated == 99 + 3
    assert model.store.nbytes == 0


def test_texts_that_come_together_read_what_they_share_once(model: mmrt.Model) -> None:
    system = message(0, 200)
    prompts = [[*system, *message(200 + 30 * i, 30), *OPENING] for i in range(4)]
    with model.engine() as engine:
        handles = [engine.submit(prompt, **OPTIONS) for prompt in prompts]
        texts = [handle.text() for handle in handles]
        written = sum(handle.tokens - 1 for handle in handles)
        assert engine.evaluated_tokens - written == 200 + 4 * (30 + 3)
        seen = engine.snapshot()
        assert all(200 in text.checkpoints for text in seen.texts)
        assert all(text.doing is None for text in seen.texts)
    assert texts == [model.generate(prompt, **OPTIONS) for prompt in prompts]


def test_conversations_edit_and_undo(path: Path) -> None:
    said = ["What is a page fault, and what does it cost us? " * 2, "Why is that so? " * 6, "Fine."]
    with (
        mmrt.Model(path, exact=True) as model,
        mmrt.Model(path, exact=True) as fresh,
        model.conversation(system="You are brief, and speak of memory alone. " * 2) as chat,
    ):
        for text in said[:2]:
            chat.say(text, **OPTIONS)
        chat.undo()
        answer = chat.say(said[2], **OPTIONS)
        assert answer == fresh.chat(chat.messages[:-1], **OPTIONS)
        assert answer.cached_tokens >= answer.prompt_tokens - 100


def test_chats_go_on_after_others_and_edit(path: Path) -> None:
    """Model.chat() keeps what conversations have left: a branch reads its own messages alone."""
    system = {"role": "system", "content": "You are brief, and speak of memory alone. " * 2}
    with mmrt.Model(path, exact=True) as model, mmrt.Model(path, exact=True) as fresh:
        for said in ("What is a page?", "What is a fault, and what is a page fault, then?"):
            messages = [system, {"role": "user", "content": said}]
            text = model.chat(messages, **OPTIONS)
            assert text == fresh.generate(model.chat_tokens(messages), **OPTIONS)
        own = len(model.tokenize(said, add_bos=False))
        assert text.prompt_tokens - text.cached_tokens <= own + 50


# ---- memory ----


def test_memory_is_given_back_checkpoint_by_checkpoint(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    tree, store = Prefixes(model.store), model.store
    tree.release(tree.follow(read(model, IDS[:490], 20, 40, 70, 300)))
    for _ in range(40):
        if not len(tree):
            break
        length = tree.shared(IDS)
        assert tree.give_back(1) > 0
        assert tree.shared(IDS) <= length
        cache = tree.take(IDS[:110])
        found = after(model, cache, IDS[cache.length : 120])
        assert np.array_equal(found, expected[120 - len(found) :])
        del cache
    assert len(tree) == 0 and store.nbytes == 0


def test_checkpoints_go_before_a_text_is_parked(path: Path) -> None:
    prompt = [*message(0, 100), *message(100, 100), *message(200, 100), *OPENING]
    with mmrt.Model(path, exact=True) as model:
        alone = model.generate(prompt, **OPTIONS)
        least = read(model, [*prompt, *IDS[:9]]).nbytes
        with model.engine(kv=least) as engine:
            handle = engine.submit(prompt, **OPTIONS)
            assert handle.text() == alone and not handle.parked


def test_a_text_that_has_ended_keeps_one_state_and_its_checkpoints(path: Path) -> None:
    for draft in ("off", "ngram"):
        with mmrt.Model(path, exact=True, draft=draft) as model, model.engine() as engine:
            engine.submit([*message(0, 100), *OPENING], **OPTIONS).text()
            (kept,) = engine.prefixes.ended()
            cache, store = kept.cache, model.store
            states = 1 + sum(n < cache.length for n in cache.checkpoints)
            assert len(cache.checkpoints) > 0
            held = len(cache.pages()) * store.page_bytes + states * store.block_bytes
            assert store.nbytes == cache.nbytes == held


def test_texts_of_three_times_the_room_are_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[*message(20 * i, 150), *message(30 * i, 60 + i), *OPENING] for i in range(6)]
    with mmrt.Model(path, exact=True, threads=2) as model:
        expected = [model.generate(prompt, **OPTIONS) for prompt in prompts]
        room = sum(read(model, prompt).nbytes for prompt in prompts) // 3
        held = []

        def run(*step: Any) -> None:
            model.__class__.run(model, *step)
            held.append(model.store.nbytes)

        monkeypatch.setattr(model, "run", run)
        with model.engine(kv=room) as engine:
            handles = [engine.submit(prompt, **OPTIONS) for prompt in prompts]
            assert [handle.text() for handle in handles] == expected
        assert 0 < max(held) <= room
