"""Children that are forked while other threads are in the middle of things."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from children import SECONDS, status_in_child, status_of
from machine import needs_reader

import mmrt
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.core.streaming import READERS
from mmrt.errors import UnsupportedError
from mmrt.run.sequence import Sequence

IDS = [3 + 7 * i % 200 for i in range(1500)]
pytestmark = pytest.mark.usefixtures("forking_is_meant")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"n_layers": 8, "n_embd": 256, "n_ff": 512, "head_dim": 64, "n_heads": 4}
    model = tiny_models.llama(type="Q8_0", n_vocab=4000, context=2048, **shape)
    return model.write(tmp_path_factory.mktemp("forks") / "m.gguf")


def fork_often(n: int, work: Callable[[], object]) -> None:
    """Forks at moments that have nothing to do with what other threads are at."""
    moments = random.Random(1)
    ends: Counter[int] = Counter()
    for _ in range(n):
        time.sleep(moments.random() * 0.01)
        ends[status_in_child(work)] += 1
    assert ends == {0: n}


@contextmanager
def going_on(work: Callable[[], object]) -> Iterator[None]:
    """Another thread does `work` again and again."""
    stop, failures = threading.Event(), []

    def repeat() -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures


def stream_from(model: mmrt.Model, reader: str) -> None:
    """Has all that can be streamed streamed."""
    needs_reader(reader, Path(model.file.path))
    model.program.set_reader(reader)
    model.program.set_budget(model.program.plan(0).least)


def decode(sequence: Sequence) -> None:
    """One step, and back."""
    length = len(sequence)
    sequence.extend([5])
    sequence.truncate(length)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [None, *READERS])
@pytest.mark.parametrize("length", [40, 1500])
def test_a_child_of_a_fork_amid_a_step_computes_the_same(
    path: Path, length: int, reader: str | None
) -> None:
    with mmrt.Model(path, threads=2) as model:
        if reader:
            stream_from(model, reader)
        busy, mine = model.sequence(), model.sequence()
        busy.extend(IDS[:length])
        mine.extend(IDS[:length])
        expected = [mine.extend([token]) for token in (5, 6)]
        mine.truncate(length)

        def work() -> None:
            for token, right in zip((5, 6), expected, strict=True):
                assert np.array_equal(mine.extend([token]), right)

        with going_on(lambda: decode(busy)):
            fork_often(60 if reader is None else 25, work)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [None, *READERS])
def test_a_signal_handler_that_forks_amid_a_step(path: Path, reader: str | None) -> None:
    """Its child comes back from the handler into the step, without the step's other threads."""
    parent, forked = os.getpid(), []
    with mmrt.Model(path, threads=2) as model:
        if reader:
            stream_from(model, reader)
        ids = np.array(IDS[:1000], np.int32)
        logits = np.zeros((1, model.vocab_size), np.float32)
        expected = model.logits(IDS[:1000])[-1]
        model.program.run([Part(Cache(model.program.store), ids, 1)], logits)  # in one step
        right = logits.copy()
        np.testing.assert_allclose(right[0], expected, atol=1e-3 * np.abs(expected).max())
        started = time.monotonic()
        model.program.run([Part(Cache(model.program.store), ids, 1)], logits)
        seconds = time.monotonic() - started

        def handle(*_: object) -> None:
            forked.append(os.fork())

        before = signal.signal(signal.SIGALRM, handle)
        amid = 0
        try:
            for attempt in range(100):  # steps are not equally long: some signals come too late
                cache = Cache(model.program.store)
                signal.setitimer(signal.ITIMER_REAL, seconds * (1 + attempt % 8) / 10)
                try:
                    model.program.run([Part(cache, ids, 1)], logits)
                    outcome = "whole"
                except UnsupportedError as error:
                    assert "goes on in the parent" in str(error) and cache.length == 0
                    outcome = "left"
                if os.getpid() != parent:
                    model.program.run([Part(Cache(model.program.store), ids, 1)], logits)
                    os._exit(0 if outcome == "left" and np.array_equal(logits, right) else 1)
                assert outcome == "whole" and np.array_equal(logits, right)
                while not forked:
                    time.sleep(0.001)
                amid += status_of(forked.pop()) == 0
                if amid == 3:
                    break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if os.getpid() != parent:
                os._exit(1)
        assert amid == 3


@pytest.mark.slow
def test_a_child_of_a_fork_amid_a_step_closes_the_model(path: Path) -> None:
    """Steps and other calls that go on in the parent do not count in the child."""
    model = mmrt.Model(path, threads=2)
    matrix = model.file["token_embd.weight"]
    x = np.ones(matrix.shape[1], np.float32)
    busy, mine = model.sequence(), model.sequence()
    busy.extend(IDS[:40])
    expected, product = mine.extend(IDS[:3]), matrix @ x

    def work() -> None:
        assert len(busy) == len(busy.tokens) in (40, 41)
        del busy.tokens[:0]
        busy.truncate(0)
        assert np.array_equal(busy.extend(IDS[:3]), expected)
        assert np.array_equal(matrix @ x, product)
        model.close()

    def call() -> None:
        matrix @ x
        matrix.dequantize()
        matrix.residency()

    with going_on(lambda: decode(busy)), going_on(call):
        fork_often(60, work)
    model.close()


@pytest.mark.slow
def test_a_child_of_a_fork_amid_forks_of_a_sequence(path: Path) -> None:
    """What sequences hold together is whole in a child, whichever of them was changing."""
    with mmrt.Model(path, threads=2) as model:
        prompt = model.sequence()
        prompt.extend(IDS[:40])

        def branch() -> None:
            with prompt.fork() as text, text.fork() as other:
                text.extend([5])
                other.extend([6])

        def work() -> None:
            with prompt.fork() as text:
                assert np.array_equal(text.extend([5]), expected)
            assert np.array_equal(prompt.extend([5]), expected)
            prompt.close()

        with prompt.fork() as text:
            expected = text.extend([5])
        with going_on(branch):
            fork_often(60, work)


def test_a_child_of_a_fork_amid_tokenizing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays locked, also where the tokenizer was being made ready."""
    with mmrt.Model(path, threads=2) as model:
        expected = model.tokenize("hello, hello")

        def work() -> None:
            assert model.tokenize("hello, hello") == expected

        with going_on(lambda: model.tokenize("hello there " * 40)):
            fork_often(20, work)
    with mmrt.Model(path, threads=2) as model:
        tokenizer, inside, leave = model.tokenizer, threading.Event(), threading.Event()
        find = tokenizer._find_specials

        def slowly() -> list[tuple[str, int]]:
            inside.set()
            assert threading.current_thread() is not slow or leave.wait(SECONDS)
            return find()

        monkeypatch.setattr(tokenizer, "_find_specials", slowly)
        slow = threading.Thread(target=model.tokenize, args=("hello, hello",))
        slow.start()
        assert inside.wait(SECONDS)
        end = status_in_child(work)
        leave.set()
        slow.join()
        assert end == 0


def test_a_child_of_a_fork_amid_a_step_in_a_budget(path: Path) -> None:
    """Who holds the budget's lock, and whose step counts in it, is in the parent."""
    with mmrt.Model(path, threads=2, memory="2GiB") as model:
        budget, busy, mine = model.budget, model.sequence(), model.sequence()
        expected = mine.extend(IDS[:40])
        mine.truncate(0)
        inside, leave = threading.Event(), threading.Event()

        def run() -> None:
            share = model._share
            assert share
            with budget.step(share, [Part(busy._cache, np.zeros(256, np.int32))]), budget._changes:
                inside.set()
                leave.wait(SECONDS)

        def work() -> None:
            assert np.array_equal(mine.extend(IDS[:40]), expected)
            assert not budget._running
            model.close()

        thread = threading.Thread(target=run)
        thread.start()
        assert inside.wait(SECONDS)
        end = status_in_child(work)
        leave.set()
        thread.join()
        assert end == 0
