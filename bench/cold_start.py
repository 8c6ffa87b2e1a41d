"""How long the first token takes with the weights still on the disk, under each paging policy and
with llama-cpp-python: `python -m bench.cold_start MODEL.gguf [-p 16] [-n 4] [-r 3]`.

Each start is a process of its own, with its modules imported. Before it, the file is evicted and
looked at: none of it may be in memory. What is timed begins with opening the model and ends with
the logits of a prompt; the tokenizer is made in between. The engines take turns in every round,
each time in another order: what one leaves behind in the disk's queues strikes the next. In each
round the disk is measured too, by reading the whole file past the page cache.
"""

import argparse
import json
import mmap
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import mmrt
from bench.engine import Engine
from bench.engines import ENGINES, Mmrt
from mmrt.files.policies import POLICIES

PEER = "llama.cpp mapped"

# So slow that the first round has to do.
ONCE = ("random",)


def _ours(policy: str) -> Callable[[str, int], Engine]:
    def start(path: str, threads: int) -> Engine:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that numa finds one node
            engine = Mmrt(path, threads, policy)
        assert engine.model.tokenizer  # the peer has read its own by now
        return engine

    return start


STARTS: dict[str, Callable[[str, int], Engine]] = {
    **{policy: _ours(policy) for policy in POLICIES},
    **{name: ENGINES[name].start for name in (PEER, "llama.cpp repacked")},
}


class Start(NamedTuple):
    seconds: float  # to the first token
    bytes_read: int  # until then
    major_faults: int  # until then
    next_ms: float  # a token after it


class Disk(NamedTuple):
    seconds: float
    bytes_read: int


@dataclass(frozen=True)
class Row:
    """Medians of one engine's starts. ratio: the peer's seconds divided by its own, by rounds."""

    engine: str
    seconds: float
    bytes_read: float
    major_faults: float
    next_ms: float
    ratio: float
    samples: list[Start]


def _serve(
    connection: Connection, name: str, path: str, threads: int, prompt: int, after: int
) -> None:
    from mmrt import counters

    for module in ("mmrt.run.model", "llama_cpp"):  # for all alike
        import_module(module)
    before, began = counters.reads(), time.perf_counter()
    engine = STARTS[name](path, threads)
    engine.prefill(prompt)
    seconds, cost = time.perf_counter() - began, counters.reads() - before
    following = 1e3 * engine.decode(after) / after
    connection.send(Start(seconds, cost.read_bytes or 0, cost.major_faults, following))


def start(name: str, path: str, threads: int, prompt: int, after: int) -> Start:
    """One cold start in a new process."""
    evict(path)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, name, path, threads, prompt, after))
    process.start()
    theirs.close()
    found: Start = ours.recv()
    process.join()
    return found


def evict(path: str) -> None:
    for _ in range(100):
        with mmrt.open(path) as file:
            left = file.evict().after
        if not left.resident:
            break
        time.sleep(0.02)  # pages that are just being read stay
    if left.source != "mincore" or left.resident > 0:
        raise SystemExit(f"{path}: {left.resident} pages stay in memory, by {left.source}")


def read_directly(path: str, piece: int = 4 << 20, readers: int = 4) -> Disk:
    """The whole file, in pieces that as many threads read past the page cache, into huge pages: the
    disk takes twice as long to fill scattered small ones."""
    size = os.path.getsize(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(reader: int) -> None:
        with mmap.mmap(-1, piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
            with suppress(OSError):  # a kernel without them
                buffer.madvise(mmap.MADV_HUGEPAGE)
            for at in range(reader * piece, size, readers * piece):
                os.preadv(fd, [buffer], at)

    began = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    seconds = time.perf_counter() - began
    os.close(fd)
    return Disk(seconds, size)


def measure(
    path: str, names: list[str], rounds: int, threads: int, prompt: int, after: int
) -> tuple[list[Row], list[Disk]]:
    found: dict[str, list[Start]] = {name: [] for name in names}
    disk = []
    for number in range(rounds):
        disk.append(read_directly(path))
        turn = [name for name in names if number == 0 or name not in ONCE]
        for name in random.Random(number).sample(turn, len(turn)):
            found[name].append(start(name, path, threads, prompt, after))
    peer = [sample.seconds for sample in found[PEER]]
    rows = []
    for name, samples in found.items():
        ratios = [theirs / own.seconds for theirs, own in zip(peer, samples, strict=False)]
        medians = [statistics.median(column) for column in zip(*samples, strict=True)]
        seconds, n_bytes, faults, next_ms = medians
        ratio = statistics.median(ratios)
        rows.append(Row(name, seconds, n_bytes, faults, next_ms, ratio, samples))
    return rows, disk


def table(rows: list[Row], disk: list[Disk]) -> str:
    lines = [
        f"| | first token, s | read, GB | major faults | next, ms | {PEER} / it |",
        "|---|---:|---:|---:|---:|---:|",
        f"| the disk alone | {statistics.median(d.seconds for d in disk):.2f} "
        f"| {disk[0].bytes_read / 1e9:.2f} | | | |",
    ]
    lines += [
        f"| {r.engine} | {r.seconds:.2f} | {r.bytes_read / 1e9:.2f} | {r.major_faults:.0f} "
        f"| {r.next_ms:.0f} | {r.ratio:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.cold_start", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file that memory has room for twice")
    parser.add_argument("-p", type=int, default=16, help="tokens of the prompt (default 16)")
    parser.add_argument("-n", type=int, default=4, help="tokens timed afterwards (default 4)")
    parser.add_argument("-r", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument(
        "--only", nargs="+", choices=STARTS, metavar="NAME", help="leave others out"
    )
    parser.add_argument("-o", type=Path, help="also write the rows as JSON to this file")
    arguments = parser.parse_args()
    names = [n for n in STARTS if not arguments.only or n in (*arguments.only, PEER)]
    rows, disk = measure(arguments.model, names, arguments.r, arguments.t, arguments.p, arguments.n)
    cpu = mmrt.cpu_info()
    ahead = mmrt.os_info(arguments.model).read_ahead
    print(f"{cpu.model}, {arguments.t} threads, read-ahead {ahead}, {arguments.r} rounds\n")
    print(table(rows, disk))
    if arguments.o:
        machine = {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()}
        document = {
            "machine": {**machine, "read_ahead": ahead},
            "model": {"name": Path(arguments.model).name, "bytes": disk[0].bytes_read},
            "threads": arguments.t,
            "prompt": arguments.p,
            "disk": [one._asdict() for one in disk],
            "rows": [
                {**asdict(row), "samples": [one._asdict() for one in row.samples]} for row in rows
            ],
        }
        arguments.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
