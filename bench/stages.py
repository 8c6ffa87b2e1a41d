"""A model on several small machines, which are made on this one, beside one of them that streams:

    python -m bench.stages MODEL [--machines N] [--memory SIZE] [--rate BITS] [--delay MS]

Needs root. Each machine is a network namespace with lines that tc limits, and a memory cgroup
without swap; all have the processors of this one, as one stage works at a time while one text is
written. `mmrt plan --here` measures such a machine, `mmrt plan` cuts the layers, and what it
predicts is set beside what is measured: tokens a second, bytes that stages read from the disk after
warm-up, and what a hop costs beside the time that its line takes. Then one machine of the same
memory streams the model, and has to come to the same logits.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cgroups, limits
from bench.cold_start import evict
from bench.engine import tokens
from bench.limited import OURS, WARM_UP
from bench.networks import Network, RefusedError
from bench.staged import PORT
from mmrt.cluster import planning
from mmrt.cluster.coordinator import Cluster
from mmrt.cluster.hosts import read_hosts
from mmrt.cluster.planning import Plan, Shape
from mmrt.memory.sizes import human, parse_size

_CALLS = 25  # by which the round trip is measured


@dataclass
class Measured:
    """Of one text on a cluster. read: bytes from disks after warm-up; stages: seconds a token;
    sums: of the logits' bits; peaks: bytes of each machine."""

    seconds: list[float]
    stages: list[float]
    read: int
    sums: list[int]
    peaks: list[int]

    @property
    def token(self) -> float:
        """Seconds."""
        return statistics.mean(self.seconds)

    def hop(self, shape: Shape, rate: float) -> float:
        """Seconds from one machine to the next, apart from computing and from what a line of so
        many bytes a second takes: as many as stages, and one."""
        n = len(self.stages)
        carried = ((n - 1) * shape.row + shape.logits) / rate
        return (self.token - sum(self.stages) - carried) / (n + 1)


def here(path: str, limit: int) -> str:
    """What `mmrt plan --here` says of a machine of that memory."""
    evict(path)
    command = [sys.executable, "-m", "mmrt", "plan", path, "--here"]
    with cgroups.MemoryCgroup(limit) as group:
        done = subprocess.run(
            group.command(command), stdout=subprocess.PIPE, text=True, check=True, cwd="/"
        )
    return done.stdout.split(None, 1)[1].strip()


class Machines:
    """Stages of these layers, each on a machine of its own; a context manager."""

    def __init__(
        self, path: str, parts: Sequence[range], network: Network, limit: int, context: int
    ) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            secret = folder / "secret"
            self.secret = os.urandom(32).hex().encode()
            secret.touch(0o600)
            secret.write_bytes(self.secret)
            self._groups, self._processes = [], []
            for part in parts:
                group = stack.enter_context(cgroups.MemoryCgroup(limit))
                words = [path, f"{part.start}:{part.stop}"]
                words += [str(n) for n in (context, secret)]
                command = group.command([sys.executable, "-m", "bench.staged", *words])
                process = network.start(*command, cwd=Path.cwd())
                stack.callback(_end, process)
                self._groups.append(group)
                self._processes.append(process)
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise SystemExit(
                        f"the stage of layers {words[1]} has ended: {group.kills} kills"
                    )
            self._stack = stack.pop_all()
        self.addresses = [f"10.0.0.{i + 2}:{PORT}" for i in range(len(self._processes))]

    def told(self) -> list[dict[str, Any]]:
        """What each says of itself."""
        found = []
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        return found

    @property
    def peaks(self) -> list[int]:
        return [group.peak or 0 for group in self._groups]

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    with process:
        process.wait(60)


def round_trip(addresses: Sequence[str]) -> float:
    """Seconds that a connection takes which nobody has to answer but the kernel; the median."""
    taken = []
    for _ in range(_CALLS):
        for address in addresses:
            host, _, port = address.partition(":")
            begun = time.perf_counter()
            with socket.create_connection((host, int(port)), 10):
                taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def measure(machines: Machines, n: int) -> Measured:
    """n tokens, after those of the warm-up."""
    with Cluster(machines.addresses, machines.secret) as cluster, cluster.sequence() as sequence:
        answers = [sequence.extend([token]) for token in tokens(WARM_UP)]
        before, seconds = machines.told(), []
        for token in tokens(n):
            begun = time.perf_counter()
            answers.append(sequence.extend([token]))
            seconds.append(time.perf_counter() - begun)
        after = machines.told()
    pairs = list(zip(before, after, strict=True))
    return Measured(
        seconds,
        [(b["seconds"] - a["seconds"]) / n for a, b in pairs],
        sum(b["read"] - a["read"] for a, b in pairs),
        [zlib.crc32(logits.tobytes()) for logits in answers],
        machines.peaks,
    )


def show(plan: Plan, found: Measured, hop: float, trip: float, one: limits.Run | None) -> None:
    print(
        f"{'machine':12} {'layers':>8} {'weights':>9} {'peak':>9} {'predicted':>10} {'measured':>9}"
    )
    for placed, seconds, peak in zip(plan.placed, found.stages, found.peaks, strict=True):
        layers = f"{placed.layers.start}:{placed.layers.stop}"
        print(
            f"{placed.host.place.partition(':')[0]:12} {layers:>8} {human(placed.held):>9} "
            f"{human(peak):>9} {placed.seconds * 1000:7.2f} ms {seconds * 1000:6.2f} ms"
        )
    for host, _ in plan.left_out:
        print(f"{host.place.partition(':')[0]:12} is left out")
    rate, predicted = 1 / found.token, 1 / plan.seconds
    print(f"tokens a second: {rate:.2f}, predicted {predicted:.2f}: {rate / predicted:.2f} of it")
    print(
        f"a hop: {hop * 1000:.3f} ms beside what the line's rate takes; a round trip of the line: "
        f"{trip * 1000:.3f} ms"
    )
    print(f"read from disks by {len(found.seconds)} tokens after warm-up: {human(found.read)}")
    if one is None:
        return
    if not one.rate:
        print(f"one machine that streams: has ended: {one.ended}")
        return
    same = (
        "the same" if one.found["answers"] == found.sums[: len(one.found["answers"])] else "OTHER"
    )
    print(
        f"one machine that streams: {one.mean_rate:.3f} tokens a second, {same} logits; "
        f"the cluster is {rate / one.mean_rate:.1f} times as fast"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--memory", default="1.9GiB", help="of each")
    parser.add_argument("--rate", type=float, default=1000.0, help="Mbit/s that each sends")
    parser.add_argument("--delay", type=float, default=0.0, help="ms, where the kernel has netem")
    parser.add_argument("--context", type=int, default=512, help="tokens that have to have room")
    parser.add_argument("-n", type=int, default=32, help="tokens that are measured")
    parser.add_argument("--streamed", type=int, default=6, help="of these, on the one that streams")
    arguments = parser.parse_args(argv)
    path, limit = os.path.abspath(arguments.model), parse_size(arguments.memory)
    cgroups.require()
    facts = here(path, limit)
    print(f"`mmrt plan --here` on such a machine: {facts}")
    one = None
    if arguments.streamed:
        one = limits.run(OURS, path, limit, 0, arguments.streamed, os.cpu_count() or 1)
    try:
        network = Network(arguments.rate * 1e6, arguments.delay / 1000)
    except RefusedError as error:
        sys.exit(f"skipped: no network can be made here: {error}")
    facts = " ".join(word for word in facts.split() if not word.startswith(("hop=", "rate=")))
    hop = arguments.delay + 0.05  # ms; what no line takes, sockets do
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts"
        line = f"{facts} hop={hop:g}ms rate={arguments.rate:g}mbit"
        lines = [f"10.0.0.{i + 2}:{PORT} {line}\n" for i in range(arguments.machines)]
        hosts.write_text("".join(lines))
        shape = Shape.of(path, arguments.context)
        plan = planning.plan(shape, read_hosts(hosts))
    evict(path)
    parts = [placed.layers for placed in plan.placed]
    with Machines(path, parts, network, limit, arguments.context) as machines:
        found = measure(machines, arguments.n)
        hop = found.hop(shape, arguments.rate * 1e6 / 8)
        show(plan, found, hop, round_trip(machines.addresses), one)


if __name__ == "__main__":
    main()
