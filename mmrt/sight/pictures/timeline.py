"""A trace as a picture: token by token, from left to right, what each layer cost."""

import os
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from mmrt.memory.sizes import human
from mmrt.sight.pictures import colours
from mmrt.sight.pictures.drawing import Drawing, fitted
from mmrt.sight.trace import Span, Step, Trace

_WIDTH = 1080
_EDGE = 32
_LABELS = 104  # room at the left
_KEY = 92  # and at the right
_MOST = 240  # columns; of more steps, neighbours share one
_MIB = 1 << 20


class _Column(NamedTuple):
    x: float
    width: float
    steps: list[Step]
    prompt: bool
    name: str  # "prompt of 4", "token 7"
    rows: dict[str, Span]  # by layer, a mean over the steps

    @property
    def whole(self) -> Span:
        return _mean([step.whole for step in self.steps])


def draw(trace: Trace) -> Drawing:
    return _Timeline(trace).drawing


class _Timeline:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.drawing = Drawing(_WIDTH, title=f"{os.path.basename(trace.model)}, traced")
        self.y = float(_EDGE)
        self.left, self.right = _EDGE + _LABELS, _WIDTH - _EDGE - _KEY
        self.columns = self.arrange()
        self.labels = list(dict.fromkeys(trace.stretches))
        self.head()
        if self.columns:
            self.bars("time a step, ms", lambda span: span.ns / 1e6)
            self.heat("time by layer, ms", lambda span: span.ns / 1e6)
            self.bars("read from the disk, MiB", lambda span: span.read_bytes / _MIB)
            if any(column.whole.read_bytes for column in self.columns):
                self.heat("read by layer, MiB", lambda span: span.read_bytes / _MIB)
            self.bars("major faults", lambda span: float(span.major_faults))
            self.bars("minor faults", lambda span: float(span.minor_faults))
            self.resident()
            self.texts()
        self.drawing.height = self.y + _EDGE

    def arrange(self) -> list[_Column]:
        """The steps side by side: of the prompt each, of many tokens several in a column."""
        prompt, decode = self.trace.prompt, self.trace.decode
        together = max(-(-len(decode) // max(_MOST - len(prompt), 1)), 1)
        groups = [[step] for step in prompt]
        groups += [decode[i : i + together] for i in range(0, len(decode), together)]
        width = min((self.right - self.left) / max(len(groups), 1), 60)
        found = []
        for number, steps in enumerate(groups):
            first, last = steps[0].position, steps[-1].position + steps[-1].n_tokens - 1
            reading = number < len(prompt)
            name = f"prompt of {steps[0].n_tokens}" if reading else f"token {first}"
            if not reading and first != last:
                name = f"tokens {first} to {last}"
            sums = self.trace.by_label(steps)
            rows = {label: _scaled(span, len(steps)) for label, span in sums.items()}
            found.append(_Column(self.left + number * width, width, steps, reading, name, rows))
        return found

    # ---- parts, from the top down ----

    def head(self) -> None:
        trace, write = self.trace, self.drawing.words
        title = fitted(os.path.basename(trace.model), 24, 560)
        write(_EDGE, self.y + 22, title, 24)
        decode = trace.decode
        if decode:
            seconds = sum(step.whole.ns for step in decode) / 1e9
            rate = f"{sum(step.n_tokens for step in decode) / seconds:.1f} tokens/s"
            write(_WIDTH - _EDGE, self.y + 22, rate, 24, anchor="end")
        n_tokens = sum(step.n_tokens for step in trace.prompt)
        said = f"prompt of {n_tokens} tokens, then {len(decode)} one by one"
        write(_EDGE, self.y + 46, said, 13, colours.FAINT)
        if trace.reads:
            reads = trace.reads
            faults = f"{reads.major_faults:,} major, {reads.minor_faults:,} minor faults"
            read = "" if reads.read_bytes is None else f"{human(reads.read_bytes)} read · "
            write(_WIDTH - _EDGE, self.y + 46, read + faults, 13, colours.FAINT, "end")
        self.y += 92

    def bars(self, title: str, value: Callable[[Span], float]) -> None:
        """A bar for each column; what towers above the others is cut, and its value written."""
        values = [value(column.whole) for column in self.columns]
        top, height = _ceiling(values), 64
        self.panel(title, height, _short(top), "0")
        for column, found in zip(self.columns, values, strict=True):
            size = height * min(found / top, 1)
            gap = 1 if column.width > 3 else 0
            fill = colours.scale(0.45 if found > top else 0.75)
            if found:
                size = max(size, 1)
                y = self.y + height - size
                self.drawing.box(column.x, y, column.width - gap, size, fill)
            if found > top:
                self.drawing.words(column.x + 2, self.y - 4, _short(found), 10)
            tip = [self.name(column), f"{title}: {_short(found)}"]
            self.drawing.tip(column.x, self.y, column.width, height, tip)
        self.y += height + 40

    def heat(self, title: str, value: Callable[[Span], float]) -> None:
        """A row for each layer."""
        cells = [
            (column, row, value(column.rows[label]), column.rows[label])
            for column in self.columns
            for row, label in enumerate(self.labels)
            if label in column.rows
        ]
        size = min(max(360 // len(self.labels), 4), 14)
        every = -(-11 // size)  # rows to a label
        top, height = _ceiling([found for _, _, found, _ in cells]), size * len(self.labels)
        self.panel(title)
        for row in range(0, len(self.labels), every):
            base = self.y + row * size + size / 2 + 4
            label = fitted(self.labels[row], 10, _LABELS - 10)
            self.drawing.words(self.left - 8, base, label, 10, colours.FAINT, "end")
        for column, row, found, span in cells:
            gap = 1 if column.width > 5 and size > 5 else 0
            y = self.y + row * size
            fill = colours.scale(min(found / top, 1))
            self.drawing.box(column.x, y, column.width - gap, size - gap, fill)
            costs = f"{span.major_faults:,} major, {span.minor_faults:,} minor faults"
            tip = [f"{self.labels[row]}, {self.name(column)}", f"{span.ns / 1e6:.3f} ms",
                   f"{human(span.read_bytes)} read", costs]  # fmt: skip
            self.drawing.tip(column.x, y, column.width, size, tip)
        self.key(top, height, any(found > top for _, _, found, _ in cells))
        self.y += height + 40

    def resident(self) -> None:
        """The weights in memory at the looks, in the columns after which they were taken."""
        total = sum(self.trace.sizes.values()) or 1
        points = []
        for look in self.trace.looks:
            done = [c for c in self.columns if c.steps[0].whole.start_ns < look.ns]
            x = done[-1].x + done[-1].width if done else self.left
            points.append((x, sum(look.resident.values()) / total))
        height = 64
        self.panel("weights in memory", height, "100 %", "0 %")
        line = [(x, self.y + height * (1 - share)) for x, share in points]
        self.drawing.line(line, colours.scale(1), 2)
        for x, y in line:
            self.drawing.box(x - 2, y - 2, 4, 4, colours.scale(1))
        shares = f"{points[0][1]:.0%} before, {points[-1][1]:.0%} after ({self.trace.source})"
        self.drawing.tip(self.left, self.y, self.right - self.left, height, [shares])
        self.y += height + 16

    def texts(self) -> None:
        """Under each column what was written after it, if there is room."""
        if self.columns[0].width < 13:
            return
        self.y += 88
        for column in self.columns:
            wrote = "".join(step.text for step in column.steps).strip()
            text = fitted(f"{column.name} {wrote}" if column.prompt else wrote, 11, 110)
            x = column.x + column.width / 2 + 5
            self.drawing.words(x, self.y - 78, text, 11, colours.FAINT, "end", turned=True)

    # ---- pieces ----

    def panel(self, title: str, height: float = 0, top: str = "", bottom: str = "") -> None:
        """The ground of a panel; the rest is the caller's. top, bottom: what its ends stand for."""
        self.drawing.words(self.left, self.y - 6, title, 12)
        self.y += 8
        for y, label in ((self.y, top), (self.y + height, bottom)):
            if label:
                self.drawing.words(self.left - 8, y + 4, label, 10, colours.FAINT, "end")
                self.drawing.line([(self.left, y), (self.right, y)], colours.RULE)

    def key(self, top: float, height: float, cut: bool) -> None:
        """The scale of a heat map, at its right."""
        x, size = self.right + 16, min(height, 120)
        for i in range(24):
            y = self.y + size * (23 - i) / 24
            self.drawing.box(x, y, 12, size / 24 + 0.5, colours.scale((i + 1) / 24))
        most = f"{_short(top)} or more" if cut else _short(top)
        self.drawing.words(x + 18, self.y + 9, most, 10, colours.FAINT)
        self.drawing.words(x + 18, self.y + size, "0", 10, colours.FAINT)

    def name(self, column: _Column) -> str:
        text = "".join(step.text for step in column.steps)
        return f"{column.name}, then {text!r}" if text else column.name


def _mean(spans: Sequence[Span]) -> Span:
    sums = Span(spans[0].start_ns, *map(sum, list(zip(*spans, strict=True))[1:]))
    return _scaled(sums, len(spans))


def _scaled(span: Span, n: int) -> Span:
    return Span(span.start_ns, *(value // n for value in span[1:]))


def _ceiling(values: Sequence[float]) -> float:
    """The value that is drawn in full: the largest, unless it is far above the usual ones."""
    positive = [value for value in values if value > 0]
    return min(2.5 * median(positive), max(positive)) if positive else 1.0


def _short(value: float) -> str:
    """Three digits of it."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
