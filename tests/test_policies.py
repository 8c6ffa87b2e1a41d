"""Policies: what each has brought into memory, and told the kernel, when a file is open."""

import os
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command import call
from hostile import make_gguf as make
from machine import evict, needs_locking
from pages import PAGE, smaps, told, without_privilege, write_file

import mmrt
from mmrt import policies
from mmrt.errors import ArgumentError, OutOfMemoryError
from mmrt.files.formats import TensorFile
from mmrt.files.policies.ranges import ranges

N_TENSORS = 8
SIZE = 64 * PAGE  # of each tensor, in bytes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tensors one after another, in a file that is not in memory."""
    tensors = tuple(make.tensor(f"t{i}", (SIZE,), 24, i * SIZE) for i in range(N_TENSORS))
    data = b"".join(bytes([i]) * SIZE for i in range(N_TENSORS))
    return write_file(
        tmp_path_factory.mktemp("policies") / "weights.gguf", make.gguf((), tensors, data)
    )


@pytest.fixture(autouse=True)
def _evicted(path: Path) -> None:
    evict(path)


def resident(file: TensorFile) -> int:
    """Pages of weights in memory, but of the first tensor: reading the header reaches into it."""
    return file.mappings[0].residency(file["t1"].offset + PAGE).resident


def address(file: TensorFile, tensor: str = "t4") -> int:
    return int(np.asarray(file[tensor]).ctypes.data)


def finished() -> None:
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("name", policies.POLICIES)
def test_every_policy_gives_the_same_weights(path: Path, name: str) -> None:
    if name == "locked":
        needs_locking(path.stat().st_size)
    with mmrt.open(path, policy=name) as file:
        for i in range(N_TENSORS):
            assert np.asarray(file[f"t{i}"]).min() == np.asarray(file[f"t{i}"]).max() == i


@pytest.mark.parametrize("name", policies.POLICIES)
def test_every_policy_has_a_file_that_says_what_it_does(name: str) -> None:
    assert import_module(f"mmrt.files.policies.{name}").__doc__


def test_lazy_reads_no_weights_and_is_the_default(path: Path) -> None:
    for file in (mmrt.open(path), mmrt.open(path, policy="lazy")):
        with file:
            assert resident(file) == 0


def test_populate_has_read_everything(path: Path) -> None:
    with mmrt.open(path, policy="populate") as file:
        assert all(tensor.residency().fraction == 1 for tensor in file.values())


def test_populate_refuses_more_than_memory_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrt.files.policies.ranges.available_memory", lambda: SIZE)
    with pytest.raises(OutOfMemoryError, match=rf"policy populate: .* has room for {SIZE};"):
        mmrt.open(path, policy="populate")
    assert str(path) not in Path("/proc/self/maps").read_text()
    for tensor in (file := mmrt.open(path)).values():
        tensor.advise("populate_read")
    mmrt.open(path, policy="populate").close()  # what is there already needs no room
    file.close()


def test_prefetch_reads_everything_in_time(path: Path) -> None:
    with mmrt.open(path, policy="prefetch") as file:
        finished()
        for _ in range(5000):
            if all(tensor.residency().fraction == 1 for tensor in file.values()):
                break
            threading.Event().wait(0.001)
        assert all(tensor.residency().fraction == 1 for tensor in file.values())


def test_prefetch_stops_where_memory_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrt.files.policies.prefetch.available_memory", lambda: 3 * SIZE)
    header = 64 << 10  # as much is read of it at once
    with mmrt.open(path, policy="prefetch") as file:
        finished()
        assert file.mappings[0].residency().resident <= (header + 3 * SIZE) // PAGE
        assert file["t7"].residency().resident == 0


def test_prefetch_ends_with_the_file(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        mmrt.open(path, policy="prefetch").close()
    finished()
    assert len(os.listdir("/proc/self/fd")) == before


def test_random_reads_single_pages(path: Path) -> None:
    with mmrt.open(path, policy="random") as file:
        assert "rr" in told(address(file))
        assert np.asarray(file["t4"])[10 * PAGE] == 4
        assert resident(file) == 1


def test_sequential_is_told_to_the_kernel(path: Path) -> None:
    with mmrt.open(path, policy="sequential") as file:
        assert "sr" in told(address(file))
        assert resident(file) == 0


def test_locked_weights_are_locked(path: Path) -> None:
    needs_locking(path.stat().st_size)
    with mmrt.open(path, policy="locked") as file:
        assert "lo" in told(address(file))
        assert all(tensor.residency().fraction == 1 for tensor in file.values())
        assert smaps(address(file), "Locked") == smaps(address(file), "Rss") >= N_TENSORS * SIZE


def test_locked_says_which_limit_forbids_it(path: Path) -> None:
    path.chmod(0o644)
    with path.open("rb") as file:

        def work() -> None:
            with pytest.raises(OutOfMemoryError, match=f"RLIMIT_MEMLOCK .* lock {2 * SIZE}$"):
                mmrt.open(f"/proc/self/fd/{file.fileno()}", policy="locked")

        without_privilege(work, memlock=2 * SIZE)


def test_neighbours_are_one_range(path: Path) -> None:
    with mmrt.open(path) as file:
        t = [file[f"t{i}"] for i in range(N_TENSORS)]
        whole = ranges(t)
        assert [part[1:] for part in whole] == [(t[0].offset, N_TENSORS * SIZE)]
        apart = ranges([t[5], t[0], t[1], t[3]])
        assert [part[1:] for part in apart] == [
            (t[5].offset, SIZE),
            (t[0].offset, 2 * SIZE),
            (t[3].offset, SIZE),
        ]
        assert ranges([]) == []


# ---- where a policy can be named ----


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llama().write(tmp_path_factory.mktemp("policies") / "model.gguf")


@pytest.mark.parametrize("name", ["lazy", "prefetch", "populate", "random", "sequential"])
def test_models_take_every_policy(model_path: Path, name: str) -> None:
    with mmrt.Model(model_path) as model:
        expected = model.logits([1, 2, 3])
    with mmrt.Model(model_path, policy=name) as model:
        assert np.array_equal(model.logits([1, 2, 3]), expected)


def test_a_model_populates_what_it_reads(model_path: Path) -> None:
    with mmrt.Model(model_path, policy="populate") as model:
        assert all(tensor.residency().fraction == 1 for tensor in model.program.weights)


@pytest.mark.parametrize(
    "use",
    [
        lambda path: mmrt.open(path, policy="greedy"),
        lambda path: mmrt.Model(path, policy="greedy"),
        lambda path: policies.policy("greedy"),
    ],
)
def test_unknown_names_are_refused(model_path: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(
        ArgumentError, match="policy: there is no 'greedy'; there are lazy, prefetch,"
    ):
        use(model_path)


def test_the_command_line_takes_a_policy(model_path: Path) -> None:
    greedy = ("-n", 2, "--temp", 0)
    expected = call("run", model_path, "a", *greedy)
    assert expected.status == 0
    assert call("run", model_path, "a", *greedy, "--policy", "populate") == expected
    call("run", model_path, "a", "--policy", "greedy").assert_refused(2, "greedy", "lazy")
    assert (
        '"policy": "random"'
        in call(
            *("bench", model_path, "--policy", "random"), *("-p", 1, "-n", 0, "-r", 1, "-o", "json")
        ).out
    )
