"""What a generation costs, by token and by layer: time, faults, bytes read, and what of the weights
is in memory meanwhile.

    with mmrt.Model(path) as model, trace.recording(model) as recorder:
        pieces = [recorder.note(piece) for piece in model.stream("Once upon a time")]
    json.dump(chrome_trace.events(recorder.trace), out)

The core takes a mark between layers: the time and the process's counters, 1 to 2 microseconds. The
rest happens between steps. Residency is looked at after a step that read from the disk, and else
only as often as it costs half a percent of the time.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.program import Part, Program
from mmrt.files import layers
from mmrt.memory import counters
from mmrt.sight import pagetables
from mmrt.sight.pagetables import PageTables

if TYPE_CHECKING:
    from mmrt.run.generation import Piece
    from mmrt.run.model import Model

_SHARE = 0.005  # of the time, for looking at residency while nothing is read

# Columns of a mark: see Program.run.
_OP, _NS, _MINOR, _MAJOR, _BYTES = range(5)


class Span(NamedTuple):
    """What a stretch of time cost. The counters are the whole process's."""

    start_ns: int
    ns: int
    minor_faults: int
    major_faults: int
    read_bytes: int


@dataclass
class Step:
    """One pass through the weights: over a part of the prompt, over one token, or over tokens of
    several texts."""

    position: int  # of its first token in that token's text
    n_tokens: int
    marks: NDArray[np.int64]  # one before the first stretch, one after each
    text: str = ""  # what the model wrote after it
    n_texts: int = 1

    @property
    def spans(self) -> list[Span]:
        """Of each stretch."""
        return [
            Span(int(a[_NS]), *(int(n) for n in (b - a)[_NS:]))
            for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)
        ]

    @property
    def whole(self) -> Span:
        """All of the step."""
        first, last = self.marks[0], self.marks[-1]
        return Span(int(first[_NS]), *(int(n) for n in (last - first)[_NS:]))


@dataclass
class Look:
    """Which part of the weights was in memory at one time."""

    ns: int
    resident: dict[str, int]  # bytes of each layer, and of each tensor that is in none


@dataclass
class Trace:
    model: str  # path
    stretches: list[str]  # labels: a layer's, or the role of a tensor that is in none
    sizes: dict[str, int]  # bytes that the pages of each label have
    source: str  # of residency: see Residency.source
    steps: list[Step] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    reads: counters.Reads | None = None  # from the beginning to the end
    before: counters.Footprint | None = None
    after: counters.Footprint | None = None
    # What the pages of the weights that are mapped need, before and after.
    page_tables: tuple[PageTables, PageTables] | None = None
    n_prompt: int | None = None  # steps until the first piece was written; None: none was

    @property
    def prompt(self) -> list[Step]:
        """The steps that read the prompt."""
        return self.steps[: self.n_prompt]

    @property
    def decode(self) -> list[Step]:
        """The steps over one token each that the model had written."""
        return self.steps[len(self.prompt) :]

    def by_label(self, steps: Sequence[Step]) -> dict[str, Span]:
        """What these steps cost by layer, in the order in which the first visit each."""
        sums: dict[str, Span] = {}
        for step in steps:
            for label, span in zip(self.stretches, step.spans, strict=True):
                so_far = sums.get(label, Span(span.start_ns, 0, 0, 0, 0))
                added = (a + b for a, b in zip(so_far[1:], span[1:], strict=True))
                sums[label] = Span(so_far.start_ns, *added)
        return sums


class Recorder:
    """Watches the steps of a model; made by recording()."""

    def __init__(self, model: "Model", operations: bool) -> None:
        self._model = model
        self._run = model.program.run
        stretches = _stretches(model.program, operations)
        self._numbers = np.array([-1, *(last for _, last in stretches)], np.int64)
        self._residency = _LayerResidency(model)
        self._running = self._looking = 0  # ns spent on it
        self.trace = Trace(
            model.path,
            [label for label, _ in stretches],
            self._residency.sizes(),
            self._residency.source,
        )
        self._tables = self._residency.page_tables()
        self.trace.before = counters.footprint()
        self._reads = counters.reads()
        self._look()

    def step(self, parts: Sequence[Part], logits: NDArray[np.float32] | None = None) -> None:
        """In place of Program.run."""
        marks = np.empty((len(self._numbers), 5), np.int64)
        marks[:, _OP] = self._numbers
        position = parts[0].cache.length
        n_texts = len({id(part.cache) for part in parts})
        self._run(parts, logits, marks)
        n_tokens = sum(len(part.tokens) for part in parts)
        self.trace.steps.append(Step(position, n_tokens, marks, n_texts=n_texts))
        if self._may_look(marks):
            self._look()

    def _may_look(self, latest: NDArray[np.int64]) -> bool:
        """Whether it is worth its time: always where the step waited for the disk far longer."""
        ns = int(latest[-1, _NS] - latest[0, _NS])
        self._running += ns
        cost = self._looking / len(self.trace.looks)
        if latest[-1, _BYTES] > latest[0, _BYTES] and cost < 0.02 * ns:
            return True
        return self._looking + cost < _SHARE * self._running

    def note(self, piece: "Piece") -> "Piece":
        """Tells the trace what the model wrote after the latest step."""
        if self.trace.steps:
            self.trace.steps[-1].text += piece.text
        if self.trace.n_prompt is None:
            self.trace.n_prompt = len(self.trace.steps)
        return piece

    def _look(self) -> None:
        start = time.monotonic_ns()
        resident = self._residency.look()
        self.trace.looks.append(Look(start, resident))
        self._looking += time.monotonic_ns() - start

    def finish(self) -> None:
        """Completes `trace` with what is known at the end."""
        trace = self.trace
        self._look()
        trace.reads = counters.reads() - self._reads
        trace.after = counters.footprint()
        trace.page_tables = self._tables, self._residency.page_tables()


@contextmanager
def recording(model: "Model", operations: bool = False) -> Iterator[Recorder]:
    """Records all steps of `model` while the block lasts, into `.trace`.

    operations: by operation, not by layer. Twenty times the marks, and as much more to pay.
    """
    recorder = Recorder(model, operations)
    model.run_step = recorder.step
    try:
        yield recorder
    finally:
        model.run_step = model.program.run
        recorder.finish()


def _stretches(program: Program, operations: bool) -> list[tuple[str, int]]:
    """(label, number of the last operation) of the operations that belong together: in a layer, as
    their weights' names tell; one without weights belongs to that before it."""
    found: list[tuple[str, int]] = []
    label = ""
    for number, (what, tensors) in enumerate(program.operations):
        label = layers.place(tensors[0].name).label if tensors else label
        if operations:
            found.append((f"{label} {what}", number))
        elif found and found[-1][0] == label:
            found[-1] = label, number
        else:
            found.append((label, number))
    return found


class _LayerResidency:
    """Looks at the weights' pages by label, quickly: Mapping.residency takes most of the time."""

    def __init__(self, model: "Model") -> None:
        self._mappings = model.file.mappings
        self._ranges: dict[str, list[tuple[int, int, int]]] = {}  # mapping, first page, end
        at = {id(mapping): i for i, mapping in enumerate(self._mappings)}
        for tensor in sorted(model.file.values(), key=lambda tensor: tensor.offset):
            page = tensor.mapping.page_size
            first, end = tensor.offset // page, -(-(tensor.offset + tensor.nbytes) // page)
            label = layers.place(tensor.name).label
            ranges = self._ranges.setdefault(label, [])
            number = at[id(tensor.mapping)]
            if ranges and ranges[-1][0] == number and first <= ranges[-1][2]:
                first = ranges.pop()[1]  # a shared page counts once
            ranges.append((number, first, end))
        self._page = self._mappings[0].page_size
        self.source = self._mappings[0].residency(0, 1).source

    def sizes(self) -> dict[str, int]:
        return {
            label: sum(end - first for _, first, end in ranges) * self._page
            for label, ranges in self._ranges.items()
        }

    def look(self) -> dict[str, int]:
        pages = [np.frombuffer(m.residency().pages, np.bool_) for m in self._mappings]
        return {
            label: int(sum(np.count_nonzero(pages[n][first:end]) for n, first, end in ranges))
            * self._page
            for label, ranges in self._ranges.items()
        }

    def page_tables(self) -> PageTables:
        """What the pages that are mapped now need."""
        tables = [
            pagetables.mapped(
                mapping.address, mapping.mapped().pages, huge_bytes=counters.of_file(path).huge
            )
            for mapping in self._mappings
            for path in [mapping.path]
        ]
        return PageTables(sum(t.leaf for t in tables), sum(t.middle for t in tables))
