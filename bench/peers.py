"""mmrt beside its peers on the same files: `python -m bench.peers MODEL.gguf ... [-p 512] [-n 64]`.

The engines take turns in every round, so that a slow moment of the machine strikes all alike; what
counts is the median of the rounds' ratios. Install the peers with `pip install '.[peers]'`; the
wheel of ik-llama-cpp-python is for AVX2, for more it is built where it is to run:
`CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary ik-llama-cpp-python ik-llama-cpp-python`.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import mmrt
from bench import bars
from bench.engines import LIMIT, OURS, EngineError, Worker, installed
from mmrt.sight.pictures.drawing import svg


@dataclass(frozen=True)
class Row:
    """One engine's rounds on one model and kind of work.

    ratio: ours divided by its rate. share: its rate divided by the machine's limit. Both are taken
    within each round, and are the median over the rounds.
    """

    model: str
    work: str
    n: int
    depth: int  # tokens before these
    engine: str
    version: str
    tokens_per_second: float  # median
    samples: list[float]
    ratio: float | None  # None: ours did not run
    share: float | None


Rates = dict[tuple[str, str], list[float]]  # tokens a second by round, of a kind of work and engine


def compare(
    path: str, work: dict[str, tuple[int, ...]], rounds: int, threads: int, engines: Sequence[str]
) -> list[Row]:
    """A peer that cannot take the model, or dies of it, is left out, and said so; EngineError if
    mmrt cannot."""
    rates: Rates = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in engines:
            try:
                workers[name] = stack.enter_context(Worker(name, path, threads))
            except EngineError as error:
                if name in (OURS, LIMIT):
                    raise
                print(f"bench.peers: left out: {error}", file=sys.stderr)
        for round in range(rounds + 1):
            for kind, arguments in work.items():
                for name, worker in list(workers.items()):
                    try:
                        rate = arguments[0] / worker.measure(kind, *arguments)
                    except EngineError as error:
                        if name in (OURS, LIMIT):
                            raise
                        print(f"bench.peers: left out: {error}", file=sys.stderr)
                        del workers[name]
                        continue
                    if round:  # the first warms caches and clocks up
                        rates.setdefault((kind, name), []).append(rate)
        return [
            Row(
                Path(path).name,
                kind,
                arguments[0],
                sum(arguments[1:]),
                name,
                worker.version,
                statistics.median(rates[kind, name]),
                rates[kind, name],
                ratio(rates, (kind, OURS), (kind, name)),
                ratio(rates, (kind, name), (kind, LIMIT)),
            )
            for kind, arguments in work.items()
            for name, worker in workers.items()
        ]


def ratio(rates: Rates, one: tuple[str, str], other: tuple[str, str]) -> float | None:
    """Of one's rate to the other's, within a round; the median."""
    if one not in rates or other not in rates:
        return None
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def table(rows: list[Row]) -> str:
    lines = [
        "| model | work | engine | tokens/s | of the limit | mmrt / engine |",
        "|---|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {r.model} | {_work(r)} | {r.engine} {r.version} | {r.tokens_per_second:.1f} "
        f"| {_number(r.share)} | {_number(r.ratio)} |"
        for r in rows
    ]
    return "\n".join(lines)


def _work(row: Row) -> str:
    return f"{row.work} {row.n}" + (f" after {row.depth}" if row.depth > 1 else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(title: str, rows: list[Row]) -> str:
    """As SVG."""
    groups: dict[str, list[bars.Bar]] = {}
    for row in rows:
        if row.engine != LIMIT and row.share is not None:
            group = groups.setdefault(f"{row.model}, {_work(row)}", [])
            text = f"{row.share:.2f}, {row.tokens_per_second:.4g} tokens/s"
            group.append(bars.Bar(row.engine, row.share, text))
    return svg(bars.draw(title, [bars.Group(*group) for group in groups.items()]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument(
        "-p", type=int, default=512, help="tokens of prefill, 0 for none (default 512)"
    )
    parser.add_argument(
        "-n", type=int, default=64, help="tokens of decode, 0 for none (default 64)"
    )
    parser.add_argument("-d", type=int, default=1, help="tokens before those of decode (default 1)")
    parser.add_argument("-r", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument(
        "-e", nargs="+", default=installed(), metavar="ENGINE", choices=installed(),
        help=f"which to compare (default: {', '.join(installed())})",
    )  # fmt: skip
    parser.add_argument(
        "-o",
        type=Path,
        help="also write the rows as JSON to this file, and a plot beside it (.svg)",
    )
    arguments = parser.parse_args()
    rows: list[Row] = []
    failed = False
    for path in arguments.models:
        work: dict[str, tuple[int, ...]] = {}
        if arguments.p:
            work["prefill"] = (arguments.p,)
        if arguments.n:
            work["decode"] = (arguments.n, arguments.d)
        try:
            rows += compare(path, work, arguments.r, arguments.t, arguments.e)
        except EngineError as error:
            print(f"bench.peers: {error}", file=sys.stderr)
            failed = True
    if rows:
        report(rows, arguments.t, arguments.r, arguments.o)
    sys.exit(failed)


def report(rows: list[Row], threads: int, rounds: int, out: Path | None) -> None:
    """As a table; and as JSON and a plot beside it."""
    cpu = mmrt.cpu_info()
    title = f"{cpu.model}, {threads} threads, {rounds} rounds"
    print(f"{title}\n")
    print(table(rows))
    if out:
        machine = {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()}
        document = {
            "machine": machine,
            "threads": threads,
            "rows": [asdict(row) for row in rows],
        }
        out.write_text(json.dumps(document, indent=1) + "\n")
        out.with_suffix(".svg").write_text(plot(title, rows) + "\n")


if __name__ == "__main__":
    main()
