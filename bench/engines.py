"""The runtimes that are compared. Each runs in a process of its own, and is asked for one
measurement at a time, so that they can take turns."""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.engine import Engine, tokens
from bench.llama import ik_llama_cpp, llama_cpp

if TYPE_CHECKING:
    from mmrt.core.program import Program


class Mmrt:
    """This runtime, through the same calls that generation makes."""

    def __init__(self, path: str, threads: int, policy: str = "lazy") -> None:
        import mmrt

        self.model = mmrt.Model(path, threads=threads, policy=policy)
        self.version = f"{mmrt.__version__} {self.model.isa}"
        self._text = self.model.sequence()

    def prefill(self, n: int) -> float:
        with self.model.sequence() as sequence:
            start = time.perf_counter()
            sequence.extend(tokens(n))
            return time.perf_counter() - start

    def decode(self, n: int, depth: int = 1) -> float:
        if depth == 1:
            self._text.truncate(0)
        if len(self._text) < depth:
            self._text.extend(tokens(depth)[len(self._text) :])
        start = time.perf_counter()
        for token in tokens(n):
            self._text.extend([token])
        return time.perf_counter() - start


class Limit:
    """The machine itself: what reading the weights that a token needs takes at least, and what the
    multiply-adds of a prompt take, each measured when asked for. Of experts, those count that a
    token goes to."""

    version = ""

    def __init__(self, path: str, threads: int) -> None:
        import mmrt

        self.file = mmrt.open(path)
        self.pool = mmrt.kernels.Pool(threads)
        self.roof = mmrt.kernels.roof
        with mmrt.Model(path, threads=threads) as model:
            self.nbytes, self.products = needs(model.program)

    def prefill(self, n: int) -> float:
        return n * self.products / self.roof("int8", None, self.pool)

    def decode(self, n: int, depth: int = 1) -> float:
        with memoryview(next(iter(self.file.values())).mapping) as pages:
            return n * self.nbytes / self.roof("read", pages, self.pool)


def needs(program: "Program") -> tuple[int, int]:
    """What a token needs: bytes of weights that are read for it, and the multiply-adds of one whose
    logits nobody wants."""
    used = max((n for _, n in program.routes), default=0)
    nbytes = products = 0
    for what, tensors in program.operations:
        for tensor in tensors if what != "embed" else ():  # of which a token reads one row
            is_matrix = tensor.name.endswith(".weight") and tensor.ndim > 1
            # Matrices of experts are stacks, and their biases the rows of a matrix.
            is_stack = tensor.ndim == 3 or (tensor.ndim == 2 and not is_matrix)
            taken, of = (used, tensor.shape[0]) if is_stack else (1, 1)
            nbytes += tensor.nbytes * taken // of
            if is_matrix and what != "logits":
                products += tensor.size * taken // of
    return nbytes, products


def installed() -> list[str]:
    """The names of those engines whose packages are there."""
    return [name for name, engine in ENGINES.items() if find_spec(engine.package)]


OURS, LIMIT = "mmrt", "the machine's limit"


class Maker(NamedTuple):
    """How an engine is started on a model's file with so many threads, and what it needs."""

    start: Callable[[str, int], Engine]
    package: str


ENGINES = {
    OURS: Maker(Mmrt, "mmrt"),
    LIMIT: Maker(Limit, "mmrt"),
    "llama.cpp mapped": Maker(partial(llama_cpp, repack=False), "llama_cpp"),
    "llama.cpp repacked": Maker(partial(llama_cpp, repack=True), "llama_cpp"),
    "ik_llama.cpp mapped": Maker(partial(ik_llama_cpp, repack=False), "ik_llama_cpp"),
    "ik_llama.cpp repacked": Maker(partial(ik_llama_cpp, repack=True), "ik_llama_cpp"),
}


class EngineError(Exception):
    """An engine that could not take a model, or died of it."""


def _serve(connection: Connection, name: str, path: str, threads: int) -> None:
    try:
        engine = ENGINES[name].start(path, threads)
    except Exception as error:
        connection.send(EngineError(f"{name}: {error}"))
        return
    connection.send(engine.version)
    while (request := connection.recv()) is not None:
        work, arguments = request
        connection.send(getattr(engine, work)(*arguments))


class Worker:
    """An engine in its own process; a context manager. EngineError if it cannot take the model."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, path, threads))
        self._process.start()
        theirs.close()
        try:
            answer = self._connection.recv()
        except EOFError:
            answer = EngineError(f"{name}: its process ended as it loaded {path}")
        if isinstance(answer, EngineError):
            self._process.join()
            raise answer
        self.version: str = answer

    def measure(self, work: str, *arguments: int) -> float:
        """Seconds. EngineError if its process ends."""
        try:
            self._connection.send((work, arguments))
            seconds: float = self._connection.recv()
        except (EOFError, OSError):
            raise EngineError(f"{self._name}: its process ended in {work}") from None
        return seconds

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(OSError):  # of one that has ended
            self._connection.send(None)
        self._process.join()
