"""Sequences: texts that grow, are cut back, and stay whole whatever goes wrong meanwhile."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import mmrt
from mmrt.core.state import PAGE_TOKENS
from mmrt.errors import ArgumentError, FormatError, InUseError, MmrtError
from mmrt.run.sequence import Sequence

IDS = np.random.default_rng(3).integers(0, 300, 600).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.gemma3(n_layers=6, window=40, context=700, separate_output=True)
    return model.write(tmp_path_factory.mktemp("sequence") / "model.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path) as model:
        yield model


def test_an_empty_sequence(model: mmrt.Model) -> None:
    sequence = model.sequence()
    assert (len(sequence), sequence.tokens, sequence.nbytes) == (0, [], 0)


def test_logits_of_the_last_token_or_of_all(model: mmrt.Model) -> None:
    with model.sequence() as sequence:
        last = sequence.extend(IDS[:3])
        assert last.shape == (300,) and last.dtype == np.float32
        every = sequence.extend(IDS[3:500], outputs="all")
        assert every.shape == (497, 300) and every.dtype == np.float32
        assert np.array_equal(every, model.logits(IDS[:500])[3:])
        assert len(np.unique(every, axis=0)) == 497


def test_ids_of_every_kind_are_taken(model: mmrt.Model) -> None:
    expected = model.logits(IDS[:9])
    kinds: list[Any] = [tuple(IDS[:9]), iter(IDS[:9]), np.array(IDS[:9]), np.array(IDS[:9], "u2")]
    for ids in kinds:
        assert np.array_equal(model.logits(ids), expected)


def test_memory_grows_by_pages_and_is_given_back(model: mmrt.Model) -> None:
    page = model.memory.kv_page
    assert page == PAGE_TOKENS * 6 * 2 * 2 * 16 * 2  # layers, heads, keys and values, f16
    first, second = model.sequence(), model.sequence()
    for n in (1, 31, 1, 64, 300):
        first.extend(IDS[:n])
        assert first.nbytes == -(-len(first) // PAGE_TOKENS) * page
    second.extend(IDS[:33])
    assert model.memory.kv == first.nbytes + second.nbytes == (13 + 2) * page
    first.truncate(32)
    assert (len(first), first.nbytes) == (32, page)
    second.close()
    assert (len(second), second.nbytes, second.tokens) == (0, 0, [])
    assert model.memory.kv == page
    del first
    assert model.memory.kv == 0


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 255, 299])
def test_a_text_that_was_cut_goes_on_as_if_it_had_never_been_longer(
    model: mmrt.Model, length: int
) -> None:
    other = IDS[300:350]
    with model.sequence() as sequence:
        sequence.extend(IDS[:300])
        sequence.truncate(length)
        assert sequence.tokens == IDS[:length]
        found = sequence.extend(other, outputs="all")
        assert sequence.tokens == IDS[:length] + other
    expected = model.logits(IDS[:length] + other)[length:]
    if length == 1:  # that row was computed alone; see measures.py
        np.testing.assert_allclose(found, expected, atol=1e-3)
    else:
        assert np.array_equal(found, expected)


# ---- forks ----


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 40, 256, 300])
def test_a_fork_and_its_parent_go_on_as_if_alone(path: Path, length: int, kv: str) -> None:
    ways = {"parent": IDS[300:350], "fork": IDS[350:390], "fork's fork": IDS[390:391]}
    with mmrt.Model(path, kv_k=kv, kv_v=kv) as model:

        def go_on(sequence: Sequence, ids: list[int]) -> list[np.ndarray]:
            return [sequence.extend(ids, outputs="all"), *(sequence.extend([i]) for i in (7, 8))]

        expected = []
        for ids in ways.values():
            with model.sequence() as alone:
                alone.extend(IDS[:length])
                expected.append(go_on(alone, ids))
        parent = model.sequence()
        parent.extend(IDS[:length])
        fork = parent.fork()
        sequences = [parent, fork, fork.fork()]
        for sequence, ids, right in zip(sequences, ways.values(), expected, strict=True):
            for found, expected_row in zip(go_on(sequence, ids), right, strict=True):
                assert np.array_equal(found, expected_row)
        for sequence, ids in zip(sequences, ways.values(), strict=True):
            assert sequence.tokens == [*IDS[:length], *ids, 7, 8]


def test_a_fork_takes_memory_as_it_is_written(model: mmrt.Model) -> None:
    page = model.memory.kv_page
    parent = model.sequence()
    parent.extend(IDS[:70])
    fork = parent.fork()
    assert model.memory.kv == parent.nbytes == fork.nbytes == 3 * page
    assert parent.shared_nbytes == fork.shared_nbytes == 3 * page
    fork.extend(IDS[70:72])  # copies the last page
    assert model.memory.kv == 4 * page
    assert (fork.nbytes, fork.shared_nbytes) == (3 * page, 2 * page)
    parent.extend(IDS[72:74])  # has it alone by now
    assert model.memory.kv == 4 * page
    parent.truncate(64)
    whole = parent.fork()
    whole.extend(IDS[:1])  # no page to copy
    assert model.memory.kv == (3 + 1 + 1 - 1) * page
    assert (whole.nbytes, whole.shared_nbytes) == (3 * page, 2 * page)
    parent.close()
    fork.close()
    assert model.memory.kv == whole.nbytes == 3 * page and whole.shared_nbytes == 0
    whole.close()
    assert model.memory.kv == 0


def test_what_is_cut_of_one_stays_in_the_other(model: mmrt.Model) -> None:
    expected = model.logits(IDS[:110])
    with model.sequence() as parent:
        parent.extend(IDS[:100])
        with parent.fork() as fork:
            assert parent.truncate(50) == 50
            parent.extend(IDS[300:310])  # over what the fork still has
            fork.truncate(90)
            found = fork.extend(IDS[90:110], outputs="all")
            np.testing.assert_allclose(found, expected[90:], atol=1e-3)
            fork.truncate(0)
            assert parent.tokens == IDS[:50] + IDS[300:310]
            right = model.logits(parent.tokens + IDS[310:330])
            found = parent.extend(IDS[310:330], outputs="all")
            np.testing.assert_allclose(found, right[60:], atol=1e-3)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_forks_are_closed_in_any_order(model: mmrt.Model, order: tuple[int, ...]) -> None:
    first = model.sequence()
    first.extend(IDS[:70])
    second = first.fork()
    second.extend(IDS[70:110])
    sequences = dict(enumerate([first, second, second.fork()]))
    for i in order:
        sequences.pop(i).close()
        for sequence in sequences.values():
            n = len(sequence)
            right = model.logits([*IDS[:n], *[5] * 8])[-1]
            np.testing.assert_allclose(sequence.extend([5] * 8), right, atol=1e-3)
            sequence.truncate(n)
    assert model.memory.kv == 0


def test_many_forks_leave_nothing(model: mmrt.Model) -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    with model.sequence() as prompt:
        prompt.extend(IDS[:40])
        held, mapped = model.memory.kv, mappings()
        for _ in range(5):
            forks = [prompt.fork() for _ in range(100)]
            for fork in forks:
                fork.extend([9])
            assert model.memory.kv == held + 100 * model.memory.kv_page
            del fork, forks
            assert model.memory.kv == held
        assert mappings() < mapped + 50
        assert prompt.shared_nbytes == 0


def test_a_fork_while_another_thread_reads(path: Path) -> None:
    """It is refused, or is what the sequence was between two steps."""
    with mmrt.Model(path, threads=1) as model, model.sequence() as sequence:
        expected = model.logits([*IDS[:250], *[5] * 8])[-1]
        refused = 0
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                sequence.extend(IDS[:250])
                sequence.truncate(0)

        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 60
        while refused < 20 and time.monotonic() < deadline:
            try:
                fork = sequence.fork()
            except InUseError as error:
                assert "running in another thread" in str(error)
                refused += 1
                continue
            assert fork.tokens == IDS[: len(fork)] and len(fork) in (0, 250)
            if len(fork):
                np.testing.assert_allclose(fork.extend([5] * 8), expected, atol=1e-3)
        stop.set()
        thread.join()
        assert refused == 20


def test_a_fork_of_a_closed_model(path: Path) -> None:
    with mmrt.Model(path) as model:
        sequence = model.sequence()
        sequence.extend(IDS[:10])
        fork = sequence.fork()
    with pytest.raises(ArgumentError, match="closed"):
        sequence.fork()
    fork.close()
    assert sequence.tokens == IDS[:10]


# ---- what is refused changes nothing ----


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "there are no tokens"),
        ([5, 300], "from 0 to 299, not 300"),
        ([5] * 300 + [-1], "from 0 to 299, not -1"),
        ([2**31], "from 0 to 299"),
        ([2**70], "from 0 to 299"),
        ([1.0], "not 1.0"),
        (["a"], "not 'a'"),
        ([None], "not None"),
        ([5] * 691, "701 tokens are more than the context of 700"),
    ],
)
def test_tokens_that_cannot_be_read(model: mmrt.Model, ids: list[Any], words: str) -> None:
    with model.sequence() as sequence:
        sequence.extend(IDS[:10])
        with pytest.raises(ArgumentError, match=words):
            sequence.extend(ids)
        assert sequence.tokens == IDS[:10] and len(sequence) == 10
        assert len(sequence.extend([5] * 690, outputs="all")) == 690


@pytest.mark.parametrize("length", [-1, 11, 2**70])
def test_lengths_that_cannot_be_cut_to(model: mmrt.Model, length: int) -> None:
    with model.sequence() as sequence:
        sequence.extend(IDS[:10])
        with pytest.raises(
            ArgumentError, match=f"length: {length} is not a whole number from 0 to 10"
        ):
            sequence.truncate(length)
        assert sequence.tokens == IDS[:10]


def test_a_step_that_fails_leaves_what_was_read_before(tmp_path: Path) -> None:
    spoilt = tiny_models.llama(n_vocab=300, context=700, separate_output=True)
    embedding = spoilt.tensors["token_embd.weight"].data.view("<f4")
    embedding[77] = np.nan
    with mmrt.Model(spoilt.write(tmp_path / "nan.gguf")) as model, model.sequence() as sequence:
        ids = [5] * 256 + [6] * 10 + [77]
        with pytest.raises(FormatError, match=r"nan\.gguf: tensor 'token_embd\.weight' holds NaN"):
            sequence.extend(ids)
        assert sequence.tokens == [5] * 256 and len(sequence) == 256
        found = sequence.extend([6] * 10, outputs="all")
        assert np.array_equal(found, model.logits([5] * 256 + [6] * 10)[256:])


def test_an_error_of_the_caller_comes_through(model: mmrt.Model) -> None:
    class Unforeseen(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done:
            raise Unforeseen

    with model.sequence() as sequence:
        with pytest.raises(Unforeseen):
            sequence.extend(IDS, progress=progress)
        assert sequence.tokens == IDS[:256] and len(sequence) == 256


def test_one_thread_at_a_time(path: Path) -> None:
    """Either a step of ours runs, or it is refused: never two at once."""
    with mmrt.Model(path, threads=1) as model, model.sequence() as sequence:
        refused = 0
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    sequence.extend(IDS[:250])
                    sequence.truncate(0)
                except MmrtError:  # as the other thread is inside
                    pass

        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 60
        while refused < 20 and time.monotonic() < deadline:
            try:
                sequence.truncate(0)
            except InUseError as error:
                assert "running in another thread" in str(error)
                refused += 1
            assert len(sequence) == len(sequence.tokens)
        stop.set()
        thread.join()
        assert refused == 20
        sequence.truncate(0)
        assert np.array_equal(sequence.extend(IDS[:9], outputs="all"), model.logits(IDS[:9]))


# ---- interruptions ----


@pytest.mark.slow
def test_tokens_and_keys_stay_in_step_through_interruptions(model: mmrt.Model) -> None:
    """A signal may come at any moment: in a step, and between steps."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    in_prompt = in_answer = 0
    try:
        for i in range(300):
            sequence = model.sequence()
            n_prompt = 0
            try:
                # Again after 5 s, lest one is lost in a callback, where Python cannot raise it.
                signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + i % 40), 5)
                sequence.extend(IDS[:500])
                n_prompt = 500
                while True:
                    sequence.truncate(500)
                    for token in IDS[500:600]:
                        sequence.extend([token])
            except KeyboardInterrupt:
                in_prompt += n_prompt == 0
                in_answer += n_prompt > 0
            assert sequence.tokens == IDS[: len(sequence)]
            assert n_prompt or len(sequence) in (0, 256, 500)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert in_prompt + in_answer == 300
    assert np.array_equal(model.logits(IDS[:9]), model.logits(IDS[:9]))


# ---- one writer at a time ----


def test_its_tokens_are_a_copy(model: mmrt.Model) -> None:
    with model.sequence() as sequence:
        sequence.extend(IDS[:5])
        sequence.tokens.clear()
        assert sequence.tokens == IDS[:5] and len(sequence) == 5


def test_a_stream_has_it_alone(model: mmrt.Model) -> None:
    with model.sequence() as sequence:
        stream = model.stream(IDS[:4], sequence=sequence, max_tokens=20)
        next(stream)
        calls: list[Callable[[], Any]] = [
            lambda: model.stream([9], sequence=sequence),
            lambda: model.generate([9], sequence=sequence),
            lambda: sequence.extend([9]), lambda: sequence.truncate(0),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(InUseError, match="in use by a stream that has not ended"):
                call()
        assert sequence.tokens == IDS[:4]
        said = [piece.token for piece in stream]
        alone = [piece.token for piece in model.stream(IDS[:4], max_tokens=20)]
        assert said == alone[1:]  # as if nobody had tried


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("how", ["exhausted", "last piece", "closed", "dropped", "failed"])
def test_a_stream_that_is_over_gives_it_back(model: mmrt.Model, how: str, started: bool) -> None:
    def fail(done: int, total: int) -> None:
        if how == "failed":
            raise InterruptedError

    with model.sequence() as sequence:
        stream: Any
        stream = model.stream(IDS[:4], sequence=sequence, max_tokens=3, on_prefill=fail)
        if started and how != "failed":
            next(stream)
        if how == "failed":
            with pytest.raises(InterruptedError):
                next(stream)
        elif how == "closed":
            stream.close()
        elif how == "dropped":
            stream = None
        elif how == "exhausted":
            assert list(stream)
        else:
            while not next(stream).finish:
                pass
        n = len(sequence)
        sequence.extend([7])
        assert sequence.tokens[n:] == [7]


def test_closing_it_ends_the_stream(model: mmrt.Model) -> None:
    with model.sequence() as sequence:
        stream = model.stream(IDS[:4], sequence=sequence)
        next(stream)
    assert list(stream) == [] and len(sequence) == 0
    sequence.extend(IDS)


def test_one_of_many_threads_gets_it(model: mmrt.Model) -> None:
    barrier = threading.Barrier(4)

    def say(_: int) -> str:
        barrier.wait()
        try:
            return model.generate(IDS[:3], sequence=sequence, max_tokens=40)
        except InUseError:
            return "refused"

    with model.sequence() as sequence, ThreadPoolExecutor(4) as pool:
        alone = model.generate(IDS[:3], max_tokens=40)
        said = list(pool.map(say, range(4)))
    assert alone in said and "refused" in said


def test_a_stream_is_not_read_from_within(model: mmrt.Model) -> None:
    refused: list[int] = []

    def look(done: int, total: int) -> None:
        for call in (lambda: next(stream), stream.close):
            with pytest.raises(InUseError, match="at work already"):
                call()
        refused.append(done)

    stream = model.stream(IDS[:4], max_tokens=2, on_prefill=look)
    assert len(list(stream)) == 3 and refused == [0, 4]
