"""Which machine is to have which layers, so that a token of one text takes least time.

A stage takes the longer of two times: reading what a token needs of its weights from memory, and
from the disk what the memory does not hold. Between two stages a hidden row goes over the line.
All cuts, and all orders of the machines, are tried by dynamic programming over the layers: the best
way to have computed layers 0:j on these machines, the last of them m, follows from the best ways
to have computed 0:i on those without m, for each i below j.
"""

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.cluster.hosts import Host
from mmrt.cluster.stage import Stage
from mmrt.core.kernels import Pool
from mmrt.core.program import Part, Program
from mmrt.core.state import PAGE_TOKENS, StateStore
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError
from mmrt.files import formats, layers
from mmrt.memory import budget, system
from mmrt.models.parts.config import Config
from mmrt.run.building import build

# Machines whose orders are all tried.
MOST_HOSTS = 10

# What a stage takes beside weights, keys and values: the interpreter, and scratch.
_BESIDE = 128 << 20

# To measure a machine with: bytes of weights, more than its caches hold, and steps.
_MEASURED = 1 << 30
_STEPS = 5

# The part of the time of reading the disk that counts even where it is hidden: of cuts that are as
# quick, the one that reads less is better.
_READING = 1e-3

Array = NDArray[np.float64]


class Layer(NamedTuple):
    """Bytes. held: of weights; read: of these by a token; kv: what is kept of a token."""

    held: int
    read: int
    kv: int


@dataclass(frozen=True)
class Shape:
    """A model, as far as it matters where its layers are."""

    layers: list[Layer]
    embedding: int  # bytes, on the first stage; a token reads next to nothing of it
    output: int  # on the last, which a token reads
    is_tied: bool  # they are the same bytes
    row: int  # bytes that stages give each other
    logits: int  # bytes that the last one gives
    context: int  # tokens whose keys and values have to have room

    @classmethod
    def of(cls, path: str | os.PathLike[str], context: int | None = None) -> "Shape":
        """Raises what Model does for a file that does not run."""
        with formats.open(path) as file:
            built = build(file, Pool(1), context=context)
            config, program = built.config, built.program
            try:
                return cls._of(config, program)
            finally:
                program.close()

    def held(self, part: range) -> int:
        """Bytes of weights on a stage of these layers."""
        is_first, is_last = part.start == 0, part.stop == len(self.layers)
        held = sum(layer.held for layer in self.layers[part.start : part.stop])
        held += is_first * self.embedding + is_last * self.output
        if is_first and is_last and self.is_tied:
            held -= min(self.embedding, self.output)
        return held

    @classmethod
    def _of(cls, config: Config, program: Program) -> "Shape":
        held, read = [0] * config.n_layers, [0] * config.n_layers
        embedding = output = 0
        ends = {"embed": set[str](), "logits": set[str]()}
        for note, tensors in program.operations:
            for tensor in tensors:
                number = _layer_of(tensor)
                if number is not None:
                    held[number] += tensor.nbytes
                    read[number] += _read_of(tensor, config)
                elif note == "embed":
                    embedding += tensor.nbytes
                else:
                    output += tensor.nbytes
                if note in ends:
                    ends[note].add(tensor.name)
        kv = [StateStore([kept]).page_bytes // PAGE_TOKENS for kept in config.kept]
        return cls(
            layers=[Layer(*each) for each in zip(held, read, kv, strict=True)],
            embedding=embedding,
            output=output,
            is_tied=bool(ends["embed"] & ends["logits"]),
            row=4 * config.n_embd,
            logits=4 * program.vocab_size,
            context=config.context,
        )


def _layer_of(tensor: Tensor) -> int | None:
    place = layers.place(tensor.name)
    return int(place.layer.rpartition(".")[2]) if place.layer else None


def _read_of(tensor: Tensor, config: Config) -> int:
    """Bytes that a token reads: of stacks, its experts."""
    if config.experts is None or len(tensor.shape) < 3:
        return tensor.nbytes
    return tensor.nbytes * config.experts.used // config.experts.count


class Placed(NamedTuple):
    """A machine's part of a plan. streamed: bytes that each token reads from its disk."""

    host: Host
    layers: range
    held: int
    streamed: int
    seconds: float


class LeftOut(NamedTuple):
    """A machine that would not help. seconds: the least that a token takes with it."""

    host: Host
    seconds: float


class Plan(NamedTuple):
    """seconds: that a token of one text takes, the hops among them."""

    placed: list[Placed]
    left_out: list[LeftOut]
    seconds: float

    @property
    def hops(self) -> float:
        """Seconds of a token on the lines."""
        return self.seconds - sum(each.seconds for each in self.placed)


def plan(shape: Shape, hosts: Sequence[Host]) -> Plan:
    """The quickest cut. ArgumentError if no cut has room, or a host does not say how much memory
    it has and how fast it is."""
    if not 1 <= len(hosts) <= MOST_HOSTS:
        raise ArgumentError(f"hosts: there are {len(hosts)}; a plan takes 1 to {MOST_HOSTS}")
    for host in hosts:
        if not host.memory or not host.speed:
            raise ArgumentError(f"{host.place}: say its memory and its speed (mmrt plan --here)")
    search = _Search(shape, hosts)
    chosen = search.best(range(1 << len(hosts)))
    if chosen is None:
        raise ArgumentError(
            "these machines have no room for the model, and too slow a disk, or none, to stream it"
        )
    left_out = []
    for m, host in enumerate(hosts):
        if not chosen.mask >> m & 1:
            other = search.best(mask for mask in range(1 << len(hosts)) if mask >> m & 1)
            left_out.append(LeftOut(host, other.seconds if other else float("inf")))
    return Plan(search.placed(chosen), left_out, chosen.seconds)


class _Found(NamedTuple):
    seconds: float
    mask: int  # of the machines
    last: int


class _Search:
    """mask: a set of machines, as bits. _least[mask, m][j]: seconds of layers 0:j on these, m last.
    _cuts likewise: where m begins."""

    def __init__(self, shape: Shape, hosts: Sequence[Host]) -> None:
        self._shape, self._hosts = shape, hosts
        self._stages = [_stage_seconds(shape, host) for host in hosts]
        self._least: dict[tuple[int, int], Array] = {}
        self._cuts: dict[tuple[int, int], tuple[NDArray[np.int64], Array]] = {}
        for mask in range(1, 1 << len(hosts)):
            for m in range(len(hosts)):
                if mask >> m & 1:
                    self._extend(mask, m)

    def _before(self, mask: int, m: int) -> Array:
        """Seconds until m has the row that comes out of layers 0:i, for each i."""
        rest, n = mask & ~(1 << m), len(self._shape.layers)
        if not rest:
            start = np.full(n + 1, np.inf)
            start[0] = self._hosts[m].hop
            return start
        others = [
            self._least[rest, o] + _line(self._hosts[o], self._hosts[m], self._shape.row)
            for o in range(len(self._hosts))
            if rest >> o & 1
        ]
        least: Array = np.minimum.reduce(others)
        return least

    def _extend(self, mask: int, m: int) -> None:
        before = self._before(mask, m)
        total = before[:, None] + self._stages[m]
        cuts = np.argmin(total, axis=0)
        self._cuts[mask, m] = cuts, before
        self._least[mask, m] = np.take_along_axis(total, cuts[None], axis=0)[0]

    def best(self, masks: Iterable[int]) -> _Found | None:
        """Of plans that use all machines of one of these sets; None: there is none."""
        found = [
            _Found(float(self._least[mask, m][-1]) + self._end(m), mask, m)
            for mask in masks
            for m in range(len(self._hosts))
            if mask >> m & 1
        ]
        best = min(found, key=lambda each: (each.seconds, each.mask.bit_count()))
        return best if np.isfinite(best.seconds) else None

    def _end(self, m: int) -> float:
        return self._hosts[m].hop + self._shape.logits / self._hosts[m].rate

    def placed(self, found: _Found) -> list[Placed]:
        """Its stages, in the order of their layers."""
        stages: list[Placed] = []
        end, mask, m = len(self._shape.layers), found.mask, found.last
        while True:
            first = int(self._cuts[mask, m][0][end])
            stages.append(_place(self._shape, self._hosts[m], range(first, end)))
            mask &= ~(1 << m)
            if not mask:
                return stages[::-1]
            row = self._shape.row
            host = self._hosts[m]
            m = min(
                (o for o in range(len(self._hosts)) if mask >> o & 1),
                key=lambda o: self._least[mask, o][first] + _line(self._hosts[o], host, row),
            )
            end = first


def _line(one: Host, other: Host, n_bytes: int) -> float:
    return max(one.hop, other.hop) + n_bytes / min(one.rate, other.rate)


def _place(shape: Shape, host: Host, part: range) -> Placed:
    mine = shape.layers[part.start : part.stop]
    held = shape.held(part)
    is_last = part.stop == len(shape.layers)
    read = sum(layer.read for layer in mine) + is_last * shape.output
    room = host.memory - _BESIDE - sum(layer.kv for layer in mine) * shape.context
    missing = max(held - room, 0)
    streamed = missing * read // held if held else 0
    seconds = read / host.speed
    if room < 0 or (missing and not host.disk):
        seconds = float("inf")
    elif missing:
        seconds = max(seconds, streamed / host.disk) + _READING * streamed / host.disk
    return Placed(host, part, held, streamed, seconds)


def _stage_seconds(shape: Shape, host: Host) -> Array:
    """Seconds of a stage of layers i:j, at [i, j]; infinite where it cannot be."""
    n = len(shape.layers)
    seconds = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            seconds[i, j] = _place(shape, host, range(i, j)).seconds
    return seconds


# ---- measuring ----


def measure(path: str | os.PathLike[str], threads: int | None = None) -> Host:
    """This machine, with layers of the model in `path`, which may be one of split()'s: how much
    memory a stage may take, how fast it multiplies, and how fast it reads the disk."""
    bound = min(system.bounds(), key=lambda each: each.limit - each.used - each.margin)
    memory = max(bound.limit - bound.used - bound.margin, 1)
    with Stage(path, threads=threads) as whole:
        found = whole.layers
        sizes = [0] * found.stop
        for tensor in whole.program.weights:
            number = _layer_of(tensor)
            if number is not None:
                sizes[number] += tensor.nbytes
        mapping = max((t.mapping for t in whole.program.weights), key=lambda each: each.size)
        disk = budget.probe(mapping, budget.choose_reader([mapping]))
    first = found.start if found.start or len(found) == 1 else 1  # without the embedding
    end, n_bytes = first + 1, sizes[first]
    while end < found.stop and n_bytes + sizes[end] <= min(_MEASURED, memory // 2):
        n_bytes += sizes[end]
        end += 1
    with Stage(path, range(first, end), threads=threads) as stage:
        cache = stage.cache()
        token = np.zeros(1, np.int32)
        rows = None if stage.is_first else np.ones((1, stage.program.taken), np.float32)
        seconds = []
        for _ in range(_STEPS + 1):  # the first brings the weights into memory
            begun = time.perf_counter()
            stage.run([Part(cache, token, int(stage.is_last))], rows)
            seconds.append(time.perf_counter() - begun)
        read = sum(
            _read_of(tensor, stage.config)
            for note, tensors in stage.program.operations
            for tensor in tensors
            if note != "embed"
        )
    return Host("HERE:PORT", memory, read / statistics.median(seconds[1:]), disk)
