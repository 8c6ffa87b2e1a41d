"""Budgets: what they take, what they refuse, and that models keep to them as they grow."""

import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from command import HOME
from machine import memory_cgroup

import mmrt
from mmrt import counters
from mmrt.core.program import Part, Program
from mmrt.core.state import Cache
from mmrt.core.streaming import READERS
from mmrt.errors import ArgumentError, OutOfMemoryError
from mmrt.memory import budget as budgets
from mmrt.memory import system
from mmrt.memory.budget import Budget

MIB = 1 << 20
IDS = list(range(40))

# Large enough that keeping or streaming it shows beside what the interpreter takes: 29 MB, of which
# steps read 26 MB; 384 KiB of keys and values for 32 tokens.
SHAPE = {
    "n_layers": 6, "n_embd": 512, "n_ff": 2048, "head_dim": 64, "n_heads": 8, "n_kv_heads": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(
        type="Q8_0", separate_output=True, n_vocab=4000, context=4096, **SHAPE
    )
    return model.write(tmp_path_factory.mktemp("budget") / "m.gguf")


class Small:
    """Budgets that leave so many bytes for weights beside what this process takes without them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def hold(self) -> counters.Resident:
        """Holds the figures of the process: other tests leave memory that comes and goes."""
        used = counters.resident()
        self._monkeypatch.setattr(counters, "resident", lambda: used)
        return used

    def __call__(self, n_bytes: int) -> Budget:
        return Budget(sum(self.hold()) + 4 * MIB + n_bytes)

    def bound(self, n_bytes: list[int]) -> None:
        """The same by a limit around the process, which follows the one number in the list."""
        used = self.hold()
        self._monkeypatch.setattr(
            system,
            "bounds",
            lambda locked=0: [system.Bound("a limit", sum(used) + n_bytes[0], used.anon, 0)],
        )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    return Small(monkeypatch)


# ---- sizes ----


@pytest.mark.parametrize(
    "size", [0, -1, True, 1.5, "", "0", "-1GiB", "much", "1XB", "1 GiB more", b""]
)
def test_sizes_that_are_none(size: Any, path: Path) -> None:
    with pytest.raises(ArgumentError, match="memory"):
        mmrt.Model(path, memory=size)


@pytest.mark.parametrize("size", ["1000TiB", 1 << 62, "99999999999999999999"])
def test_more_than_there_is(size: Any, path: Path) -> None:
    with pytest.raises(ArgumentError, match="memory"):
        mmrt.Model(path, memory=size)


def test_a_policy_besides_is_refused(path: Path) -> None:
    with pytest.raises(ArgumentError, match="policy 'prefetch'"):
        mmrt.Model(path, memory="1GiB", policy="prefetch")
    with pytest.raises(ArgumentError, match="no 'quick'"):
        mmrt.Model(path, memory="1GiB", reader="quick")


def test_too_small_a_budget_says_the_least(path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"the memory budget of 1\.00 MiB is too small") as e:
        mmrt.Model(path, memory=MIB)
    assert str(path) in str(e.value)
    assert re.search(r"for a text of 128 tokens it needs at least \d+ MiB$", str(e.value))


LEAST = """
import re, sys
import mmrt
path, size, reader = sys.argv[1:]
try:
    with mmrt.Model(path, memory=size, reader=reader or None, threads=2) as model:
        text = model.detokenize([3 + 7 * i % 200 for i in range(100)])
        ids = model.tokenize(text)[:48]
        assert len(ids) == 48 and model.memory.streamed
        assert len(list(model.stream(ids, max_tokens=64, temperature=1.0, top_p=0.9, seed=1))) > 1
        print("read")
except mmrt.OutOfMemoryError as error:
    print(re.search(r"needs at least (\\d+ MiB)", str(error))[1])
"""


def in_a_new_process(path: Path, size: str, reader: str) -> str:
    command = [sys.executable, "-c", LEAST, str(path), size, reader]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_the_least_is_enough(path: Path, reader: str) -> None:
    least = in_a_new_process(path, "1MiB", "")
    assert (least, in_a_new_process(path, least, reader)) == (least, "read")


@pytest.mark.slow
def test_the_least_is_enough_for_real_models(real_path: Path) -> None:
    least = in_a_new_process(real_path, "1MiB", "")
    assert (least, in_a_new_process(real_path, least, "")) == (least, "read")


def test_what_opening_read_of_the_file_does_not_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = []

    def note_base(budget: Budget) -> None:
        mapped.append(counters.of_file(path).rss)
        note(budget)

    def first_text(program: Program) -> int:
        program.weights[0].mapping.advise("populate_read")
        mapped.append(counters.of_file(path).rss)
        return first(program)

    note, first = Budget._note_base, budgets.first_text
    monkeypatch.setattr(Budget, "_note_base", note_base)
    monkeypatch.setattr(budgets, "first_text", first_text)
    with mmrt.Model(path, memory=sum(counters.resident()) + 40 * MIB):
        pass
    begun, touched, joined = mapped
    assert (begun, joined) == (0, 0) and touched > path.stat().st_size - mmap.PAGESIZE


def test_all_that_fits_is_left_alone(path: Path) -> None:
    with mmrt.Model(path, memory="2GiB") as model:
        model.generate(IDS, max_tokens=2)
        assert model.streaming is None
        assert model.memory.streamed == 0 and model.memory.budget == 2 << 30
        assert "budget 2.00 GiB" in str(model.memory)


def test_without_a_size_the_bounds_around_count(
    path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "_default", None)
    room = [24 * MIB]
    small.bound(room)
    with mmrt.Model(path) as model:
        assert 0 < model.memory.streamed < model.memory.weights
        assert model.budget.size is None
    room[0] = MIB
    with pytest.raises(OutOfMemoryError, match="a limit of"):
        mmrt.Model(path)


# ---- while it runs ----


def test_keys_and_values_take_from_the_weights(
    path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "_LOOK_SECONDS", 0)
    with mmrt.Model(path, memory=small(30 * MIB)) as model, model.sequence() as sequence:
        expected = model.generate(IDS, max_tokens=5)
        before = model.memory
        sequence.extend([7] * 1000)
        sequence.extend([7])  # a short step, so that scratch is back
        during = model.memory
        grown = during.kv - before.kv
        assert grown > 25 * model.memory.kv_page
        taken = during.streamed - before.streamed
        assert grown - 4 * MIB < taken < grown + 6 * MIB
        assert model.generate(IDS, max_tokens=5) == expected
        sequence.truncate(0)
        sequence.extend([7])
        assert model.memory.streamed < before.streamed + 8 * MIB  # it was given back


def test_what_forks_share_is_counted_once(
    path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "_LOOK_SECONDS", 0)
    with mmrt.Model(path, memory=small(30 * MIB)) as model, model.sequence() as sequence:
        sequence.extend([7] * 1000)
        sequence.extend([7])
        before, page = model.memory, model.memory.kv_page
        forks = [sequence.fork() for _ in range(10)]
        for fork in forks:
            fork.extend([7])
        during = model.memory
        assert sum(fork.nbytes for fork in forks) == 10 * 32 * page > 100 * MIB
        assert during.kv - before.kv == 10 * page
        assert during.streamed - before.streamed < 10 * page + 6 * MIB


def test_keys_and_values_that_leave_nothing(path: Path, small: Small) -> None:
    with mmrt.Model(path, memory=small(18 * MIB)) as model, model.sequence() as sequence:
        with pytest.raises(OutOfMemoryError, match="too small: for this text it needs at least"):
            sequence.extend([7] * 4000)
        assert 0 < len(sequence) < 4000
        sequence.truncate(10)
        assert len(sequence.extend([5])) == model.vocab_size


def test_a_limit_that_falls_and_rises(
    path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = [100 * MIB]
    monkeypatch.setattr(budgets, "_LOOK_SECONDS", 0)
    small.bound(limit)
    with mmrt.Model(path, memory=Budget()) as model:
        expected = model.generate(IDS, max_tokens=5)
        kept, streamed = [], []
        for limit[0] in (22 * MIB, 14 * MIB, 26 * MIB, 100 * MIB):
            assert model.generate(IDS, max_tokens=5) == expected
            kept.append(model.memory.kept)
            streamed.append(model.memory.streamed)
        assert kept[1] < kept[0] < kept[2] < kept[3]
        assert streamed[2] > streamed[3] == 0
        limit[0] = MIB
        with pytest.raises(OutOfMemoryError, match="a limit of"):
            model.generate(IDS, max_tokens=5)
        limit[0] = 32 * MIB
        assert model.generate(IDS, max_tokens=5) == expected


def test_models_share_a_budget(path: Path, small: Small) -> None:
    budget = small(50 * MIB)
    with mmrt.Model(path, memory=budget) as first:
        expected = first.generate(IDS, max_tokens=5)
        assert first.memory.streamed == 0
        with mmrt.Model(path, memory=budget) as second:
            assert second.memory.streamed > 0 and first.memory.streamed > 0
            together = sum(m.memory.kept + m.memory.ring for m in (first, second))
            assert together < 50 * MIB
            assert first.generate(IDS, max_tokens=5) == expected
            assert second.generate(IDS, max_tokens=5) == expected
        assert first.generate(IDS, max_tokens=5) == expected
        assert first.memory.streamed == 0
        with pytest.raises(OutOfMemoryError):
            [mmrt.Model(path, memory=budget) for _ in range(20)]
        assert first.generate(IDS, max_tokens=5) == expected


def test_steps_of_several_threads_share_the_room(path: Path, small: Small) -> None:
    """What one takes counts while it runs; one that does not fit beside it waits for its end."""
    budget = small(200 * MIB)
    with mmrt.Model(path, memory=budget) as first, mmrt.Model(path, memory=budget) as second:
        shares = [first._share, second._share]
        assert shares[0] and shares[1]
        entered = threading.Event()

        def step(share: budgets.Share) -> None:
            with budget.step(share, [Part(Cache(share.program.store), np.zeros(256, np.int32))]):
                entered.set()

        pages = Cache(first.program.store).growth(256)
        takes = pages + first.program.step_bytes(256) - shares[0].scratch(limited=True)
        before = budget.room(0).n_bytes
        other = threading.Thread(target=step, args=(shares[1],))
        with budget.step(shares[0], [Part(Cache(first.program.store), np.zeros(256, np.int32))]):
            assert budget.room(0).n_bytes == before - takes
            assert budget.size
            budget.size -= before - sum(share.least for share in shares if share) - 3 * takes // 2
            other.start()
            assert not entered.wait(0.2)
        assert entered.wait(60)
        other.join()
        assert budget.room(0).n_bytes > takes
        budget.size -= takes
        with pytest.raises(OutOfMemoryError, match="too small"):
            step(shares[0])


def test_long_prompts_take_shorter_steps(path: Path, small: Small) -> None:
    """Where memory is short, so that scratch does not take it all from the weights."""
    with mmrt.Model(path, memory=small(14 * MIB)) as model:
        assert 15 <= model.step_tokens(256) < 256
        assert model.step_tokens(1) == 1
    with mmrt.Model(path, memory="2GiB") as model:
        assert model.step_tokens(1000) == 256


def test_no_step_is_so_short_that_it_rounds_otherwise() -> None:
    for most in (15, 16, 31, 256):
        for wanted in range(1, 600):
            steps, left = [], wanted
            while left:
                steps.append(budgets.divide_step(left, most))
                left -= steps[-1]
            assert max(steps) <= most and (min(steps) >= 8 or steps == [wanted])
            assert most < 16 or all(n % 8 == 0 or n < 16 for n in steps[:-1])


@pytest.mark.parametrize("n", [2, 7, 8, 17, 41, 257, 300])
def test_budgets_do_not_change_a_bit(n: int, path: Path, small: Small) -> None:
    ids = [7 * i % 3000 for i in range(n)]
    found = []
    with mmrt.Model(path) as model:
        found.append(model.logits(ids))
    for room in (16 * MIB, 24 * MIB):
        with mmrt.Model(path, memory=small(room)) as model:
            found.append(model.logits(ids))
            assert model.memory.streamed
    with mmrt.Model(path, memory=small(24 * MIB)) as model:
        model.step_tokens = lambda wanted: budgets.divide_step(wanted, 15)  # type: ignore[method-assign]
        found.append(model.logits(ids))
    assert all(np.array_equal(found[0], other) for other in found[1:])


# ---- by the kernel's own count ----

PROGRAM = """
import sys
import mmrt
from mmrt import counters
path, limit, policy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
budget = mmrt.Budget(limit or None)
with (
    mmrt.Model(path, memory=budget, policy=policy, threads=2) as model,
    model.sequence() as sequence,
):
    model.tokenizer
    sequence.extend([7] * 600)
    for token in range(100):
        sequence.extend([token])
    streamed = model.memory.streamed
    print(streamed, sum(counters.resident()))
"""


def run(*arguments: object) -> list[int]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_the_process_stays_within_its_budget(path: Path) -> None:
    _, needed = run(path, 0, "lazy")
    budget = needed - 16 * MIB
    streamed, used = run(path, budget, "lazy")
    assert streamed > 6 * MIB
    assert budget - 16 * MIB < used <= budget


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("policy", ["lazy", "locked"])
def test_a_cgroup_is_never_filled(path: Path, policy: str) -> None:
    """A limit that the model does not fit into: no kill, and no reclaim by the kernel."""
    command = [sys.executable, "-c", PROGRAM, str(path), "0", policy]
    with memory_cgroup() as limit:
        limit.write_text(str(60 * MIB))

        def enter() -> None:
            limit.with_name("cgroup.procs").write_text(str(os.getpid()))

        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, preexec_fn=enter)
        version_2 = limit.name == "memory.max"
        found = limit.with_name("memory.events" if version_2 else "memory.failcnt").read_text()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0
    assert "max 0" in found if version_2 else int(found) == 0


def test_a_closed_model_says_so_whatever_the_budget(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(*_: object) -> int:
        raise OutOfMemoryError("the memory budget is too small")

    model = mmrt.Model(path, memory="1GiB")
    text = model.sequence()
    monkeypatch.setattr(mmrt.Budget, "step_tokens", too_small)
    model.close()
    with pytest.raises(ArgumentError, match="the model is closed"):
        text.extend([1])


def test_an_interrupt_leaves_no_lock_held(path: Path) -> None:
    """Wherever in a budget's work a handler raises: afterwards another thread can have its lock."""

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def can_be_had() -> bool:
        changes, had = budget._changes, threading.Event()

        def take() -> None:
            if changes.acquire(timeout=10):
                changes.release()
                had.set()

        other = threading.Thread(target=take)
        other.start()
        other.join()
        return had.is_set()

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with mmrt.Model(path) as model:
            budget = model.budget
            for i in range(300):
                with suppress(Stop):
                    signal.setitimer(signal.ITIMER_REAL, 1e-4 + 1e-6 * i)
                    while True:
                        budget.leave(model._share)  # type: ignore[arg-type]
                assert can_be_had(), f"in round {i} the lock was left held"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
