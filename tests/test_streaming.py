"""Streaming where things go wrong, or files lie somewhere odd: the same logits, or one error."""

import mmap
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mounts
import numpy as np
import pytest
import tiny_models
from command import HOME
from machine import memory_cgroup, needs_locking, needs_reader, reads_by
from pages import smaps, without_privilege

import mmrt
from mmrt import counters
from mmrt.core.streaming import READERS, Streaming
from mmrt.errors import FileError, OutOfMemoryError, UnsupportedError
from mmrt.memory import system
from mmrt.memory.budget import Budget

MIB = 1 << 20
IDS = [5, 9, 17, 4, 200]


def large() -> tiny_models.TinyModel:
    shape = {"n_layers": 6, "n_embd": 512, "n_ff": 2048, "head_dim": 64, "n_heads": 8}
    return tiny_models.llama(type="Q8_0", n_vocab=2000, separate_output=True, context=2048, **shape)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large().write(tmp_path_factory.mktemp("streaming") / "m.gguf")


@pytest.fixture
def open_small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., mmrt.Model]:
    """Opens a model so that about half of its weights are streamed."""

    def start(path: Path | str, reader: str | None = None, policy: str = "lazy") -> mmrt.Model:
        used = counters.resident()
        monkeypatch.setattr(counters, "resident", lambda: used)
        model = mmrt.Model(path, memory=Budget(sum(used) + 20 * MIB), reader=reader, policy=policy)
        assert model.memory.streamed > 4 * MIB
        return model

    return start


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_same(
    reader: str, path: Path, open_small: Callable[..., mmrt.Model]
) -> None:
    needs_reader(reader, path)
    with mmrt.Model(path) as model:
        expected = model.logits(IDS)
    with open_small(path, reader) as model:
        for _ in range(3):
            assert np.array_equal(model.logits(IDS), expected)
        streaming = model.memory.streaming
        assert streaming is not None and streaming.reader == reader
        assert streaming.read >= 2 * streaming.streamed
        assert 0 <= streaming.overlap <= 1


def test_biases_and_scales_of_streamed_matrices(
    tmp_path: Path, open_small: Callable[..., mmrt.Model]
) -> None:
    model, random = tiny_models.fuse_qkv(large()), np.random.default_rng(1)
    rows = {"attn_qkv": 768, "attn_output": 512, "ffn_gate": 2048, "ffn_up": 2048, "ffn_down": 512}
    names = {f"blk.{i}.{role}": n for i in range(6) for role, n in rows.items()}
    for name, n in {**names, "output": 2000}.items():
        model.tensors[f"{name}.bias"] = tiny_models.floats(random, n)
        model.tensors[f"{name}.scale"] = tiny_models.floats(random, 1, mean=1.0)
    path = model.write(tmp_path / "beside.gguf")
    with mmrt.Model(path) as whole:
        expected = whole.logits(IDS)
    with open_small(path) as streamed:
        assert np.array_equal(streamed.logits(IDS), expected)


@pytest.mark.parametrize("kind", mounts.KINDS)
def test_wherever_the_file_lies(
    kind: str, path: Path, tmp_path: Path, open_small: Callable[..., mmrt.Model]
) -> None:
    """Without O_DIRECT a reader is refused when asked for, and another found when not."""
    with mmrt.Model(path) as model:
        expected = model.logits(IDS)

    def work(there: Path) -> None:
        for reader in (None, *READERS):
            if reader is not None and not reads_by(reader, there):
                with pytest.raises(UnsupportedError, match=str(there)):
                    open_small(there, reader)
                continue
            with open_small(there, reader) as model:
                assert np.array_equal(model.logits(IDS), expected)

    mounts.on(kind, path, tmp_path / "mount", work)


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "mapped"])
def test_a_ring_that_there_was_no_memory_for(reader: str, path: Path) -> None:
    """It is made as soon as there is; until then nothing is read to where it would have been."""
    needs_reader(reader, path)
    with mmrt.Model(path, threads=2) as model, model.sequence() as sequence:
        expected = [sequence.extend(IDS), sequence.extend([7])]
        sequence.truncate(len(IDS))
        model.program.set_reader(reader)
        model.program.set_budget(model.program.plan(0).least)
        before = resource.getrlimit(resource.RLIMIT_AS)
        room = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (room + MIB, before[1]))
        try:
            for _ in range(3):
                with pytest.raises(OutOfMemoryError, match=r"memory for \d+ bytes of streamed"):
                    sequence.extend([7])
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        assert np.array_equal(sequence.extend([7]), expected[1])
        sequence.truncate(0)
        assert np.array_equal(sequence.extend(IDS), expected[0])


@pytest.mark.parametrize("reader", READERS)
def test_a_file_cut_short_while_streaming(
    reader: str, path: Path, tmp_path: Path, open_small: Callable[..., mmrt.Model]
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    needs_reader(reader, copy)
    with open_small(copy, reader) as model, model.sequence() as sequence:
        sequence.extend(IDS)
        os.truncate(copy, copy.stat().st_size // 2)
        with pytest.raises(FileError, match=str(copy)):
            for token in range(10):
                sequence.extend([token])


@pytest.mark.parametrize("reader", READERS)
def test_a_file_deleted_while_streaming(
    reader: str, path: Path, tmp_path: Path, open_small: Callable[..., mmrt.Model]
) -> None:
    """Its bytes are there for as long as it is open."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    needs_reader(reader, copy)
    with mmrt.Model(path) as model:
        expected = model.logits(IDS)
    with open_small(copy, reader) as model:
        model.logits(IDS)
        copy.unlink()
        assert np.array_equal(model.logits(IDS), expected)


def test_threads_of_one_model(path: Path, open_small: Callable[..., mmrt.Model]) -> None:
    with mmrt.Model(path) as model:
        expected = model.logits(IDS)
    with open_small(path) as model:
        same: list[bool] = []

        def work() -> None:
            same.extend(np.array_equal(model.logits(IDS), expected) for _ in range(4))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert same == [True] * 16


LOWERED = """
import sys, mmrt
with mmrt.Model(sys.argv[1], threads=2) as model, model.sequence() as sequence:
    sequence.extend([7] * 20)
    print("running", model.memory.streamed, flush=True)
    sys.stdin.readline()
    for token in range(40):
        sequence.extend([token])
    while model.memory.streamed == 0:  # the limit is looked at every quarter of a second
        sequence.extend([7])
    print("ended", model.memory.streamed)
"""


@pytest.mark.root
def test_a_limit_lowered_while_running(path: Path) -> None:
    """By the administrator: the model lets weights go, and is not killed."""
    enter = 'echo $$ > "$0" && exec "$@"'
    with memory_cgroup() as limit:
        limit.write_text(str(200 * MIB))
        command = ["sh", "-c", enter, str(limit.with_name("cgroup.procs"))]
        with subprocess.Popen(
            [*command, sys.executable, "-c", LOWERED, str(path)], cwd=HOME, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "running 0\n"
            # Less than all its weights need beside the rest; the kernel takes pages to get there.
            limit.write_text(str(46 * MIB))
            out, err = process.communicate("go\n", timeout=100)
        assert process.returncode == 0, err
        assert int(out.split()[-1]) > 0


# ---- locks ----


def streaming(model: mmrt.Model) -> Streaming:
    found = model.streaming
    assert found is not None
    return found


def settle(model: mmrt.Model) -> int:
    """Runs until kept weights are loaded; the bytes of them that are locked."""
    deadline = time.monotonic() + 20
    while True:
        model.generate(IDS, max_tokens=1)
        now = streaming(model)
        if now.loaded >= now.kept or time.monotonic() > deadline:
            return now.locked


@pytest.mark.slow
def test_kept_weights_are_locked_where_that_is_wanted(
    path: Path, open_small: Callable[..., mmrt.Model]
) -> None:
    needs_locking(20 * MIB)
    with mmrt.Model(path) as model:
        expected = model.generate(IDS, max_tokens=4)
    with open_small(path, policy="locked") as model:
        assert settle(model) == streaming(model).kept > 4 * MIB
        in_file = sum(tensor.mapping.size for tensor in model.program.weights[:1])
        address = model.program.weights[0].mapping.address
        assert locked_between(address, address + in_file) >= streaming(model).kept
        assert "locked" in str(model.memory)
        assert model.generate(IDS, max_tokens=4) == expected
        # What is given up is unlocked first, or it could not be dropped.
        with model.sequence() as sequence:
            before = streaming(model).locked
            sequence.extend([7] * 900)
            sequence.extend([7])
            assert streaming(model).kept < before
            assert streaming(model).locked <= streaming(model).kept


def locked_between(first: int, end: int) -> int:
    """Bytes that the kernel says are locked of the mappings that begin there."""
    starts = [
        start
        for line in Path("/proc/self/maps").read_text().splitlines()
        if first <= (start := int(line.split("-")[0], 16)) < end
    ]
    return sum(smaps(start, "Locked") for start in starts)


def test_all_that_fits_is_locked_too(path: Path) -> None:
    needs_locking(100 * MIB)
    with mmrt.Model(path, memory="4GiB", policy="locked") as model:
        locked = settle(model)
        assert locked == streaming(model).kept and model.memory.streamed == 0


def test_locks_end_where_the_limit_does(
    path: Path, open_small: Callable[..., mmrt.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mmrt.Model(path) as model:
        expected = model.generate(IDS, max_tokens=4)
    monkeypatch.setattr(system, "memlock_limit", lambda: 5 * MIB)
    with pytest.warns(UserWarning, match=r"RLIMIT_MEMLOCK .* lock 5\.00 MiB"):
        model = open_small(path, policy="locked")

    def work() -> None:  # whose readers load, and lock, in the child
        assert 0 < settle(model) <= 5 * MIB
        assert model.generate(IDS, max_tokens=4) == expected

    with model:
        without_privilege(work, memlock=5 * MIB)
