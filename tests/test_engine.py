"""The engine: texts are those that would be written alone, and share what they can."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as List
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from children import in_child
from test_channels import WORDS, thinker
from test_chat import CHATML
from test_toolcalls import SAID, TOOLS, caller, functions

import mmrt
from mmrt.core.program import Part
from mmrt.errors import (
    ArgumentError,
    FormatError,
    InUseError,
    OutOfMemoryError,
    UnsupportedError,
)
from mmrt.run.cost import StepCost
from mmrt.run.engine import Engine
from mmrt.run.generation import Options
from mmrt.run.saved import Saved
from mmrt.run.worth import Worth

IDS = [3 + 7 * i % 250 for i in range(900)]
PROMPTS = [IDS[:n] for n in (1, 40, 33, 300, 64)] + [[9, *IDS[:100]], [9, *IDS[:99], 4, 4]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(type="Q8_0", context=2048)
    return model.write(tmp_path_factory.mktemp("engine") / "m.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path, exact=True, threads=2) as opened:
        yield opened
        assert opened.program.store.nbytes == 0, "keys and values were left behind"


def test_texts_are_those_written_alone(model: mmrt.Model) -> None:
    greedy: Options = {"max_tokens": 12}
    drawn: list[Options] = [
        {"max_tokens": 12, "temperature": 1.0, "top_k": 20, "seed": i} for i in range(len(PROMPTS))
    ]
    expected = [str(model.generate(ids, **greedy)) for ids in PROMPTS]
    expected_drawn = [str(model.generate(i, **o)) for i, o in zip(PROMPTS, drawn, strict=True)]
    with model.engine() as engine:
        for _ in range(2):  # cold, and again with all in memory
            handles = [engine.submit(ids, **greedy) for ids in PROMPTS]
            others = [engine.submit(i, **o) for i, o in zip(PROMPTS, drawn, strict=True)]
            assert [str(handle.text()) for handle in handles] == expected
            assert [str(handle.text()) for handle in others] == expected_drawn
        for handle, ids in zip(handles, PROMPTS, strict=True):
            assert handle.report.prompt_tokens == len(ids)
            assert handle.report.cached_tokens >= len(ids) - 8
            assert handle.report.tokens == handle.tokens
        assert handles[0].text().finish is not None


def test_a_turn_evaluates_what_is_new(model: mmrt.Model) -> None:
    ids = IDS[:200]
    with model.engine() as engine:
        for _ in range(4):
            before = engine.evaluated_tokens
            handle = engine.submit(ids, max_tokens=10, ignore_eos=True)
            written = [piece.token for piece in handle if piece.token is not None]
            new = engine.evaluated_tokens - before
            assert new <= (200 if ids == IDS[:200] else 20 + 32) + 10
            ids = [*ids, *written, *IDS[300:320]]


def test_branches_at_once_read_what_they_share_once(model: mmrt.Model) -> None:
    prefix = IDS[:640]
    with model.engine() as engine:
        handles = [engine.submit([*prefix, i, 5, 6], max_tokens=8) for i in range(4)]
        for handle in handles:
            handle.text()
        assert engine.evaluated_tokens <= 1.05 * 640 + 4 * (3 + 8 + 8)
        pages = model.store.nbytes / model.store.page_bytes
        assert pages <= 20 + 4 * 2
        assert sum(handle.cached_tokens for handle in handles) >= 3 * 630


def at_once(engine: Engine, prompts: list[list[int]], **options: Any) -> list[mmrt.Handle]:
    """Submits these while the engine is held up, so that it sees them together; text i has seed
    i."""
    gate = threading.Event()
    holds = engine.submit([1], max_tokens=0, on_prefill=lambda *_: gate.wait(20))
    handles = [engine.submit(ids, seed=i, **options) for i, ids in enumerate(prompts)]
    gate.set()
    holds.text()
    return handles


@pytest.mark.parametrize("length", [5, 40, 641, 670])
def test_many_answers_to_one_prompt_read_it_once(model: mmrt.Model, length: int) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 2.0, "ignore_eos": True}
    expected = [str(model.generate(IDS[:length], seed=i, **options)) for i in range(8)]
    assert len(set(expected)) == 8
    with model.engine() as engine:
        handles = at_once(engine, [IDS[:length]] * 8, **options)
        assert [str(handle.text()) for handle in handles] == expected
        own = (length + 39 + 31) // 32 - length // 32
        pages = model.store.nbytes // model.store.page_bytes
        assert pages == length // 32 + 8 * own + 1  # that of the text that held the engine up
        assert engine.evaluated_tokens == 1 + length + 8 * 39
        assert [handle.cached_tokens for handle in handles] == [0] + 7 * [length]


def test_many_answers_to_one_prompt_share_its_pages(model: mmrt.Model) -> None:
    with model.engine() as engine:
        prompt = IDS * 2
        handles = at_once(engine, [prompt[:1507]] * 8, max_tokens=140, ignore_eos=True)
        assert sum(handle.text().tokens for handle in handles) == 8 * 140
        tokens = model.store.nbytes / model.store.page_bytes * 32
        assert tokens <= 1.1 * (1507 + 8 * 140)


def test_who_comes_while_a_prompt_is_read_need_not_read_it(model: mmrt.Model) -> None:
    """Also if it is read in one step."""
    run, handles = model.run_step, list[mmrt.Handle]()

    def slow(parts: Any, logits: Any = None) -> None:
        run(parts, logits)
        if len(handles) == 1:
            handles.append(engine.submit(IDS[:100], max_tokens=3, ignore_eos=True))
            handles.append(engine.submit(IDS[:90], max_tokens=3, ignore_eos=True))

    model.run_step = slow
    with model.engine() as engine:
        handles.append(engine.submit(IDS[:100], max_tokens=3, ignore_eos=True))
        for handle in handles:  # the others have come by then
            assert handle.text().tokens == 3
    assert [handle.cached_tokens for handle in handles] == [0, 100, 82]


def test_answers_to_one_prompt_in_little_memory(model: mmrt.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 100, "temperature": 2.0, "ignore_eos": True}
    expected = [str(model.generate(IDS[:200], seed=i, **options)) for i in range(6)]
    most = 0
    with model.engine(kv=16 * model.store.page_bytes) as engine:
        handles = at_once(engine, [IDS[:200]] * 6, **options)
        for handle, right in zip(handles, expected, strict=True):
            written = []
            for piece in handle:
                most = max(most, model.store.nbytes)
                written.append(piece.text)
            assert "".join(written) == right
    assert most <= 16 * model.store.page_bytes


def test_answers_go_on_without_the_one_that_read(model: mmrt.Model) -> None:
    expected = [str(model.generate(IDS[:640], max_tokens=5)) for _ in range(3)]
    with model.engine(max_gap=1e-9) as engine:
        handles: list[mmrt.Handle] = []

        def leave(done: int, total: int) -> None:
            handles[0].cancel()

        gate = threading.Event()
        engine.submit([1], max_tokens=0, on_prefill=lambda *_: gate.wait(20))
        handles.append(engine.submit(IDS[:640], on_prefill=leave))
        handles += [engine.submit(IDS[:640], max_tokens=5) for _ in range(3)]
        other = engine.submit(IDS[:640], max_tokens=5, salt="other")
        gate.set()
        assert [str(handle.text()) for handle in handles[1:]] == expected
        assert handles[0].finish is None
        assert str(other.text()) == expected[0] and other.cached_tokens == 0


def test_salts_share_nothing(model: mmrt.Model) -> None:
    with model.engine() as engine:
        engine.submit(IDS[:100], max_tokens=1, salt="a").text()
        other = engine.submit(IDS[:100], max_tokens=1, salt="b")
        other.text()
        assert other.cached_tokens == 0


def test_texts_of_three_times_the_room_all_end_as_alone(model: mmrt.Model) -> None:
    prompts = [[i, *IDS[: 200 + 10 * i]] for i in range(12)]
    expected = [str(model.generate(ids, max_tokens=70, ignore_eos=True)) for ids in prompts]
    room = sum(len(ids) + 70 for ids in prompts) // 32 * model.store.page_bytes // 3
    most = 0
    with model.engine(kv=room) as engine:
        handles = [engine.submit(ids, max_tokens=70, ignore_eos=True) for ids in prompts]
        texts = []
        for handle in handles:
            for _ in handle:
                most = max(most, model.store.nbytes)
        for ids in prompts:  # kept, or read again
            texts.append(str(engine.submit(ids, max_tokens=70, ignore_eos=True).text()))
    assert texts == expected
    assert [handle.tokens for handle in handles] == [70] * 12
    assert most <= room


def test_what_was_parked_goes_on_as_if_it_had_not(model: mmrt.Model) -> None:
    """Two that fit at first, and no longer as they grow."""
    expected = [str(model.generate([i, 5], max_tokens=300, ignore_eos=True)) for i in (1, 2)]
    with model.engine(kv=14 * model.store.page_bytes) as engine:
        handles = [engine.submit([i, 5], max_tokens=300, ignore_eos=True) for i in (1, 2)]
        assert [str(handle.text()) for handle in handles] == expected
        assert sum(handle.report.parked for handle in handles) >= 1


class Decided(Worth):
    """What is worth it is settled."""

    def __init__(self, saves: bool) -> None:
        super().__init__()
        self.saves = saves

    def saving(self, n_bytes: int, seconds: float, chance: float) -> bool:
        return self.saves

    def loading(self, n_bytes: int, seconds: float | None) -> bool:
        return self.saves


@pytest.mark.parametrize("saves", [True, False])
def test_parked_texts_are_saved_or_read_again(
    model: mmrt.Model, saves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that all fit at first, and no longer as they grow; saved ones are never read again."""
    monkeypatch.setattr("mmrt.run.saved.Worth", lambda: Decided(saves))
    prompts = [[i, *IDS[:40]] for i in range(3)]
    expected = [str(model.generate(ids, max_tokens=200, ignore_eos=True)) for ids in prompts]
    with model.engine(kv=17 * model.store.page_bytes, keep=0) as engine:
        handles = [engine.submit(ids, max_tokens=200, ignore_eos=True) for ids in prompts]
        assert [str(handle.text()) for handle in handles] == expected
        parked = sum(handle.report.parked for handle in handles)
        needed = sum(len(ids) + 199 for ids in prompts)
        assert parked > 0 and engine.evaluated_tokens >= needed
        # Of a saved one, what is less than a page may be read again.
        assert (engine.evaluated_tokens < needed + 32 * parked) == saves
    assert model.store.nbytes == model.store.mapped_nbytes == 0


def test_a_budget_waits_for_memory_that_is_being_saved(
    model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `kv` it is the steps that have no room, while texts hold theirs until it is written:
    so all others give theirs up before any has come free."""
    monkeypatch.setattr("mmrt.run.saved.Worth", lambda: Decided(True))
    prompts = [[i, *IDS[:40]] for i in range(4)]
    expected = [str(model.generate(ids, max_tokens=100, ignore_eos=True)) for ids in prompts]
    run, save, most = model.run_step, Saved.save, 12 * model.store.page_bytes

    def bounded(parts: List[Part], logits: Any = None) -> None:
        grows = sum(part.cache.growth(part.cache.length + len(part.tokens)) for part in parts)
        if model.store.nbytes + grows > most:
            raise OutOfMemoryError("the budget is too small")
        run(parts, logits)

    def slowly(*given: Any) -> None:
        time.sleep(0.1)
        save(*given)

    monkeypatch.setattr(Saved, "save", slowly)
    model.run_step = bounded
    with model.engine(keep=0) as engine:
        handles = [engine.submit(ids, max_tokens=100, ignore_eos=True) for ids in prompts]
        assert [str(handle.text()) for handle in handles] == expected
        assert sum(handle.parked for handle in handles) > 0
    model.run_step = run


def test_texts_that_are_saved_or_loaded_may_be_cancelled(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrt.run.saved.Worth", lambda: Decided(True))
    with mmrt.Model(path, exact=True, kv_dir=tmp_path) as model:
        for _ in range(2):
            with model.engine(kv=20 * model.store.page_bytes, keep=0) as engine:
                handles = [
                    engine.submit([i, *IDS[:500]], max_tokens=None, ignore_eos=True)
                    for i in range(5)
                ]
                next(handles[0])
                for handle in handles:
                    handle.cancel()
                assert engine.submit([9, *IDS[:500]], max_tokens=3).text().tokens == 3
        assert model.saved is not None
        model.saved.close()
        assert model.store.nbytes == model.store.mapped_nbytes == 0


def test_a_text_that_has_no_room_even_alone_is_refused(model: mmrt.Model) -> None:
    with model.engine(kv=4 * model.store.page_bytes) as engine:
        fits = engine.submit(IDS[:50], max_tokens=2)
        with pytest.raises(OutOfMemoryError, match="a text of 300 tokens has no room in kv="):
            engine.submit(IDS[:300], max_tokens=2).text()
        assert fits.text().tokens == 2


def test_cancelling_gives_memory_back(model: mmrt.Model) -> None:
    with model.engine(keep=0) as engine:
        handle = engine.submit(IDS[:300], max_tokens=None, ignore_eos=True)
        next(handle)
        waiting = engine.submit([*IDS[:200], 1], max_tokens=None, ignore_eos=True)
        waiting.cancel()
        handle.cancel()
        handle.cancel()
        list(handle)
        list(waiting)
        assert handle.finish is None and handle.text() == ""
        assert engine.submit([5], max_tokens=3, ignore_eos=True).text().tokens == 3


def test_priority_comes_first(model: mmrt.Model) -> None:
    """What was submitted last, but of a better class, is written before the others."""
    with model.engine(max_gap=1e-9) as engine:  # one text a step
        gate = threading.Event()
        blocked = engine.submit(IDS[:40], max_tokens=2, on_prefill=lambda *_: gate.wait(20))
        slow = [engine.submit([i, *IDS[:64]], max_tokens=6, priority=1) for i in range(3)]
        quick = engine.submit([77, *IDS[:64]], max_tokens=6, priority=0)
        gate.set()
        for handle in (blocked, quick, *slow):
            handle.text()
        ends = [handle._ended or 0.0 for handle in slow]
        assert quick._ended is not None and min(ends) > quick._ended


def test_a_better_class_overtakes_those_that_write(model: mmrt.Model) -> None:
    """Nothing is written while the prompt is read, which takes all time of each step."""
    with model.engine(max_gap=1e-9) as engine:
        slow = [
            engine.submit(IDS[i : i + 20], max_tokens=None, ignore_eos=True, priority=1)
            for i in range(3)
        ]
        for handle in slow:
            next(handle)
        written: list[int] = []

        def count(done: int, total: int) -> None:
            written.append(sum(handle.tokens for handle in slow))

        quick = engine.submit([77, *IDS[:64]], max_tokens=3, priority=0, on_prefill=count)
        assert quick.text().tokens == 3
        assert len(written) > 8 and written[-1] == written[0]
        for handle in slow:
            handle.cancel()


@pytest.mark.parametrize("ids", [[True], [-1], [1 << 40], [1.5], ["a"], [IDS[0], None]])
def test_what_is_no_token_harms_no_other(model: mmrt.Model, ids: list[Any]) -> None:
    with model.engine() as engine:
        good = engine.submit(IDS[:40], max_tokens=5)
        with pytest.raises(ArgumentError, match="token ids must be whole numbers from 0 to"):
            engine.submit(ids)
        assert good.text().tokens == 5
    with pytest.raises(ArgumentError, match="token ids must be"):
        model.generate_all([IDS[:3], ids])


def test_errors_end_their_own_text(model: mmrt.Model) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("from the caller")

    with model.engine(waiting=3) as engine:
        good = engine.submit(IDS[:40], max_tokens=5)
        bad = engine.submit(IDS[:50], max_tokens=5, on_prefill=fail)
        with pytest.raises(RuntimeError, match="from the caller"):
            bad.text()
        assert good.text().tokens == 5
        with pytest.raises(ArgumentError, match="empty"):
            engine.submit([])
        with pytest.raises(ArgumentError, match="more than the context"):
            engine.submit([1] * 3000)
        with pytest.raises(ArgumentError, match="max_tokens"):
            engine.submit([1], max_tokens=-1)
        with pytest.raises(ArgumentError, match="priority"):
            engine.submit([1], priority=0.5)  # type: ignore[arg-type]
        gate = threading.Event()
        held = [engine.submit([1], on_prefill=lambda *_: gate.wait(20)) for _ in range(3)]
        with pytest.raises(InUseError, match="3 texts are under way already"):
            engine.submit([1])
        gate.set()
        for handle in held:
            handle.text()
    with pytest.raises(ArgumentError, match="the engine is closed"):
        engine.submit([1])


def test_closing_ends_all(model: mmrt.Model) -> None:
    engine = model.engine()
    handles = [engine.submit(IDS[:100], max_tokens=None, ignore_eos=True) for _ in range(3)]
    next(handles[0])
    engine.close()
    engine.close()
    for handle in handles:
        with pytest.raises(ArgumentError, match="the engine was closed"):
            list(handle)


def test_a_fault_in_a_step_ends_its_texts_and_not_the_engine(
    model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.engine() as engine:
        run = model.run_step

        def broken(parts: object, logits: object = None) -> None:
            raise FormatError("NaN somewhere")

        model.run_step = broken
        with pytest.raises(FormatError, match="NaN somewhere"):
            engine.submit(IDS[:40], max_tokens=2).text()
        model.run_step = run
        assert engine.submit(IDS[:40], max_tokens=2).text().tokens == 2


def test_an_engine_that_is_dropped_ends(path: Path) -> None:
    with mmrt.Model(path) as model:
        engine = model.engine()
        assert engine.submit([5], max_tokens=2).text().tokens == 2
        thread, gone = engine._thread, weakref.ref(engine)
        assert thread is not None
        del engine
        thread.join(10)
        gc.collect()
        assert not thread.is_alive() and gone() is None


def test_a_forked_child_makes_an_engine_of_its_own(model: mmrt.Model) -> None:
    expected = str(model.generate(IDS[:40], max_tokens=6))

    def child() -> None:
        for act in (lambda: next(handle), lambda: engine.submit([1]), handle.cancel):
            with pytest.raises(UnsupportedError, match="in the parent process"):
                act()
        engine.close()
        with model.engine() as own:
            assert own.submit(IDS[:40], max_tokens=6).text() == expected

    with model.engine() as engine:
        handle = engine.submit(IDS[:300], max_tokens=200, ignore_eos=True)
        next(handle)
        for _ in range(5):
            in_child(child)
        assert handle.text().finish == "length"


def test_coroutines_read_pieces(model: mmrt.Model) -> None:
    expected = [str(model.generate(ids, max_tokens=9)) for ids in PROMPTS[:3]]

    async def all_of_them(engine: Engine) -> list[str]:
        handles = [engine.submit(ids, max_tokens=9) for ids in PROMPTS[:3]]
        first = "".join([piece.text async for piece in handles[0]])
        rest = await asyncio.gather(*(handle.text_async() for handle in handles[1:]))
        return [first, *map(str, rest)]

    with model.engine() as engine:
        assert asyncio.run(all_of_them(engine)) == expected


def test_many_threads_submit(model: mmrt.Model) -> None:
    expected = {i: str(model.generate([i, *IDS[:40]], max_tokens=6)) for i in range(24)}
    found: dict[int, str] = {}
    with model.engine() as engine:

        def ask(i: int) -> None:
            time.sleep(0.001 * (i % 5))
            found[i] = str(engine.submit([i, *IDS[:40]], max_tokens=6).text())

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == expected


# ---- chats ----

ASK: list[dict[str, Any]] = [{"role": "user", "content": "a"}]


def test_a_chat_is_that_of_the_model(tmp_path: Path) -> None:
    with mmrt.Model(thinker(tmp_path, *WORDS)) as model, model.engine() as engine:
        handle = engine.submit_chat(ASK)
        pieces = list(model.stream_chat(ASK))
        assert list(handle) == pieces and "reasoning" in {piece.channel for piece in pieces}
        answer = engine.submit_chat(ASK).text()
        assert (answer, answer.reasoning, answer.finish) == ("Is 42", "So it", "stop")
        other = engine.submit_chat(ASK, chat_template_kwargs={"no": True}, max_tokens=2)
        assert other.prompt_tokens == len(model.chat_tokens(ASK, no=True)) > handle.prompt_tokens
        with pytest.raises(ArgumentError, match="messages"):
            engine.submit_chat(5)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="max_tokens"):
            engine.submit_chat(ASK, max_tokens=-1)


def test_a_chat_has_calls_of_tools(tmp_path: Path) -> None:
    template, says = SAID["mistral"]
    with mmrt.Model(caller(tmp_path, template, *says)) as model, model.engine() as engine:
        answer = engine.submit_chat(ASK, tools=TOOLS).text()
        assert answer == "Yes." and functions(answer.tool_calls) == [("f", {"a": 1})]
        assert engine.submit_chat(ASK).text().tool_calls == []


def test_turns_of_a_chat_evaluate_what_is_new(tmp_path: Path) -> None:
    tiny = tiny_models.llama(type="Q8_0", context=2048)
    tiny.metadata["tokenizer.chat_template"] = CHATML
    with mmrt.Model(tiny.write(tmp_path / "m.gguf")) as model, model.engine() as engine:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "one two three " * 60}]
        before = 0
        for turn in range(3):
            messages.append({"role": "user", "content": f"number {turn}"})
            answer = engine.submit_chat(messages, max_tokens=8, ignore_eos=True).text()
            assert answer == model.chat(messages, max_tokens=8, ignore_eos=True) or turn
            new = engine.evaluated_tokens - before
            before = engine.evaluated_tokens
            assert turn == 0 or new < 150 < answer.prompt_tokens
            messages.append({"role": "assistant", "content": answer})


def test_conversations_of_the_model_make_room(tmp_path: Path) -> None:
    """What they keep counts as keys and values of the model, which `kv` bounds."""
    path = tiny_models.speaker(b"Yes", context=1024).write(tmp_path / "m.gguf")
    with mmrt.Model(path, chat_template=CHATML) as model:
        model.chat([{"role": "user", "content": "Well? " * 60}])
        held = model.store.nbytes
        assert held > 5 * model.store.page_bytes
        with model.engine(kv=held) as engine:
            text = engine.submit("Now? " * 60, max_tokens=3, ignore_eos=True).text()
            assert text.tokens == 3 and model.store.nbytes <= held


# ---- what a step costs ----


def test_costs_are_learned_and_shared_out_whole() -> None:
    cost, draw = StepCost(), np.random.default_rng(1)

    def truth(parts: list[tuple[int, int]]) -> float:
        return 0.1 + sum(n * (2e-3 + 1e-6 * (before + (n + 1) / 2)) for n, before in parts)

    for _ in range(200):
        parts = [(int(n), int(draw.integers(4000))) for n in draw.integers(1, 100, 3)]
        cost.observe(parts, truth(parts) * draw.normal(1, 0.02))
    for parts in ([(1, 10)], [(64, 3000), (1, 5)], [(200, 0)]):
        assert cost.predict(parts) == pytest.approx(truth(parts), rel=0.05)
        shares = cost.shares(parts, 0.7)
        assert sum(shares) == pytest.approx(0.7) and min(shares) > 0
    assert cost.weights == pytest.approx(0.1, rel=0.1)
    n = cost.chunk([(1, 0)], 100, 500, 0.4)
    assert truth([(1, 0), (n, 100)]) == pytest.approx(0.4, rel=0.05)
    assert cost.chunk([], 0, 50, 0.0) == 0 and cost.chunk([], 0, 50, 9.0) == 50


@pytest.mark.parametrize("seed", range(10))
def test_costs_of_prompts_are_bounded_where_texts_only_write(seed: int) -> None:
    """Steps of one token tell nothing of longer ones; a prompt is soon read in large pieces."""
    cost, draw = StepCost(), np.random.default_rng(seed)

    def step(n: int, before: int) -> None:
        truth = 5e-3 + n * (2e-4 + 1e-7 * before)
        cost.observe([(n, before)], truth * draw.lognormal(0, 0.2))

    for i in range(500):
        step(1, i % 300)
    sizes, read = [], 0
    while read < 4000:
        sizes.append(max(cost.chunk([(1, 300)], read, 4000 - read, 0.25), 1))
        step(sizes[-1], read)
        read += sizes[-1]
    assert len(sizes) < 30
