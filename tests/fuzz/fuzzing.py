"""What the fuzzers share: inputs, the process that they run in, and what becomes of findings.

    python tests/fuzz/fuzz_templates.py --seconds 60 --seed 1

A fuzzer is a function that makes an input of `Choices` and gives it to mmrt. It may raise an
MmrtError: that is a refusal. Every other exception is a finding, and so are an input that takes
too long or too much memory, and the end of the process: it is a child, which the parent watches and
replaces. Choices are read from bytes. They are drawn at random; with atheris (`pip install
'mmrt[fuzz]'`) they follow what new code they reach in mmrt.

Of each kind of finding the first is kept in the folder --out: the bytes, which --reproduce FILE
runs again, and beside them what happened and the input in words.
"""

import argparse
import atexit
import ctypes
import faulthandler
import hashlib
import importlib.util
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
sys.path.append(str(TESTS.parent))  # for bench; last, so that mmrt is the installed one

HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
if HAS_ATHERIS:
    import atheris

    # Never left: whatever is imported after this module tells where it was.
    atheris.instrument_imports(include=["mmrt"]).__enter__()

from mmrt.errors import MmrtError  # noqa: E402

LARGEST_INPUT = 1 << 13  # bytes of choices
T = TypeVar("T")


class Choices:
    """Numbers, texts and decisions, read from bytes; zeros once these are used up, so that whoever
    repeats something while a chance comes true comes to an end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, n: int) -> bytes:
        taken = self._data[self._at : self._at + n]
        self._at += n
        return taken.ljust(n, b"\0")

    def below(self, n: int) -> int:
        return int.from_bytes(self.take(1 + n.bit_length() // 8), "little") % n

    def between(self, first: int, last: int) -> int:
        return first + self.below(last - first + 1)

    def chance(self, one_in: int) -> bool:
        return self.below(one_in) == 1

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def number(self) -> int:
        """One that code may not have expected."""
        near = self.pick(
            [0, 1, 2, 8, 31, 256, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 63, 1 << 64]
        )
        return self.pick([1, 1, 1, -1]) * (near + self.between(-2, 2))

    def text(self) -> str:
        pieces = ["a", "b", " ", "ab", "\n", "é", "▁", "Ġ", "\0", "😀", "<s>", "<0x41>", "\u0301"]
        pieces += ["<|im_end|>", "0", "  ", "\r", "\ufeff", "ﬁ", "￿", "'s", "Ā", "\u202e"]
        return "".join(self.pick(pieces) for _ in range(self.below(12)))

    def value(self, depth: int = 3) -> Any:
        """A value as JSON or metadata can hold it, of whatever kind."""
        kind = self.below(9 if depth else 6)
        if kind < 6:
            return [self.number(), self.text(), None, True, self.below(1000) / 7, float("nan")][
                kind
            ]
        if kind < 8:
            return [self.value(depth - 1) for _ in range(self.below(5))]
        return {self.text(): self.value(depth - 1) for _ in range(self.below(4))}

    def mutated(self, data: bytes) -> bytes:
        """`data` with a few bytes changed, cut out, put in or moved."""
        room = bytearray(data)
        for _ in range(self.between(1, 6)):
            at, n = self.below(len(room) + 1), self.below(9)
            match self.below(7):
                case 0 if at < len(room):
                    room[at] ^= 1 << self.below(8)
                case 1:
                    room[at : at + n] = self.take(n)
                case 2:
                    room[at:at] = self.take(n)
                case 3:
                    del room[at : at + n]
                case 4:
                    room[at : at + 4] = struct.pack("<q", self.number() % (1 << 63))[:4]
                case 5:
                    room[at : at + 8] = struct.pack("<Q", self.number() % (1 << 64))
                case 6 if self.chance(4):
                    del room[at:]
        return bytes(room)


def folder(on: str | None = None) -> Path:
    """A folder for inputs that are files, on this file system; removed when the fuzzer ends."""
    made, process = Path(tempfile.mkdtemp(prefix="mmrt-fuzz-", dir=on)), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in a child
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    return made


class _Board(ctypes.Structure):
    """Memory that the child shares with the parent: what it is doing."""

    _fields_ = (
        ("executions", ctypes.c_uint64),
        ("accepted", ctypes.c_uint64),
        ("findings", ctypes.c_uint64),
        ("begun", ctypes.c_double),  # the present input, in time.monotonic(); 0: there is none
        ("cpu", ctypes.c_double),  # seconds that the child had taken then
        ("length", ctypes.c_uint64),
        ("input", ctypes.c_ubyte * LARGEST_INPUT),
    )


def _cpu_seconds(process: int) -> float:
    """What a process has taken of all CPUs."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Fuzzer:
    """`one` runs one input. seconds: of a CPU that it may take, or ten times as long by the clock;
    memory: bytes that it may take, all in all."""

    def __init__(
        self,
        name: str,
        one: Callable[[Choices], object],
        seconds: float = 10.0,
        memory: int = 1 << 30,
    ) -> None:
        self.name = name
        self.one = one
        self.seconds = seconds
        self.memory = memory
        self.board = _Board.from_buffer(mmap.mmap(-1, ctypes.sizeof(_Board)))

    # ---- in the child ----

    def _limit(self) -> None:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        most = taken + self.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def run(self, data: bytes) -> None:
        board = self.board
        ctypes.memmove(board.input, data, len(data))
        board.length, board.cpu = len(data), _cpu_seconds(os.getpid())
        board.begun = time.monotonic()
        try:
            self.one(Choices(data))
            board.accepted += 1
        except MmrtError:
            pass
        except Exception as error:
            board.findings += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} {last.filename}:{last.lineno}"
            self._keep(kind, data, traceback.format_exc())
        board.executions += 1
        board.begun = 0

    def _child(self, seed: str, seconds: float, log: Path, corpus: str) -> None:
        with open(log, "w") as file:
            faulthandler.enable(file)
            self._limit()
            if HAS_ATHERIS:
                number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "little") >> 1
                options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={number}"]
                options += [
                    f"-max_len={LARGEST_INPUT}",
                    "-len_control=0",
                    "-timeout=1000000",
                    corpus,
                ]
                os.dup2(file.fileno(), 2)  # what libFuzzer reports
                atheris.Setup([self.name, *options], self.run)
                atheris.Fuzz()  # does not return
            end, draw = time.monotonic() + seconds, random.Random(seed)
            while time.monotonic() < end:
                self.run(draw.randbytes(draw.randrange(1 << draw.randint(4, 13))))

    # ---- in the parent ----

    def _keep(self, kind: str, data: bytes, what: str) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
        path = self.out / f"{stem}.bin"
        if path.exists():
            return
        path.write_bytes(data)
        (self.out / f"{stem}.txt").write_text(f"{kind}\n\n{what}\n", errors="backslashreplace")
        print(f"{self.name}: {kind}: kept as {path}", flush=True)

    def _is_late(self, child: int) -> bool:
        begun = self.board.begun  # read once: the child goes on
        taken = time.monotonic() - begun
        if not begun or taken < self.seconds:
            return False
        return taken > 10 * self.seconds or bool(
            _cpu_seconds(child) - self.board.cpu > self.seconds
        )

    def _watch(self, child: int, log: Path) -> bool:
        """Waits for the child to end; False if it did not end well."""
        kind = ""
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if not kind and self._is_late(child):
                kind = f"more than {self.seconds} s"
                os.kill(child, signal.SIGABRT)  # faulthandler tells where it is
            time.sleep(0.02)
        if status == 0:
            return True
        board = self.board
        if not board.begun:  # between two inputs: no finding of ours
            raise SystemExit(
                f"{self.name}: the child ended with status {status}\n{log.read_text()}"
            )
        told = log.read_text(errors="replace")
        places = [line.strip() for line in told.splitlines() if line.startswith("  File ")]
        kind = " ".join([kind or f"the process ended: {status}", *places[:1]])
        self._keep(kind, bytes(board.input[: board.length]), told)
        board.executions += 1
        board.findings += 1
        board.begun = 0
        return False

    def fuzz(self, seconds: float, seed: int) -> int:
        """Runs inputs for so long; the number of findings."""
        start, children = time.monotonic(), 0
        work = folder()
        corpus = work / "corpus"
        corpus.mkdir()
        while (left := start + seconds - time.monotonic()) > 0.5 or not children:
            child = os.fork()
            if child == 0:
                self._child(f"{seed}/{children}", left, work / "log", str(corpus))
                os._exit(0)
            children += 1
            if self._watch(child, work / "log"):
                break
        board = self.board
        print(
            f"{self.name}: {board.executions} executions in {time.monotonic() - start:.0f} s, "
            f"{board.accepted} of them accepted, {board.findings} findings"
        )
        return int(board.findings)

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=f"Fuzzes {self.name}.")
        parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
        parser.add_argument("--seed", type=int, default=0, help="other inputs for each (0)")
        parser.add_argument("--out", type=Path, default=Path("findings"), help="for findings")
        parser.add_argument("--reproduce", type=Path, metavar="FILE", help="runs one finding again")
        arguments = parser.parse_args()
        self.out = arguments.out
        if arguments.reproduce:
            self.one(Choices(arguments.reproduce.read_bytes()))
            return
        sys.exit(self.fuzz(arguments.seconds, arguments.seed) > 0)
