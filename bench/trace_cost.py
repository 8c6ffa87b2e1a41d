"""What tracing costs a decode: `python -m bench.trace_cost MODEL.gguf ... [-n 32] [-r 40]`.

Token by token of one text, not watched, watched by layer and watched by operation take turns, so
that a slow moment of the machine strikes all alike. A round is n tokens for each; what counts is
the median over the rounds of a way's time divided by that of the unwatched one.

What the possibility of watching costs while nobody watches cannot be seen from within: --without
names a second build of mmrt (the folder that holds its package), made without it, whose decode then
takes turns with this one's, round by round.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from bench.engine import tokens

OFF, WATCHED, WITHOUT = "off", ("layers", "operations"), "without"

Sums = dict[str, float]  # seconds by way


@dataclass(frozen=True)
class Row:
    """One way on one model. ratio: its time divided by that of "off", median over the rounds."""

    model: str
    way: str
    ms_per_token: float  # median
    samples: list[float]
    ratio: float


class _Decoder:
    """A model in a process of its own, from the package in `home` (None: this one's)."""

    def __init__(self, path: str, threads: int, home: str | None) -> None:
        if home:
            sys.path.insert(0, home)
        import mmrt

        self._model = mmrt.Model(path, threads=threads)
        self._sequence = self._model.sequence()

    def round(self, watched: bool, n: int) -> Sums:
        """Decodes n tokens in each way, in turns."""
        if not watched:
            return {OFF: sum(self._seconds(token) for token in self._tokens(n))}
        from mmrt import trace

        model = self._model
        with ExitStack() as stack:
            steps: dict[str, Callable[..., None]] = {OFF: model.program.run}
            for way in WATCHED:
                recording = trace.recording(model, operations=way == "operations")
                steps[way] = stack.enter_context(recording).step
            sums = dict.fromkeys(steps, 0.0)
            for token in self._tokens(n):
                for way, step in steps.items():
                    model.run_step = step
                    sums[way] += self._seconds(token)
        return sums

    def _tokens(self, n: int) -> list[int]:
        self._sequence.truncate(0)
        self._sequence.extend(tokens(1))
        return tokens(n)

    def _seconds(self, token: int) -> float:
        start = time.perf_counter()
        self._sequence.extend([token])
        return time.perf_counter() - start


def _serve(connection: Connection, path: str, threads: int, home: str | None) -> None:
    decoder = _Decoder(path, threads, home)
    while (request := connection.recv()) is not None:
        connection.send(decoder.round(*request))


def _worker(stack: ExitStack, *arguments: object) -> Callable[[bool, int], Sums]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, *arguments))
    process.start()
    stack.callback(process.join)
    stack.callback(ours.send, None)

    def measure(watched: bool, n: int) -> Sums:
        ours.send((watched, n))
        sums: Sums = ours.recv()
        return sums

    return measure


def compare(path: str, n: int, rounds: int, threads: int, without: str | None) -> list[Row]:
    found: list[Sums] = []
    bare: list[tuple[float, float]] = []  # without, and off beside it
    with ExitStack() as stack:
        here = _worker(stack, path, threads, None)
        there = _worker(stack, path, threads, without) if without else None
        for _ in range(rounds + 1):
            found.append(here(True, n))
            if there:
                bare.append((there(False, n)[OFF], here(False, n)[OFF]))
    del found[0], bare[:1]  # which warmed caches and clocks up
    pairs = {way: [(sums[way], sums[OFF]) for sums in found] for way in (OFF, *WATCHED)}
    if bare:
        pairs[WITHOUT] = bare
    return [
        Row(
            Path(path).name,
            way,
            round(statistics.median(1e3 * own / n for own, _ in timed), 4),
            [round(1e3 * own / n, 4) for own, _ in timed],
            round(statistics.median(own / off for own, off in timed), 5),
        )
        for way, timed in pairs.items()
    ]


def main() -> None:
    import mmrt

    parser = argparse.ArgumentParser(prog="bench.trace_cost", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("-n", type=int, default=32, help="tokens a way and round (default 32)")
    parser.add_argument("-r", type=int, default=40, help="rounds (default 40)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--without", help="folder of a build without marks")
    parser.add_argument("-o", type=Path, help="also write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for path in arguments.models:
        rows += compare(path, arguments.n, arguments.r, arguments.t, arguments.without)
    cpu = mmrt.cpu_info()
    print(f"{cpu.model}, {arguments.t} threads, {arguments.r} rounds of {arguments.n} tokens\n")
    print("| model | watched | ms a token | against off |\n|---|---|---:|---:|")
    for row in rows:
        print(f"| {row.model} | {row.way} | {row.ms_per_token:.3f} | {row.ratio - 1:+.2%} |")
    if arguments.o:
        machine = {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()}
        about = {"machine": machine, "threads": arguments.t, "tokens": arguments.n}
        document = {**about, "rows": [asdict(row) for row in rows]}
        arguments.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
