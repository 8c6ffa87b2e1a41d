"""How several machines would fare with a model: stage times measured here, all else computed.

    python -m bench.cluster MODEL [--machines N ...] [--texts N ...] [--hop MS] [--rate MBIT]
        [--layers N] [--pictures FOLDER]

Measured: the seconds that a few of the model's layers take here for steps of 1 to 256 tokens, one
stage at work. Computed: all layers cut evenly, the same machine everywhere, lines of `--hop` ms and
`--rate` Mbit/s, and each step going through them as the engine of a cluster has it. --layers: as
if the model had so many of these layers.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrt.cluster.planning import Shape
from mmrt.cluster.stage import Stage
from mmrt.core.program import Part
from mmrt.memory.sizes import human
from mmrt.sight.pictures.curves import Curve, draw
from mmrt.sight.pictures.drawing import Drawing, svg

# Tokens of the steps that are measured, and how often each is; layers that are timed.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEPS = 5
_LAYERS = 4

# What a text writes in a simulation.
_TOKENS = 50


def simulate(stages: Sequence[Callable[[int], float]], hop: float, texts: int) -> float:
    """Tokens a second of so many texts that write. stages: the seconds that each takes for a step
    of so many texts. hop: from one to the next, and back.

    There are as many steps under way as stages, if there are as many texts, each of an equal part
    of them; a stage has one step at a time, in the order in which they come.
    """
    groups = min(len(stages), texts)
    sizes = [texts // groups + (i < texts % groups) for i in range(groups)]
    coming = [(0.0, i, 0, 0) for i in range(groups)]  # when, which group, at which stage, round
    free = [0.0] * len(stages)
    written, end = 0, 0.0
    while coming:
        now, group, at, tokens = heappop(coming)
        if at == len(stages):
            written, end, at, tokens = written + sizes[group], now, 0, tokens + 1
            if tokens == _TOKENS:
                continue
        free[at] = max(now + hop, free[at]) + stages[at](sizes[group])
        heappush(coming, (free[at] + (hop if at + 1 == len(stages) else 0), group, at + 1, tokens))
    return written / end


def measure(path: str, threads: int | None) -> tuple[list[float], int]:
    """Seconds of steps of _SIZES tokens of different texts, and of how many layers."""
    with Stage(path, threads=threads) as whole:
        found = whole.layers
    first = min(1, len(found) - 1)  # without the embedding, if it can be
    layers = range(first, min(first + _LAYERS, found.stop))
    seconds = []
    with Stage(path, layers, threads=threads) as stage:
        token = np.zeros(1, np.int32)
        for n in _SIZES:
            caches = [stage.cache() for _ in range(n)]
            rows = None if stage.is_first else np.ones((n, stage.program.taken), np.float32)
            taken = []
            for _ in range(_STEPS + 1):  # the first brings weights into memory
                parts = [Part(cache, token, int(stage.is_last)) for cache in caches]
                begun = time.perf_counter()
                stage.run(parts, rows)
                taken.append(time.perf_counter() - begun)
            seconds.append(statistics.median(taken[1:]))
    return seconds, len(layers)


class Computed(NamedTuple):
    """speed: tokens a second of all texts; held: bytes of a machine, weights, keys and values."""

    machines: int
    texts: int
    speed: float
    held: int


def compute(
    shape: Shape,
    n_layers: int,
    machines: int,
    texts: int,
    measured: tuple[list[float], int],
    line: tuple[float, float],
) -> Computed:
    """measured: seconds of steps of _SIZES, and of how many layers. line: its seconds, and its
    bytes a second."""
    seconds, timed = measured
    share = -(-n_layers // machines)  # of layers; the largest stage sets the pace

    def stage(n: int) -> float:
        return float(np.interp(n, _SIZES, seconds)) * share / timed

    hop = line[0] + shape.row * -(-texts // min(machines, texts)) / line[1]
    speed = simulate([stage] * machines, hop, texts)
    times = n_layers / len(shape.layers)
    weights = sum(layer.held for layer in shape.layers) * times + shape.embedding + shape.output
    kept = sum(layer.kv for layer in shape.layers) * times * shape.context * texts
    return Computed(machines, texts, speed, int(weights + kept) // machines)


def pictures(name: str, found: Sequence[Computed]) -> dict[str, Drawing]:
    """A curve for each number of texts, of at most four."""
    texts = list(dict.fromkeys(each.texts for each in found))[-4:]

    def curves(value: Callable[[Computed], float]) -> list[Curve]:
        return [
            Curve(f"{n} texts", [(c.machines, value(c)) for c in found if c.texts == n])
            for n in texts
        ]

    what = f"{name}; layers' times measured on one machine, the rest computed"
    speeds, held = curves(lambda c: c.speed), curves(lambda c: c.held / 2**30)
    return {
        "cluster-speed.svg": draw(what, "machines", "tokens a second", speeds),
        "cluster-memory.svg": draw(f"{name}; computed", "machines", "GiB a machine", held),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--machines", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--hop", type=float, default=0.3, help="ms")
    parser.add_argument("--rate", type=float, default=1000.0, help="Mbit/s")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a text")
    parser.add_argument("--layers", type=int, help="as if there were so many")
    parser.add_argument("--pictures", type=Path, help="write two SVG files into this folder")
    parser.add_argument("-t", "--threads", type=int)
    arguments = parser.parse_args(argv)
    shape = Shape.of(arguments.model, arguments.context)
    seconds, timed = measure(arguments.model, arguments.threads)
    shown = ", ".join(f"{n}: {1000 * s:.2f}" for n, s in zip(_SIZES, seconds, strict=True))
    print(f"measured here: ms of {timed} layers for steps of so many texts: {shown}")
    n_layers = arguments.layers or len(shape.layers)
    line = arguments.hop / 1000, arguments.rate * 1e6 / 8
    found = [
        compute(shape, n_layers, n, texts, (seconds, timed), line)
        for n in arguments.machines
        if n <= n_layers
        for texts in arguments.texts
    ]
    print(
        f"computed, of {n_layers} layers, with lines of {arguments.hop:g} ms and "
        f"{arguments.rate:g} Mbit/s:"
    )
    print(f"{'machines':>8} {'texts':>6} {'tokens/s':>9} {'a machine holds':>16}")
    for each in found:
        print(f"{each.machines:8} {each.texts:6} {each.speed:9.1f} {human(each.held):>16}")
    if arguments.pictures:
        name = f"{n_layers} layers of {os.path.basename(arguments.model)}"
        for file, drawing in pictures(name, found).items():
            (arguments.pictures / file).write_text(svg(drawing) + "\n")


if __name__ == "__main__":
    main()
