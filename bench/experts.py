"""A mixture of experts larger than memory, beside llama.cpp, under a hard limit:
`python -m bench.experts MODEL.gguf --memory 6.8GiB 4GiB`.

The model is one of `bench.make_model --routing`, so that all engines choose the same experts; what
is measured holds for a model of that shape with published routing statistics. Each run is a process
of its own in a memory cgroup without swap, the file evicted first. It reads tokens one by one: 128
that fill the caches, then 256 that are timed; a peer, as many as five minutes permit. The engines
take turns, and the disk is measured by O_DIRECT reads between the tokens.

Beside what was found in memory stands what mmrt.sight.replay finds with as many slots, and beside
the speed its forecast: a layer multiplies what it has found while it reads the rest.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import mmrt
from bench import cgroups
from bench.limited import ENGINES, OURS, PEER
from bench.limits import Run, markdown, of, start
from mmrt.memory.sizes import human, parse_size
from mmrt.sight import replay, routing
from mmrt.sight.routing import RoutingTrace

MIB = 1 << 20


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def _slots(run: Run, trace: RoutingTrace) -> dict[int, int]:
    """The engine's slots, by the bytes of an expert: a slot is as large, in whole pages."""
    return {
        size: next((n for room, n in run.found["slots"] if room >= size), 0)
        for size in set(trace.expert_bytes)
    }


def headline(
    runs: list[Run], limit: int, trace: RoutingTrace, memory: float, free: Run | None
) -> list[tuple[str, str]]:
    """Figures of one limit, medians of its rounds. memory: bytes a second of weights."""
    here = [run for run in runs if run.limit == limit]
    mine, peers = of(here, OURS), of(here, PEER)
    rows = [(run.engine, run.ended) for run in here if not run.found]
    if mine:
        last = mine[-1]
        rate, disk = _median([run.mean_rate for run in mine]), _median([run.disk for run in mine])
        rows += [("mmrt, tokens/s", f"{rate:.2f}"), ("disk", f"{disk / 1e9:.2f} GB/s")]
        rows += _beside_replay(last, rate, disk, trace, memory) if "slots" in last.found else []
        peak = max(run.peak or 0 for run in mine)
        rows.append(("peak of the cgroup", f"{peak / MIB:.0f} of {limit / MIB:.0f} MiB"))
        rows.append(("kills", str(sum(run.kills for run in mine))))
        if free:
            pairs = [zip(run.found["answers"], free.found["answers"], strict=False) for run in mine]
            same = all(a == b for pair in pairs for a, b in pair)
            rows.append(("the same logits as without a limit", "yes" if same else "NO"))
    if peers:
        rate = _median([run.mean_rate for run in peers])
        n = len(peers[0].found["seconds"])
        read = _median([run.found["process_read"] / len(run.found["seconds"]) for run in peers])
        rows.append((f"{PEER}, tokens/s", f"{rate:.3f}, of {n} tokens"))
        rows.append((f"{PEER}, read a token", human(int(read))))
        if mine:
            rows.append((f"mmrt / {PEER}", f"{_median([r.mean_rate for r in mine]) / rate:.1f}"))
    return rows


def _beside_replay(
    run: Run, rate: float, disk: float, trace: RoutingTrace, memory: float
) -> list[tuple[str, str]]:
    found, n = run.found, len(run.found["seconds"])
    first = found["warm"]
    read = first + n  # each token is a step of its own
    trace = replace(trace, steps=trace.steps[:read], choices=trace.choices[:read])
    simulated = replay.replay(trace, "score", _slots(run, trace))
    lru = replay.replay(trace, "lru", _slots(run, trace))
    bound = replay.replay(trace, "belady", _slots(run, trace))
    forecast = replay.forecast(trace, simulated, disk, memory, first)
    missed = int(simulated.missed_bytes[first:].sum())
    n_slots, of_all = sum(_slots(run, trace).values()), len(trace.layers) * trace.n_experts
    rates = (
        f"{simulated.hit_rate(first):.2%}; {lru.hit_rate(first):.2%}; {bound.hit_rate(first):.2%}"
    )
    return [
        ("forecast, hits first, tokens/s", f"{forecast:.2f}"),
        ("mmrt / forecast", f"{rate / forecast:.2f}"),
        ("slots", f"{n_slots} of {of_all} experts"),
        ("found in memory", f"{found['found'] / max(found['wanted'], 1):.2%}"),
        ("by replay: mmrt's rule; LRU; Belady", rates),
        ("experts' bytes read a token", human(found["experts_read"] // n)),
        ("read / missed by replay", f"{found['experts_read'] / max(missed, 1):.3f}"),
        ("read by the process / experts'",
         f"{found['process_read'] / max(found['experts_read'], 1):.3f}"),
        ("waiting for experts", f"{found['stall']:.0%} of the time"),
    ]  # fmt: skip


def bandwidth(free: Run, trace: RoutingTrace) -> float:
    """Bytes a second that a run without a limit multiplies with."""
    used = sum(size * trace.choices.shape[2] for size in trace.expert_bytes)
    return float(trace.dense_bytes + used) * free.rate


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.experts", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="of bench.make_model --routing, on the disk to be measured")
    parser.add_argument("--memory", nargs="+", type=parse_size, required=True, metavar="SIZE")
    parser.add_argument("--warm", type=int, default=128, help="tokens before (default 128)")
    parser.add_argument("-n", type=int, default=256, help="tokens that are timed (default 256)")
    parser.add_argument("-r", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--seconds", type=float, default=300, help="for a run, at most (300)")
    parser.add_argument(
        "--bandwidth", type=parse_size, metavar="SIZE",
        help="bytes of weights a second, for the forecast; instead of a run without a limit",
    )  # fmt: skip
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, metavar="NAME",
        default=[OURS, PEER] if find_spec("llama_cpp") else [OURS],
        help=f"default: {OURS}, and {PEER} if it is installed",
    )  # fmt: skip
    parser.add_argument("-o", type=Path, help="also write all runs as JSON to this file")
    a = parser.parse_args()
    cgroups.require()
    cpu = mmrt.cpu_info()
    print(f"{cpu.model}, {a.t} threads; {Path(a.model).name}, {human(os.path.getsize(a.model))}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.csv"

        def run(engine: str, limit: int | None) -> Run:
            numbers = [str(number) for number in (a.warm, a.n, a.seconds, a.t)]
            return start("bench.routed", engine, a.model, limit, [*numbers, str(file)])

        free = None if a.bandwidth else run(OURS, None)
        traces = [routing.read(file)] if free else []
        runs: list[Run] = []
        for limit, engine in [*product(a.memory, a.engines)] * a.r:
            runs.append(run(engine, limit))
            if engine == OURS and runs[-1].found:
                traces.append(routing.read(file))
    if not traces:
        raise SystemExit(f"mmrt: {runs[0].ended}")
    trace = max(traces, key=lambda trace: trace.n_tokens)  # all read the same tokens
    memory = float(a.bandwidth) if a.bandwidth else 0.0
    if free:
        memory = bandwidth(free, trace)
        print(f"without a limit: {free.mean_rate:.2f} tokens/s, {memory / 1e9:.1f} GB/s of weights")
    for limit in a.memory:
        table = headline(runs, limit, trace, memory, free)
        print(f"\n{markdown([(f'limit of {human(limit)}', ''), *table])}")
    if a.o:
        document = {
            "machine": {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()},
            "model": {"name": Path(a.model).name, "bytes": os.path.getsize(a.model)},
            "threads": a.t,
            "warm": a.warm,
            "bandwidth": memory,
            "without_limit": asdict(free) if free else None,
            "runs": [asdict(run) for run in runs],
        }
        a.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
