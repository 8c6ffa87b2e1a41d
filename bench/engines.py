"""The runtimes that are compared. Each runs in a process of its own, and is asked for one
measurement at a time, so that they can take turns."""

import ctypes
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

# Token ids that every vocabulary has; what they say does not matter to the time they take.
FIRST_TOKEN, N_TOKENS = 100, 1000


def tokens(n: int) -> list[int]:
    return [FIRST_TOKEN + i * 7 % N_TOKENS for i in range(n)]


class Engine(Protocol):
    version: str

    def prefill(self, n: int) -> float:
        """Seconds to read n tokens as one text."""

    def decode(self, n: int) -> float:
        """Seconds to read n tokens one by one."""


class Mmrt:
    """This runtime, through the same calls that generation makes."""

    def __init__(self, path: str, threads: int) -> None:
        import mmrt

        self.model = mmrt.Model(path, threads=threads)
        self.version = f"{mmrt.__version__} {self.model.isa}"

    def prefill(self, n: int) -> float:
        with self.model.sequence() as sequence:
            start = time.perf_counter()
            sequence.extend(tokens(n))
            return time.perf_counter() - start

    def decode(self, n: int) -> float:
        with self.model.sequence() as sequence:
            sequence.extend(tokens(1))
            start = time.perf_counter()
            for token in tokens(n):
                sequence.extend([token])
            return time.perf_counter() - start


class Limit:
    """The machine itself: what reading the weights that a token needs takes at least, and what the
    multiply-adds of a prompt take, each measured when asked for."""

    version = ""

    def __init__(self, path: str, threads: int) -> None:
        import mmrt

        self.file = mmrt.open(path)
        self.pool = mmrt.kernels.Pool(threads)
        self.roof = mmrt.kernels.roof
        tensors = dict(self.file)
        if "output.weight" in tensors:
            del tensors["token_embd.weight"]  # of which a token reads one row
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())
        head = tensors.get("output.weight", tensors.get("token_embd.weight"))
        matrices = [t for t in tensors.values() if len(t.shape) == 2 and t is not head]
        self.products = sum(t.shape[0] * t.shape[1] for t in matrices)

    def prefill(self, n: int) -> float:
        return n * self.products / self.roof("int8", None, self.pool)

    def decode(self, n: int) -> float:
        with memoryview(next(iter(self.file.values())).mapping) as pages:
            return n * self.nbytes / self.roof("read", pages, self.pool)


class LlamaCpp:
    """llama-cpp-python, through llama_decode itself, so that Python costs it nothing; mapped.

    repack: whether it may make its second, rearranged copy of the weights.
    """

    def __init__(self, path: str, threads: int, repack: bool) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.version = llama_cpp.__version__
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_silent, None)
        model_options = llama_cpp.llama_model_default_params()
        model_options.use_extra_bufts = repack
        self.model = llama_cpp.llama_load_model_from_file(path.encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch = 2048, 2048
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_new_context_with_model(self.model, options)

    def _read(self, ids: list[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)
        batch = self.api.llama_batch_get_one(array, len(ids))
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        self.api.llama_synchronize(self.context)

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self, n: int) -> float:
        self._clear()
        start = time.perf_counter()
        self._read(tokens(n))
        return time.perf_counter() - start

    def decode(self, n: int) -> float:
        self._clear()
        self._read(tokens(1))
        start = time.perf_counter()
        for token in tokens(n):
            self._read([token])
        return time.perf_counter() - start


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, data: object) -> None:
    pass


def _mmrt(path: str, threads: int) -> Engine:
    return Mmrt(path, threads)


def _limit(path: str, threads: int) -> Engine:
    return Limit(path, threads)


def _llama_mapped(path: str, threads: int) -> Engine:
    return LlamaCpp(path, threads, repack=False)


def _llama_repacked(path: str, threads: int) -> Engine:
    return LlamaCpp(path, threads, repack=True)


ENGINES: dict[str, Callable[[str, int], Engine]] = {
    "mmrt": _mmrt,
    "the machine's limit": _limit,
    "llama.cpp mapped": _llama_mapped,
    "llama.cpp repacked": _llama_repacked,
}


def _serve(connection: Connection, name: str, path: str, threads: int) -> None:
    engine = ENGINES[name](path, threads)
    connection.send(engine.version)
    while (request := connection.recv()) is not None:
        work, n = request
        connection.send(getattr(engine, work)(n))


class Worker:
    """An engine in its own process; a context manager."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, path, threads))
        self._process.start()
        theirs.close()
        self.version: str = self._connection.recv()

    def measure(self, work: str, n: int) -> float:
        self._connection.send((work, n))
        seconds: float = self._connection.recv()
        return seconds

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.send(None)
        self._process.join()
