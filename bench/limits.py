"""A model far larger than memory, beside llama.cpp, under a hard limit:
`python -m bench.limits MODEL.gguf --limit 2200MiB`.

Each run is a process of its own in a memory cgroup with that limit and no swap, from its first
instruction on; the file is evicted first. The engines take turns in every round, and the disk is
measured by O_DIRECT reads between the tokens of each run. `--sweep` goes through ten limits
instead, from a fifth of the file to a tenth more than it, and `-p 256` measures a prompt too. Files
of any shape: `python -m bench.make_model 8B Q4_0 8b.gguf`.

The bound is that of arithmetic: of S bytes of weights that a token reads, P are kept in memory and
the others come from the disk at B bytes a second, while a token computes for C seconds:
max((S - P) / B, C). B is the disk's speed in that run, C is measured without a limit.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from subprocess import PIPE
from typing import Any

import mmrt
from bench import cgroups
from bench.cold_start import evict
from bench.limited import (
    BUNDLED,
    ENGINES,
    NAIVE,
    OURS,
    PEER,
    PREDICTED,
    bundle_of,
    predictor_of,
)
from mmrt.memory.sizes import human, parse_size
from mmrt.sight.pictures import drawing
from mmrt.sight.pictures.curves import Curve, Mark, draw
from mmrt.sight.pictures.drawing import Drawing

MIB = 1 << 20
_SWEEP = [0.2 + 0.1 * i for i in range(10)]


@dataclass
class Run:
    """One process. Bytes, bytes a second, seconds."""

    engine: str
    limit: int | None
    disk: float = 0.0
    ended: str = "well"
    peak: int | None = None
    kills: int = 0
    refaults: int = 0
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens a second, by the median token."""
        seconds = self.found.get("seconds")
        return 1 / statistics.median(seconds) if seconds else 0.0

    @property
    def mean_rate(self) -> float:
        seconds = self.found.get("seconds")
        return len(seconds) / sum(seconds) if seconds else 0.0

    def bound(self, compute: float) -> float:
        """Tokens a second that arithmetic permits with what this run kept."""
        missing = self.found["weights"] - self.found["kept"]
        return 1 / max(float(missing / self.disk), compute)


class Disk:
    """Reads a file past the page cache, in pieces all over it, a burst at a time."""

    def __init__(self, path: str, piece: int = 8 << 20, readers: int = 8) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._pieces = os.path.getsize(path) // piece
        private = MAP_PRIVATE | MAP_ANONYMOUS  # or it has no huge pages
        self._buffers = [mmap(-1, 2 * piece, private) for _ in range(readers)]
        for buffer in self._buffers:
            buffer.madvise(MADV_HUGEPAGE)
            buffer.write(bytes(2 * piece))
        self._pool = ThreadPoolExecutor(readers)
        self._piece, self._next = piece, 0
        self.n_bytes, self.seconds = 0, 0.0

    def burst(self, n_bytes: int = 512 << 20) -> None:
        n = n_bytes // self._piece // len(self._buffers)

        def read(number: int) -> int:
            into = memoryview(self._buffers[number])[: self._piece]
            places = (self._next + number * n + i for i in range(n))
            return sum(
                os.preadv(self._file, [into], place % self._pieces * self._piece)
                for place in places
            )

        began = time.perf_counter()
        self.n_bytes += sum(self._pool.map(read, range(len(self._buffers))))
        self.seconds += time.perf_counter() - began
        self._next += 7919  # elsewhere the next time

    @property
    def speed(self) -> float:
        """Bytes a second, of all bursts."""
        return self.n_bytes / self.seconds

    def close(self) -> None:
        self._pool.shutdown()
        os.close(self._file)


def run(engine: str, path: str, limit: int | None, prompt: int, n: int, threads: int) -> Run:
    numbers = [str(number) for number in (prompt, n, threads)]
    return start("bench.limited", engine, path, limit, numbers)


def start(module: str, engine: str, path: str, limit: int | None, rest: list[str]) -> Run:
    """A process of its own: `python -m MODULE ENGINE PATH REST...`, which prints JSON; whenever it
    writes an empty line, the disk is measured."""
    command = [sys.executable, "-m", module, engine, path, *rest]
    evict(path)
    if engine in (BUNDLED, NAIVE, PREDICTED):
        evict(bundle_of(path))
    if engine == PREDICTED:
        evict(predictor_of(path))
    result = Run(engine, limit)
    if limit is None:
        _talk(command, path, result)
    else:
        with cgroups.MemoryCgroup(limit) as group:
            _talk(group.command(command), path, result)
            result.peak, result.kills, result.refaults = group.peak, group.kills, group.refaults
    if result.kills:
        result.ended = "killed"
    say(result)
    return result


def _talk(command: list[str], path: str, result: Run) -> None:
    disk, line = Disk(path), ""
    disk.burst()
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stderr
        for line in process.stdout:
            if line == "\n":
                disk.burst()
                process.stdin.write("\n")
                process.stdin.flush()
        said = process.stderr.read().strip().splitlines()
    result.disk = disk.speed
    disk.close()
    if process.returncode:
        result.ended = said[-1] if said else f"ended by {process.returncode}"
    else:
        result.found = json.loads(line)


def say(result: Run) -> None:
    at = human(result.limit) if result.limit else "no limit"
    how = f"{result.mean_rate:.3f} tokens/s" if result.found else result.ended
    disk = f"disk {result.disk / 1e9:.2f} GB/s"
    print(f"  {at}: {result.engine}: {how}; {disk}", file=sys.stderr, flush=True)


# ---- one limit, several rounds ----


def compare(path: str, limit: int, engines: list[str], prompt: int, n: int, rounds: int,
            threads: int) -> list[Run]:  # fmt: skip
    runs: list[Run] = []
    for number in range(rounds):
        for engine in engines:
            refused = [r for r in runs if r.engine == engine and not r.found]
            if not refused:  # what has not run once need not be tried again
                runs.append(run(engine, path, limit, prompt if number == 0 else 0, n, threads))
    return runs


def headline(runs: list[Run], free: Run, limit: int) -> list[tuple[str, str]]:
    """The figures of one limit; free: our run without one."""
    ours, peers = of(runs, OURS), of(runs, PEER)
    compute = 1 / free.rate
    found = [r.found for r in ours]
    rows = [
        ("mmrt, tokens/s", f"{_median(r.mean_rate for r in ours):.3f}"),
        ("disk", f"{_median(r.disk for r in ours) / 1e9:.2f} GB/s"),
        ("bound max((S-P)/B, C), tokens/s", f"{_median(r.bound(compute) for r in ours):.3f}"),
        ("mmrt / bound", f"{_median(r.mean_rate / r.bound(compute) for r in ours):.2f}"),
        ("kept of the weights", f"{_median(f['kept'] / f['weights'] for f in found):.1%}"),
        ("bytes read a token / (S-P)", f"{_median(_excess(f) for f in found):.3f}"),
        ("waiting for the disk", f"{_median(f['stall'] for f in found):.0%} of the time"),
        ("peak of the cgroup", f"{max(r.peak or 0 for r in ours) / MIB:.0f} of "
                               f"{limit / MIB:.0f} MiB"),
        ("kills", str(sum(r.kills for r in runs if r.engine == OURS))),
        ("the same logits as without a limit", "yes" if _same(ours, free) else "NO"),
    ]  # fmt: skip
    rows += _of_neurons(ours, of(runs, BUNDLED), free)
    rows += _of_window(of(runs, NAIVE), of(runs, BUNDLED), free)
    rows += _of_predictor(ours, of(runs, PREDICTED))
    if peers:
        ratios = [a.mean_rate / b.mean_rate for a, b in zip(ours, peers, strict=False)]
        rows.append((f"{PEER}, tokens/s", f"{_median(r.mean_rate for r in peers):.3f}"))
        rows.append((f"mmrt / {PEER}", f"{_median(ratios):.2f}"))
    prompts = {r.engine: r.found["prefill"] for r in runs if r.found.get("prefill")}
    if OURS in prompts:
        rows += [(f"prompt, {name}", f"{seconds:.1f} s") for name, seconds in prompts.items()]
        if PEER in prompts:
            rows.append((f"prompt, mmrt / {PEER}", f"{prompts[PEER] / prompts[OURS]:.2f}"))
    rows += [(r.engine, f"{r.ended} under this limit") for r in runs if not r.found]
    return rows


def _of_neurons(ours: list[Run], bundled: list[Run], free: Run) -> list[tuple[str, str]]:
    """How reading neurons on demand compares with streaming the same matrices."""
    if not bundled:
        return []
    ratios = [a.mean_rate / b.mean_rate for a, b in zip(bundled, ours, strict=False)]
    neurons = [r.found["neurons"] for r in bundled if r.found.get("neurons")]
    hits = [each["found"] / each["wanted"] for each in neurons if each["wanted"]]
    read = [r.found["read"] / MIB for r in bundled]
    return [
        (f"{BUNDLED}, tokens/s", f"{_median(r.mean_rate for r in bundled):.3f}"),
        (f"{BUNDLED} / mmrt", f"{_median(ratios):.2f}"),
        ("neurons found in memory", f"{_median(hits):.1%}"),
        ("read a token, with a bundle", f"{_median(read):.0f} MiB"),
        ("the same logits with a bundle", "yes" if _same(bundled, free) else "NO"),
    ]


def _of_window(naive: list[Run], bundled: list[Run], free: Run) -> list[tuple[str, str]]:
    """What it is worth that neurons stay: beside a run in which each token reads its own anew."""
    if not naive:
        return []
    ratios = [a.mean_rate / b.mean_rate for a, b in zip(bundled, naive, strict=False)]
    read = [r.found["read"] / MIB for r in naive]
    return [
        (f"{NAIVE}, tokens/s", f"{_median(r.mean_rate for r in naive):.3f}"),
        (f"{BUNDLED} / {NAIVE}", f"{_median(ratios):.2f}" if ratios else "-"),
        ("read a token, without a window", f"{_median(read):.0f} MiB"),
        ("the same logits without a window", "yes" if _same(naive, free) else "NO"),
    ]


def _of_predictor(ours: list[Run], predicted: list[Run]) -> list[tuple[str, str]]:
    """What it is worth to read nothing but neurons that a predictor names."""
    if not predicted:
        return []
    ratios = [a.mean_rate / b.mean_rate for a, b in zip(predicted, ours, strict=False)]
    limited = [r.found for r in predicted if r.found.get("neurons")]
    neurons = [(found["neurons"], len(found["seconds"])) for found in limited]
    named = [each["wanted"] / n for each, n in neurons]
    hits = [each["found"] / each["wanted"] for each, _ in neurons if each["wanted"]]
    read = [r.found["read"] / MIB for r in predicted]
    return [
        (f"{PREDICTED} (lossy), tokens/s", f"{_median(r.mean_rate for r in predicted):.3f}"),
        (f"{PREDICTED} / mmrt", f"{_median(ratios):.2f}" if ratios else "-"),
        ("neurons named a token", f"{_median(named):.0f}" if named else "-"),
        ("of these found in memory", f"{_median(hits):.1%}" if hits else "-"),
        ("read a token, with a predictor", f"{_median(read):.0f} MiB"),
    ]


def of(runs: list[Run], engine: str) -> list[Run]:
    return [r for r in runs if r.engine == engine and r.found]


def _same(runs: list[Run], free: Run) -> bool:
    """Compares as far as both went: only the first round reads the prompt."""
    pairs = [zip(r.found["answers"], free.found["answers"], strict=False) for r in runs]
    return bool(runs) and all(a == b for pair in pairs for a, b in pair)


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values) or [0.0])


def _excess(found: dict[str, Any]) -> float:
    missing = found["weights"] - found["kept"]
    return float(found["read"] / missing) if missing else 1.0


# ---- a sweep ----


def sweep(path: str, engines: list[str], n: int, threads: int) -> list[Run]:
    size = os.path.getsize(path)
    return [
        run(engine, path, int(part * size) // MIB * MIB, 0, n, threads)
        for part in _SWEEP
        for engine in engines
    ]


def sweep_rows(runs: list[Run], free: Run) -> list[tuple[str, ...]]:
    compute, ours = 1 / free.rate, of(runs, OURS)
    with_peer = any(r.engine == PEER for r in runs)
    head = ("limit", "mmrt, tokens/s", "bound", "kept", "peak", "kills", PEER)
    rows: list[tuple[str, ...]] = [head]
    for r in ours:
        peers = [p for p in of(runs, PEER) if p.limit == r.limit]
        rows.append(
            (
                f"{(r.limit or 0) / MIB:.0f} MiB",
                f"{r.mean_rate:.2f}",
                f"{r.bound(compute):.2f}",
                f"{r.found['kept'] / r.found['weights']:.0%}",
                f"{(r.peak or 0) / MIB:.0f} MiB",
                str(r.kills),
                f"{peers[0].mean_rate:.2f}" if peers else "does not run",
            )
        )
    rows.append(("none", f"{free.mean_rate:.2f}", "", "100%", "", "", ""))
    return rows if with_peer else [row[:-1] for row in rows]


def picture(path: str, runs: list[Run], free: Run) -> Drawing:
    gib, compute = 1 << 30, 1 / free.rate
    ours, peers = of(runs, OURS), of(runs, PEER)
    curves = [
        Curve("mmrt", [((r.limit or 0) / gib, r.mean_rate) for r in ours]),
        Curve("bound", [((r.limit or 0) / gib, r.bound(compute)) for r in ours], dots=False),
        Curve(PEER, [((r.limit or 0) / gib, r.mean_rate) for r in peers]),
    ]
    return draw(
        f"{Path(path).name} under a limit on memory",
        "limit, GiB",
        "tokens a second",
        [curve for curve in curves if curve.points],
        [Mark(os.path.getsize(path) / gib, "the file's size")],
    )


# ---- the program ----


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.limits", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file on the disk to be measured")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--limit", type=parse_size, metavar="SIZE", help="such as 2200MiB")
    what.add_argument("--sweep", action="store_true", help="ten limits, and a picture")
    parser.add_argument("-n", type=int, default=8, help="tokens that are timed (default 8)")
    parser.add_argument("-p", type=int, default=0, help="tokens of a prompt (default: none)")
    parser.add_argument("-r", type=int, default=3, help="rounds at one limit (default 3)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, metavar="NAME",
        default=[OURS, PEER] if find_spec("llama_cpp") else [OURS],
        help=f"default: {OURS}, and {PEER} if it is installed; all: {', '.join(ENGINES)}",
    )  # fmt: skip
    parser.add_argument("-o", type=Path, help="also write all runs as JSON to this file")
    parser.add_argument("--png", type=Path, help="the sweep's picture")
    a = parser.parse_args()
    cgroups.require()
    free = run(OURS, a.model, None, a.p, a.n, a.t)
    if not free.found:
        raise SystemExit(f"mmrt without a limit: {free.ended}")
    cpu = mmrt.cpu_info()
    print(f"{cpu.model}, {a.t} threads; {Path(a.model).name}, {human(os.path.getsize(a.model))}\n")
    if a.sweep:
        runs = sweep(a.model, a.engines, a.n, a.t)
        print(markdown(sweep_rows(runs, free)))
        if a.png:
            a.png.write_bytes(drawing.png(picture(a.model, runs, free)))
    else:
        runs = compare(a.model, a.limit, a.engines, a.p, a.n, a.r, a.t)
        print(markdown([(f"limit of {human(a.limit)}", ""), *headline(runs, free, a.limit)]))
    if a.o:
        document = {
            "machine": {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()},
            "model": {"name": Path(a.model).name, "bytes": os.path.getsize(a.model)},
            "threads": a.t,
            "prompt": a.p,
            "without_limit": asdict(free),
            "runs": [asdict(r) for r in runs],
        }
        a.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
