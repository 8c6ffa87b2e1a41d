"""mmrt beside its peers on the same files: `python -m bench.peers MODEL.gguf ... [-p 512] [-n 64]`.

The engines take turns in every round, so that a slow moment of the machine strikes all alike; what
counts is the median of the rounds' ratios. Install the peers with `pip install '.[peers]'`.
"""

import argparse
import json
import platform
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import mmrt
from bench.engines import ENGINES, Worker

OURS = "mmrt"


@dataclass(frozen=True)
class Row:
    """One engine's rounds on one model and kind of work. ratio: ours divided by its rate."""

    model: str
    work: str
    n: int
    engine: str
    version: str
    tokens_per_second: float  # median
    samples: list[float]
    ratio: float  # median over rounds


def compare(path: str, work: dict[str, int], rounds: int, threads: int) -> list[Row]:
    rates: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, path, threads)) for name in ENGINES}
        for round in range(rounds + 1):
            for kind, n in work.items():
                for name, worker in workers.items():
                    rate = n / worker.measure(kind, n)
                    if round:  # the first warms caches and clocks up
                        rates.setdefault((kind, name), []).append(rate)
        return [
            Row(
                Path(path).name,
                kind,
                n,
                name,
                worker.version,
                statistics.median(rates[kind, name]),
                rates[kind, name],
                statistics.median(
                    ours / theirs
                    for ours, theirs in zip(rates[kind, OURS], rates[kind, name], strict=True)
                ),
            )
            for kind, n in work.items()
            for name, worker in workers.items()
        ]


def table(rows: list[Row]) -> str:
    lines = ["| model | work | engine | tokens/s | mmrt / engine |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {r.model} | {r.work} {r.n} | {r.engine} {r.version} | {r.tokens_per_second:.1f} "
        f"| {r.ratio:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("-p", type=int, default=512, help="tokens of prefill (default 512)")
    parser.add_argument("-n", type=int, default=64, help="tokens of decode (default 64)")
    parser.add_argument("-r", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("-o", type=Path, help="also write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for path in arguments.models:
        work = {"prefill": arguments.p, "decode": arguments.n}
        rows += compare(path, work, arguments.r, arguments.t)
    cpu = mmrt.cpu_info()
    print(f"{cpu.model}, {arguments.t} threads, {arguments.r} rounds\n")
    print(table(rows))
    if arguments.o:
        machine = {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()}
        document = {
            "machine": machine,
            "threads": arguments.t,
            "rows": [asdict(row) for row in rows],
        }
        arguments.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
