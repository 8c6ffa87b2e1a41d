"""One copy of the weights for all processes: those that open a file, that are given its tensors,
and that are forked; and what is pickled, as a place in a file that has to be the same one."""

import gc
import mmap
import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from children import in_child
from machine import needs_line
from numpy.typing import NDArray

from mmrt import counters, formats
from mmrt.core.kernels import Pool, matmul
from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.errors import FileError
from mmrt.files.formats import TensorFile
from mmrt.run.model import Model

PAGE = mmap.PAGESIZE
ROWS, COLUMNS = 4096, 2048
SIZE = ROWS * COLUMNS * 4
METHODS = [
    m for m in ("fork", "spawn", "forkserver") if m in multiprocessing.get_all_start_methods()
]
SECONDS = 120  # for what should take two
pytestmark = pytest.mark.usefixtures("forking_is_meant")


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((ROWS, COLUMNS), np.float32)


def activations() -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal(COLUMNS, np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 32 MiB that nobody else has mapped."""
    np.save(tmp_path / "w.npy", weights())
    return tmp_path / "w.npy"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    np.save(tmp_path / "w.npy", np.arange(32, dtype=np.float32).reshape(4, 8))
    return tmp_path / "w.npy"


def set_of_two(folder: Path) -> Path:
    """The index of a set of two shards, "a" and "b"."""
    places = {}
    for name in "ab":
        header = f'{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}'.encode()
        places[name] = f"{name}.safetensors"
        data = len(header).to_bytes(8, "little") + header + name.encode() * 4
        (folder / places[name]).write_bytes(data)
    index = folder / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {places}}}'.replace("'", '"'))
    return index


# ---- what is pickled ----


def test_tensors_that_come_one_by_one_share_a_mapping(small: Path) -> None:
    with formats.open(small) as f:
        pickles = [pickle.dumps(f["w"]) for _ in range(3)]
        assert max(map(len, pickles)) < 500
    tensors = [pickle.loads(p) for p in pickles]
    assert len({id(t.mapping) for t in tensors}) == 1
    assert counters.of_file(small).size == PAGE
    tensors[0].mapping.close()  # the next one maps the file anew
    with pytest.raises(ValueError, match="is closed"):
        memoryview(tensors[1])
    again = pickle.loads(pickles[0])
    assert np.asarray(again)[3, 7] == 31
    del tensors, again
    gc.collect()
    assert counters.of_file(small).size == 0


def test_files_that_are_unpickled_are_closed_by_themselves(small: Path) -> None:
    with formats.open(small) as f:
        data = pickle.dumps((f, f["w"]))
    first, tensor = pickle.loads(data)
    second, _ = pickle.loads(data)
    first.close()
    assert first.closed and not second.closed and not tensor.mapping.closed
    second.close()
    assert np.asarray(tensor)[3, 7] == 31


def test_a_path_is_found_from_any_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    with formats.open(small.name) as f:
        assert f.path == small.name
        monkeypatch.chdir("/")
        assert np.asarray(pickle.loads(pickle.dumps(f["w"])))[3, 7] == 31


@pytest.fixture(params=["mapping", "tensor", "file"])
def part(request: pytest.FixtureRequest) -> Callable[[TensorFile], object]:
    """What is pickled of a file."""
    parts: dict[str, Callable[[TensorFile], object]] = {
        "mapping": lambda f: f.mappings[0], "tensor": lambda f: f["w"], "file": lambda f: f,
    }  # fmt: skip
    return parts[request.param]


def replace(path: Path) -> None:
    """Puts another file there, of the same size and time of change."""
    about, other = path.stat(), path.with_suffix(".new")
    other.write_bytes(bytes(about.st_size))
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as out:
        out.write(b"more")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (replace, "has been replaced since it was"),
    "deleted": (Path.unlink, "cannot be opened again: it has been deleted"),
    "grown": (grow, "has changed since it was"),
    "written": (touch, "has changed since it was"),
    "moved": (lambda path: path.rename(path.with_suffix(".old")), "cannot be opened again"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_gone_is_not_pickled(
    small: Path, part: Callable[[TensorFile], object], change: str
) -> None:
    act, words = CHANGES[change]
    with formats.open(small) as f:
        act(small)
        with pytest.raises(FileError, match=words) as caught:
            pickle.dumps(part(f))
        assert str(small) in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_unpickled_is_what_was_pickled(
    small: Path, part: Callable[[TensorFile], object], change: str
) -> None:
    act, words = CHANGES[change]
    with formats.open(small) as f:
        data = pickle.dumps(part(f))
        act(small)
        gone = change in ("deleted", "moved")
        with pytest.raises(FileError, match="No such file" if gone else words) as caught:
            pickle.loads(data)
        assert str(small) in str(caught.value)


def test_every_shard_of_a_set_has_to_be_the_same(tmp_path: Path) -> None:
    with formats.open(set_of_two(tmp_path)) as f:
        data = pickle.dumps(f)
        with pickle.loads(data) as copy:
            assert {name: bytes(memoryview(t)) for name, t in copy.items()} == {
                "a": b"aaaa", "b": b"bbbb",
            }  # fmt: skip
            assert copy.paths == f.paths
        replace(tmp_path / "b.safetensors")
        with pytest.raises(FileError, match=r"b\.safetensors has been replaced"):
            pickle.loads(data)
        with pytest.raises(FileError, match=r"b\.safetensors has been replaced"):
            pickle.dumps(f)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_file_without_a_name_is_not_pickled() -> None:
    with open(os.memfd_create("weights"), "wb") as memory:
        memory.write(bytes(4096))
        memory.flush()
        with Mapping(memory) as mapping:
            with pytest.raises(FileError, match=r"memfd:weights \(deleted\) cannot be opened"):
                pickle.dumps(mapping)
            with pytest.raises(FileError, match="cannot be opened again: it has been deleted"):
                pickle.dumps(Tensor(mapping, "t", "F32", (4,), 0))


def test_a_writable_mapping_is_the_same_file_whatever_is_written(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(4096))
    with Mapping(path, protection="rw") as mapping, pickle.loads(pickle.dumps(mapping)) as copy:
        with memoryview(mapping) as view:
            view[5] = 7
        mapping.flush()
        touch(path)
        with memoryview(copy) as view:
            assert view[5] == 7
        pickle.loads(pickle.dumps(mapping)).close()
        replace(path)
        with pytest.raises(FileError, match="has been replaced"):
            pickle.dumps(mapping)


# ---- one copy in memory ----


def product(tensor: Tensor) -> NDArray[np.float32]:
    return tensor @ activations()


def measure(given: Any, barrier: Any, out: Any) -> None:
    """In a process of its own: reads all weights, and tells what it then has of them in memory, at
    a moment when all processes have them."""
    try:
        before = counters.footprint().rss_anon or 0
        file = formats.open(given) if isinstance(given, str) else given
        tensor = file if isinstance(file, Tensor) else file["w"]
        y = product(tensor)
        barrier.wait(SECONDS)
        share = counters.of_file(tensor.mapping.path)
        grown = (counters.footprint().rss_anon or 0) - before
        barrier.wait(SECONDS)
        out.send((share.rss, share.pss, grown, y))
    except BaseException:
        barrier.abort()
        traceback.print_exc()
        raise


def joined(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_all_processes_share_one_copy(path: Path) -> None:
    needs_line("/proc/self/smaps", "Pss")
    with formats.open(path) as f:
        expected = product(f["w"])
        start = {
            "opens it": ("spawn", str(path)),
            "is given a file": ("spawn", f),
            "is given a tensor": ("spawn", f["w"]),
            "inherits it": ("fork", f),
            "inherits a tensor": ("fork", f["w"]),
        }
        barrier = multiprocessing.get_context("spawn").Barrier(len(start) + 1)
        processes, ends = [], {}
        for kind, (method, given) in start.items():
            context = multiprocessing.get_context(method)
            ends[kind], out = context.Pipe(duplex=False)
            process = context.Process(  # type: ignore[attr-defined]
                target=measure, args=(given, barrier, out)
            )
            process.start()
            processes.append(process)
        barrier.wait(SECONDS)
        mine = counters.of_file(path)
        barrier.wait(SECONDS)
        told = {kind: end.recv() for kind, end in ends.items()}
        joined(processes)

    for kind, (rss, pss, grown, y) in told.items():
        assert SIZE <= rss <= 1.01 * SIZE + 8192, kind
        assert pss <= 0.25 * SIZE, kind  # a sixth, were all alike
        assert grown < SIZE // 4, kind  # no copy of its own
        assert np.array_equal(y, expected), kind
    total = mine.pss + sum(pss for _, pss, _, _ in told.values())
    print(f"\n{len(told) + 1} processes: Rss {mine.rss + sum(t[0] for t in told.values())}, "
          f"Pss {total} in all, for {SIZE} bytes of weights")  # fmt: skip
    assert abs(total - SIZE) <= SIZE // 100


def generate(path: str, barrier: Any, out: Any) -> None:
    with Model(path, threads=1) as model:
        logits = model.logits(list(range(20)))
        barrier.wait(SECONDS)
        share = counters.of_file(path)
        barrier.wait(SECONDS)
        out.send((share.rss, share.pss, logits))


def test_models_in_several_processes_share_one_copy(tmp_path: Path) -> None:
    needs_line("/proc/self/smaps", "Pss")
    model = tiny_models.llama(
        n_layers=3, n_embd=512, n_ff=1024, n_heads=8, n_kv_heads=8, head_dim=64
    )
    path = model.write(tmp_path / "model.gguf")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    ends, processes = [], []
    for _ in range(3):
        end, out = context.Pipe(duplex=False)
        ends.append(end)
        processes.append(context.Process(target=generate, args=(str(path), barrier, out)))
        processes[-1].start()
    told = [end.recv() for end in ends]
    joined(processes)
    size = path.stat().st_size
    assert all(rss >= 0.9 * size for rss, _, _ in told)
    assert sum(pss for _, pss, _ in told) <= 1.01 * size
    assert all(np.array_equal(logits, told[0][2]) for _, _, logits in told)


# ---- workers ----


def rows(work: tuple[Tensor, int, int]) -> NDArray[np.float32]:
    """Rows of the product, from bytes that came as a place in a file."""
    tensor, first, end = work
    return (np.asarray(tensor)[first:end].astype(np.float64) @ activations()).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_processes_is_given_tensors(path: Path, method: str) -> None:
    with formats.open(path) as f:
        expected = product(f["w"])
        pieces = [(f["w"], first, first + 512) for first in range(0, ROWS, 512)]
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map_async(rows, pieces, chunksize=1).get(SECONDS)
            whole = pool.map_async(product, [f["w"]] * 4).get(SECONDS)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-3, atol=1e-3)
    assert all(np.array_equal(y, expected) for y in whole)


def test_a_forked_child_multiplies(path: Path) -> None:
    """Also one that is forked by a child, and after it the parent as before."""
    with formats.open(path) as f:
        expected = product(f["w"])  # the parent's threads run now

        def work(depth: int = 2) -> None:
            if depth:
                in_child(lambda: work(depth - 1))
            for _ in range(3):
                assert np.array_equal(product(f["w"]), expected)

        in_child(work)
        assert np.array_equal(product(f["w"]), expected)


def test_threads_of_a_forked_child_multiply_at_once(path: Path) -> None:
    with formats.open(path) as f:
        pool, x = Pool(3), activations()
        blocks = np.asarray(f["w"])[:64].tobytes()
        expected = matmul("F32", blocks, (64, COLUMNS), x, pool)

        def work() -> None:
            ready, wrong = threading.Barrier(8), []

            def one() -> None:
                ready.wait(SECONDS)
                for _ in range(20):
                    if not np.array_equal(matmul("F32", blocks, (64, COLUMNS), x, pool), expected):
                        wrong.append(1)

            threads = [threading.Thread(target=one) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong

        for _ in range(5):
            in_child(work)


def test_a_fork_in_the_middle_of_a_product(path: Path) -> None:
    """The child gets the pool of threads as it is just then, without its threads."""
    with formats.open(path) as f:
        expected = product(f["w"])
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                product(f["w"])

        def work() -> None:
            assert np.array_equal(product(f["w"]), expected)

        thread = threading.Thread(target=busy)
        thread.start()
        try:
            for _ in range(8):
                in_child(work)
        finally:
            stop.set()
            thread.join()


def test_a_model_goes_on_in_a_forked_child(tmp_path: Path) -> None:
    path = tiny_models.llama().write(tmp_path / "model.gguf")
    with Model(path, threads=2) as model:
        expected = model.logits([1, 2, 3])

        def work() -> None:
            assert np.array_equal(model.logits([1, 2, 3]), expected)
            model.close()

        in_child(work)
        assert np.array_equal(model.logits([1, 2, 3]), expected)
