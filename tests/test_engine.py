"""The engine: texts are those that would be written alone, and share what they can."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from children import in_child

import mmrt
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


def test_many_answers_to_one_prompt_share_it(model: mmrt.Model) -> None:
    with model.engine() as engine:
        handles = [
            engine.submit(IDS[:640], max_tokens=32, temperature=1.0, seed=i, ignore_eos=True)
            for i in range(8)
        ]
        texts = {str(handle.text()) for handle in handles}
        assert len(texts) == 8
        pages = model.store.nbytes / model.store.page_bytes
        assert pages <= 1.1 * (20 + 8 * 2)


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
        assert quick.report.ended is not None
        ends = [handle._ended for handle in slow]
        assert all(end is not None and end > (quick._ended or 0) for end in ends)


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
