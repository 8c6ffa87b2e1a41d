"""What memory budgets do to a model: what they keep, and how fast it can be then."""

import math
import mmap
from dataclasses import dataclass, replace

from mmrt.core.kernels import Pool, roof
from mmrt.core.streaming import Plan
from mmrt.errors import ArgumentError
from mmrt.files import layers
from mmrt.memory.budget import choose_reader, first_text, probe
from mmrt.run.model import Model
from mmrt.sight import replay, routing
from mmrt.sight.routing import RoutingTrace

# Read from memory, to time it: larger than the caches.
_MEMORY_BYTES = 256 << 20

_TIMES = 3  # that a speed is measured; the median counts


@dataclass(frozen=True)
class Machine:
    """Measured speeds, in bytes a second."""

    reader: str
    """The one of mmrt.streaming.READERS that is used."""

    disk: float
    """0: the file stays in memory, for another process uses it."""

    memory: float


@dataclass(frozen=True)
class Forecast:
    """What a budget of the process comes to. At best: what bounds a token is reading its weights,
    those that are kept from memory and meanwhile the others from the disk."""

    budget: int
    plan: Plan
    machine: Machine

    @property
    def disk_seconds(self) -> float:
        """A token, for reading what is not kept, and the experts that it misses."""
        n_bytes = self.plan.streamed + self.plan.missed
        return n_bytes / self.machine.disk if self.machine.disk else 0.0

    @property
    def compute_seconds(self) -> float:
        """A token, for multiplying with all weights that it needs."""
        return (self.plan.total + self.plan.chosen) / self.machine.memory

    @property
    def seconds(self) -> float:
        """A token: the longer of the two."""
        return max(self.disk_seconds, self.compute_seconds)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return 1 / self.seconds

    def by_layer(self, model: Model) -> list[tuple[str, int, int]]:
        """(layer or tensor, bytes kept, bytes streamed) of what every step multiplies by."""
        everything = model.program.plan(self.plan.most).kept_by_tensor
        sums: dict[str, list[int]] = {}
        for tensor in model.program.weights:
            n_bytes, kept = everything[tensor.name], self.plan.kept_by_tensor[tensor.name]
            if n_bytes and len(tensor.shape) < 3:  # stacks hold experts
                row = sums.setdefault(layers.place(tensor.name).label, [0, 0])
                row[0] += kept
                row[1] += n_bytes - kept
        return [(label, kept, streamed) for label, (kept, streamed) in sums.items()]


@dataclass(frozen=True)
class Routed:
    """What a budget comes to if a text chooses experts as a trace does."""

    hit_rate: float
    """The part of a token's experts that are in memory."""

    missed: float
    """Bytes that a token reads of the others."""

    rate: float
    """Tokens a second, of each layer's experts first those that are in memory, while the others
    are read."""


def routed(model: Model, expected: Forecast, trace: RoutingTrace, source: str) -> Routed:
    """Of the last two thirds of `trace`, for it begins with nothing in memory; source: where it is
    from. Raises ArgumentError if the model has not its layers and experts."""
    shape = routing.shape_of(model)
    if (trace.layers, trace.n_experts) != (shape.layers, shape.n_experts):
        raise ArgumentError(
            f"{source}: {len(trace.layers)} layers of {trace.n_experts} experts, where the model "
            f"has {len(shape.layers)} of {shape.n_experts}"
        )
    trace = replace(trace, expert_bytes=shape.expert_bytes, dense_bytes=shape.dense_bytes)
    plan, machine, first = expected.plan, expected.machine, len(trace.steps) // 3
    part = plan.slots / plan.n_experts if plan.cache else 1.0
    found = replay.replay(trace, "score", replay.slots(trace, part))
    if not plan.cache:  # all are in memory from the start
        found = replay.Replay(found.wanted, found.wanted, found.missed_bytes * 0)
    disk = machine.disk or math.inf
    return Routed(
        found.hit_rate(first),
        float(found.missed_bytes[first:].sum()) / max(sum(trace.steps[first:]), 1),
        replay.forecast(trace, found, disk, machine.memory, first),
    )


def measure(model: Model) -> Machine:
    """Reads from the model's file, past the page cache, and from memory: half a second."""
    mappings = list({id(t.mapping): t.mapping for t in model.program.weights}.values())
    reader = model.streaming.reader if model.streaming else choose_reader(mappings)
    largest = max(mappings, key=lambda mapping: mapping.size)
    disk = [probe(largest, reader) for _ in range(_TIMES)]
    pool = Pool(model.threads)
    with mmap.mmap(-1, _MEMORY_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.write(bytes(_MEMORY_BYTES))
        memory = [roof("read", pages, pool) for _ in range(_TIMES)]
    return Machine(reader, sorted(disk)[_TIMES // 2], sorted(memory)[_TIMES // 2])


def forecast(model: Model, machine: Machine) -> Forecast:
    """Of the budget that the model was opened with."""
    room = model.budget.room(0)
    return _of_weights(model, machine, room.bound.limit, room.n_bytes)


def others(model: Model, machine: Machine, n: int = 10) -> list[Forecast]:
    """Of budgets from the least that the model runs in to the one that holds all its weights."""
    room = model.budget.room(first_text(model.program))
    besides, ends = room.bound.limit - room.n_bytes, model.program.plan(0)
    first, last = ends.least + ends.rest, ends.most + ends.rest
    sizes = [first + (last - first) * i // (n - 1) for i in range(n)]
    return [_of_weights(model, machine, besides + size, size) for size in sizes]


def _of_weights(model: Model, machine: Machine, budget: int, n_bytes: int) -> Forecast:
    rest = model.program.plan(0).rest
    return Forecast(budget, model.program.plan(max(n_bytes - rest, 0)), machine)
