"""The heat map in a terminal: a row for each layer, a column for each tensor."""

import os
from collections.abc import Sequence

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from mmrt.core.residency import Residency
from mmrt.files.formats import TensorFile
from mmrt.files.layers import Layer, place
from mmrt.files.residency import FileResidency
from mmrt.memory.sizes import human
from mmrt.sight.pictures import colours, grid
from mmrt.sight.pictures.heatmap import percent

SHADES = "·░▒▓█"  # where there are no colours
_SUMMARY = 20  # characters: "   99.9 %   12.3 MiB"
_LABEL = 16  # at most
_LOOSE = 6  # rows for tensors of no layer, at most

_FAINT = Style(color=colours.FAINT)
_BOLD = Style(bold=True)

Row = list[Segment]


class TerminalMap:
    """What of `file` is in memory, for rich to print. height: the lines that there are, for which
    neighbouring layers share a row; None: as many as it takes."""

    def __init__(self, file: TensorFile, now: FileResidency, height: int | None = None) -> None:
        self.file, self.now, self.height = file, now, height
        self.sizes = {name: tensor.nbytes for name, tensor in file.items()}
        self.stacks = grid.stacks(now.layers)
        self.loose = self._loose()
        labels = [grid.label([layer]) for stack in self.stacks for layer in stack]
        labels += [label for label, _ in self.loose]
        self.label_width = min(max(map(len, labels), default=0), _LABEL)
        self.width, self.colourful = 80, True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.colourful = console.color_system is not None and not console.no_color
        self.width = max(options.max_width, 60)
        for row in self._rows():
            yield from Segment.simplify(row)
            yield Segment.line()

    def _rows(self) -> list[Row]:
        first, last = [*self._head(), *self._outside()], self._legend()
        tables = [self._columns(stack) for stack in self.stacks]
        most = len(max(tables, key=len, default=())) if self.height is None else self.height // 6
        headers = [self._header(columns, most) for columns in tables]
        together = 1  # layers in a row
        if self.height is not None:
            room = self.height - sum(map(len, [first, last, *headers]))
            longest = max(map(len, self.stacks), default=1)
            while together < longest and self._n_rows(together) > room:
                together += 1
        rows = [*first]
        for stack, columns, header in zip(self.stacks, tables, headers, strict=True):
            rows += [*header, *self._layers(stack, columns, together)]
        return [*rows, *last]

    def _n_rows(self, together: int) -> int:
        return sum(-(-len(stack) // together) for stack in self.stacks)

    # ---- from the top down ----

    def _head(self) -> list[Row]:
        now, whole = self.now, self.now.whole
        where = "in the page cache" if now.source == "mincore" else "mapped by this process"
        share = f"{percent(whole)} {where} ({now.source})"
        n_bytes = human(whole.resident * now.page_size)
        pages = f"{whole.resident:,} of {whole.total:,} pages, {n_bytes}"
        name = _printable(os.path.basename(self.file.path), self.width - len(share) - 2)
        rows: list[Row] = [[Segment(name, _BOLD), Segment(f"  {share}")]]
        if len(f"{name}  {share}: {pages}") <= self.width:
            rows[0].append(Segment(f": {pages}"))
        else:
            rows.append([Segment(pages)])
        rows += [self._strip(residency, self.width) for residency in now.files.values()]
        return [*rows, []]

    def _loose(self) -> list[tuple[str, list[str]]]:
        """The tensors of no layer, the small ones of many as one row."""
        names = [name for layer in self.now.layers if not layer.name for name in layer.names]
        shown = sorted(names, key=lambda name: -self.sizes[name])[:_LOOSE]
        if len(shown) < len(names):
            shown.pop()
        rows = [(place(name).role, [name]) for name in names if name in shown]
        rest = [name for name in names if name not in shown]
        return [*rows, (f"{len(rest)} {grid.OTHERS}", rest)] if rest else rows

    def _outside(self) -> list[Row]:
        rows = []
        largest = max((self._bytes(names) for _, names in self.loose), default=0) or 1
        for label, names in self.loose:
            width = max(self._room() * self._bytes(names) // largest, 2)
            residency = self.now.of(names)
            cells = self._strip(residency, width)
            rows.append(self._row(label, cells, width, residency))
        return rows

    def _columns(self, stack: Sequence[Layer]) -> list[grid.Column]:
        return grid.columns(stack, self.sizes, self._room(), least=2, gap=1)

    def _layers(
        self, stack: Sequence[Layer], columns: Sequence[grid.Column], together: int
    ) -> list[Row]:
        rows = []
        for start in range(0, len(stack), together):
            layers = stack[start : start + together]
            cells: Row = []
            for column in columns:
                names = [name for layer in layers for name in column.names(layer)]
                cells += [*self._strip(self.now.of(names), column.width), Segment(" ")]
            names = [name for layer in layers for name in layer.names]
            width = columns[-1].start + columns[-1].width
            rows.append(self._row(grid.label(layers), cells[:-1], width, self.now.of(names)))
        return rows

    def _header(self, columns: Sequence[grid.Column], most: int) -> list[Row]:
        """The columns' names, each on the lowest line where it meets no other name and no line
        that leads from a higher one down to its column; none where that is above `most` lines."""
        on_line: dict[grid.Column, int] = {}
        for column in reversed(columns):
            end = column.start + len(_name(column))
            line = 0
            while any(other.start <= end and at >= line for other, at in on_line.items()):
                line += 1
            if line < most:
                on_line[column] = line
        rows = []
        for line in range(max(on_line.values(), default=-1), -1, -1):
            text = ""
            for column, at in reversed(on_line.items()):
                if at >= line:
                    text = text.ljust(column.start) + (_name(column) if at == line else "│")
            rows.append([Segment(" " * (self.label_width + 1) + text, _FAINT)])
        return rows

    def _legend(self) -> list[Row]:
        scale = [self._cell((i + 1) / 16, 1) for i in range(16)]
        nothing = [Segment("no page ", _FAINT), self._cell(0, 2), Segment(" ")]
        return [[], [*nothing, *scale, Segment(" every page; the first is at the left", _FAINT)]]

    # ---- pieces ----

    def _room(self) -> int:
        """Characters for cells."""
        return self.width - self.label_width - 1 - _SUMMARY

    def _bytes(self, names: Sequence[str]) -> int:
        return sum(self.sizes[name] for name in names)

    def _row(self, label: str, cells: Row, width: int, residency: Residency) -> Row:
        n_bytes = human(residency.resident * self.now.page_size)
        summary = f"{percent(residency):>8} {n_bytes:>{_SUMMARY - 9}}"
        short = _printable(label, self.label_width)
        return [
            Segment(f"{short:>{self.label_width}} ", _FAINT),
            *cells,
            Segment(" " * (self._room() - width) + summary),
        ]

    def _strip(self, residency: Residency, width: int) -> Row:
        values = residency.parts(width)
        return [self._cell(value, 1) for value in values] or [Segment(" " * width)]

    def _cell(self, value: float, width: int) -> Segment:
        if self.colourful:
            return Segment(" " * width, Style(bgcolor=Color.parse(colours.scale(value))))
        level = 4 if value >= 1 else 1 + int(value * 3) if value > 0 else 0
        return Segment(SHADES[level] * width)


def _name(column: grid.Column) -> str:
    return _printable(column.label, 32)


def _printable(text: str, room: int) -> str:
    """`text` with its beginning cut off where it is too long: names differ at the end."""
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return safe if len(safe) <= room else "…" + safe[len(safe) - max(room - 1, 0) :]
