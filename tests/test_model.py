"""Models as things that are opened, shared, forked, interrupted and closed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from command import HOME, STORY

import mmrt
from mmrt.errors import ArgumentError, FileError, InUseError

PROMPT = "abcab cacc"
IDS = np.random.default_rng(4).integers(0, 300, 64).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=3, type="Q8_0", context=4000, separate_output=True)
    return model.write(tmp_path_factory.mktemp("model") / "model.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path, threads=2) as model:
        yield model


# ---- opening and closing ----


def test_what_a_model_says_of_itself(path: Path, model: mmrt.Model) -> None:
    assert (model.path, model.vocab_size, model.threads) == (str(path), 300, 2)
    assert repr(model) == f"<Model {str(path)!r}, llama, 2 threads>"
    assert model.isa == mmrt.cpu_info().isa
    memory = model.memory
    assert memory.weights == sum(tensor.nbytes for tensor in model.file.values())
    assert memory.kv == 0 and memory.scratch > 0
    assert memory.anonymous == memory.scratch
    assert "keys and values 0 bytes" in str(memory)


@pytest.mark.parametrize("context", [0, -1, 4001, 2**70, 1.5, "9", True])
def test_contexts_that_cannot_be(path: Path, context: Any) -> None:
    with pytest.raises(ArgumentError, match=r"context: .* is not a whole number from 1 to 4000"):
        mmrt.Model(path, context=context)


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, "2"])
def test_numbers_of_threads_that_cannot_be(path: Path, threads: Any) -> None:
    with pytest.raises(ArgumentError, match="threads: "):
        mmrt.Model(path, threads=threads)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path, "directory"),
        (tmp_path / "missing.gguf", "No such file"),
        (Path("/dev/null"), "regular file"),
    ]:
        with pytest.raises(FileError, match=words) as refused:
            mmrt.Model(path)
        assert str(path) in str(refused.value)


def test_a_file_that_may_not_be_read(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(path.read_bytes())
    secret.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything, others not
        with pytest.raises(FileError, match=r"secret\.gguf.*Permission denied"):
            mmrt.Model(secret)
    finally:
        os.seteuid(user)


def test_a_closed_model_is_refused_by_name(path: Path) -> None:
    model = mmrt.Model(path)
    sequence = model.sequence()
    sequence.extend(IDS)
    tensor = model.file["token_embd.weight"]
    model.close()
    model.close()
    uses: list[Callable[[], Any]] = [
        lambda: model.logits(IDS),
        lambda: model.generate(IDS, max_tokens=1),
        lambda: model.generate(PROMPT, max_tokens=1),
        lambda: model.tokenize(PROMPT),
        lambda: sequence.extend(IDS),
        lambda: list(model.stream_chat([{"role": "user", "content": "a"}])),
        lambda: tensor.dequantize(),
        lambda: tensor @ np.ones(64, np.float32),
    ]
    for use in uses:
        with pytest.raises(ArgumentError, match="is closed"):
            use()
    assert repr(model).startswith("<Model ")
    assert (model.memory.weights, model.memory.scratch) == (0, 0)
    sequence.close()
    assert model.memory.kv == 0


def test_views_keep_a_file_mapped(path: Path) -> None:
    model = mmrt.Model(path)
    view = np.asarray(model.file["output_norm.weight"])
    with pytest.raises(BufferError, match="alive"):
        model.close()
    assert view.sum() > 0
    # It is as it was, also in its budget.
    assert not model.closed and "closed" not in repr(model)
    assert model.memory.weights > 0 and model.budget.size is None
    with mmrt.Model(path) as other:
        expected = other.generate(PROMPT, max_tokens=5)
    assert model.generate(PROMPT, max_tokens=5) == expected
    with pytest.raises(InUseError, match=r"views of its tensors are alive \(1\)"), model:
        pass
    assert model.logits(IDS).shape == (len(IDS), model.vocab_size)
    del view
    model.close()
    assert model.file.closed


def test_a_model_cannot_be_closed_under_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMRT_ISA", "ref")  # so that the step takes long
    shape = {"n_embd": 512, "n_ff": 2048, "n_layers": 2}
    model = mmrt.Model(tiny_models.llama(**shape).write(tmp_path / "slow.gguf"), threads=1)
    sequence = model.sequence()
    thread = threading.Thread(target=lambda: sequence.extend(IDS * 4))
    thread.start()
    with pytest.raises(InUseError, match="this sequence is running in another thread"):
        while thread.is_alive():
            sequence.truncate(0)
    with pytest.raises(BufferError, match="the model is running in another thread"):
        model.close()
    thread.join()
    assert len(sequence) == 256
    model.close()


def test_closing_gives_everything_back(path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    tasks = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        with mmrt.Model(path, threads=3) as model:
            model.generate(PROMPT, max_tokens=3)
            assert mapped()
        del model
    assert not mapped()
    assert len(os.listdir("/proc/self/fd")) == files and threading.active_count() == threads
    assert len(os.listdir("/proc/self/task")) <= tasks


def test_two_models_of_one_file(path: Path) -> None:
    with mmrt.Model(path) as one, mmrt.Model(path, threads=1) as other:
        expected = one.logits(IDS)
        assert np.array_equal(expected, other.logits(IDS))
        one.close()
        assert np.array_equal(expected, other.logits(IDS))


# ---- forks ----

FORKS = """
import os, sys, threading, warnings
import numpy as np
import mmrt

warnings.simplefilter("ignore")  # Python's own, of forks with threads
path, how = sys.argv[1:]
model = mmrt.Model(path, threads=2)
ids = list(range(5, 40))
expected = model.generate(ids, max_tokens=20)
sequence = model.sequence()
logits = sequence.extend(ids)

if how == "busy":  # while another thread is inside a step
    work = lambda: [model.logits(ids * 7) for _ in range(300)]
    threading.Thread(target=work, daemon=True).start()

def child():
    if how == "threads":  # several at once start what the fork did not bring along
        found = []
        work = lambda: found.append(model.generate(ids, max_tokens=20))
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert found == [expected] * 8, found
    assert model.generate(ids, max_tokens=20) == expected
    assert np.array_equal(mmrt.Model(path, threads=3).sequence().extend(ids), logits)
    assert sequence.extend([7]).shape == (300,) and len(sequence) == 36
    assert model.memory.kv > 0
    grandchild = os.fork()
    if not grandchild:
        os._exit(model.generate(ids, max_tokens=20) != expected)
    assert os.waitpid(grandchild, 0)[1] == 0

for _ in range(10 if how == "busy" else 3):
    pid = os.fork()
    if not pid:
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert len(sequence) == 35  # the child's text is the child's own
print(model.generate(ids, max_tokens=20) == expected)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["idle", "threads", "busy"])
def test_a_fork_works_on_its_own(path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, path, how],
        cwd=HOME, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


# ---- interrupts ----


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], object]], None]]:
    """interrupted(work): has work(), which would go on for minutes or for ever, end by SIGINT."""
    # Tests may run in the background of a shell, where SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(work: Callable[[], object]) -> None:
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            work()
        timer.join()

    yield interrupt
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_an_interrupt_ends_a_prompt(
    real_path: Path, interrupted: Callable[[Callable[[], object]], None]
) -> None:
    with mmrt.Model(real_path) as model, model.sequence() as sequence:
        ids = model.tokenize(STORY) * 1500
        expected = model.generate(STORY, max_tokens=4)
        interrupted(lambda: sequence.extend(ids))
        assert len(sequence) < len(ids)
        assert len(sequence) % 256 == 0 and sequence.tokens == ids[: len(sequence)]
        sequence.truncate(0)
        assert model.generate(STORY, max_tokens=4, sequence=sequence) == expected


def test_an_interrupt_ends_an_answer(
    tmp_path: Path, interrupted: Callable[[Callable[[], object]], None]
) -> None:
    path = tiny_models.speaker(b"la", b"li", ends=False, context=10**7).write(tmp_path / "la.gguf")
    with mmrt.Model(path) as model:
        interrupted(lambda: model.generate([5], max_tokens=None))
        assert model.memory.kv == 0
        assert model.generate([5], max_tokens=5) == "lalilalila"
        stream = model.stream([5], max_tokens=None)
        interrupted(lambda: list(stream))
        assert list(stream) == []  # it has ended
        assert model.generate([5], max_tokens=5) == "lalilalila"


def test_an_interrupt_ends_the_wait_for_another_thread(
    path: Path, interrupted: Callable[[Callable[[], object]], None]
) -> None:
    with mmrt.Model(path) as model:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                model.logits(IDS * 20)

        def wait() -> None:
            while True:
                model.logits(IDS)

        thread = threading.Thread(target=work)
        thread.start()
        interrupted(wait)
        stop.set()
        thread.join()


def test_what_a_handler_raises_comes_through(model: mmrt.Model) -> None:
    class Alarm(Exception):
        pass

    def raise_alarm(number: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        with pytest.raises(Alarm):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            while True:
                model.logits(IDS)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert model.logits(IDS).shape == (64, 300)


def test_a_handler_that_raises_nothing_changes_nothing(model: mmrt.Model) -> None:
    ids, seen = IDS * 60, []
    expected = model.logits(ids)
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        assert np.array_equal(model.logits(ids), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
