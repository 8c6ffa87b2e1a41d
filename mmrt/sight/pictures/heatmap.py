"""What of a weight file is in memory: layers by tensors, each cell a tensor from its first page to
its last."""

import os
import time
from collections.abc import Sequence

from mmrt.core.residency import Residency
from mmrt.files.formats import TensorFile
from mmrt.files.layers import Layer, place
from mmrt.files.residency import FileResidency
from mmrt.memory.sizes import human
from mmrt.sight.pictures import colours, grid
from mmrt.sight.pictures.drawing import Drawing, fitted, text_width

_WIDTH = 1080
_EDGE = 32
_GRAIN = 2  # units of the picture for one value: finer than that nobody sees
_SPACE = 8
_RUNS = 4  # of resident pages that a tip lists
_ROWS = 256  # for the layers of a stack, at most: of more, several share one
_SUMMARY = 150  # what a layer comes to, at the right

_MEANS = {
    "mincore": "in the page cache, as mincore() tells",
    "pagemap": "mapped by this process, as its pagemap tells; the file's owner can see the cache",
}


def draw(file: TensorFile, now: FileResidency) -> Drawing:
    """The picture of `file` as `now` found it."""
    return _HeatMap(file, now).drawing


class _HeatMap:
    def __init__(self, file: TensorFile, now: FileResidency) -> None:
        self.file, self.now = file, now
        self.sizes = {name: tensor.nbytes for name, tensor in file.items()}
        self.drawing = Drawing(_WIDTH, title=f"{os.path.basename(file.path)} in memory")
        self.y = float(_EDGE)
        self.head()
        self.whole_file()
        self.outside([layer for layer in now.layers if not layer.name])
        for stack in grid.stacks(now.layers):
            self.stack(stack)
        self.legend()
        self.drawing.height = self.y + _EDGE

    # ---- parts, from the top down ----

    def head(self) -> None:
        file, whole, write = self.file, self.now.whole, self.drawing.words
        metadata = file.metadata
        title = fitted(os.path.basename(file.path), 24, _WIDTH - 2 * _EDGE - 320)
        write(_EDGE, self.y + 22, title, 24)
        write(_WIDTH - _EDGE, self.y + 22, f"{percent(whole)} resident", 24, anchor="end")
        about = [metadata.get("general.name"), metadata.get("general.architecture"), file.format]
        about += [f"{len(file)} tensors", human(file.nbytes)]
        line = " · ".join(str(word) for word in about if word)
        write(_EDGE, self.y + 46, fitted(line, 13, 560), 13, colours.FAINT)
        n_bytes = human(whole.resident * self.now.page_size)
        counted = f"{whole.resident:,} of {whole.total:,} pages · {n_bytes}"
        write(_WIDTH - _EDGE, self.y + 46, counted, 13, colours.FAINT, "end")
        self.y += 72

    def whole_file(self) -> None:
        for path, residency in self.now.files.items():
            label = "the file, first page to last"
            if len(self.now.files) > 1:
                label = fitted(os.path.basename(path), 11, 600)
            self.drawing.words(_EDGE, self.y + 10, label, 11, colours.FAINT)
            self.y += 16
            self.cell(_EDGE, _WIDTH - 2 * _EDGE, 16, residency, [os.path.basename(path)])
            self.y += 26

    def outside(self, layers: Sequence[Layer]) -> None:
        """Tensors of no layer, as many to a line as fit, wide by their bytes."""
        names = [name for layer in layers for name in layer.names]
        if not names:
            return
        self.y += 6
        for line in self.lines(names):
            x = float(_EDGE)
            for name, label, width in line:
                self.drawing.words(x, self.y + 10, fitted(label, 11, width), 11, colours.FAINT)
                self.y += 16
                self.cell(x, width, 16, self.now.tensors[name], self.about([name]))
                self.y -= 16
                x += width + _SPACE
            self.y += 42

    def lines(self, names: Sequence[str]) -> list[list[tuple[str, str, float]]]:
        """Tensors broken into lines: name, label, and width of each. Each has room for its label,
        and what a line has left goes to its largest."""
        room, total = _WIDTH - 2 * _EDGE, sum(self.sizes[name] for name in names) or 1
        lines: list[list[tuple[str, str, float]]] = [[]]
        used = 0.0
        for name in names:
            label = f"{place(name).role} {percent(self.now.tensors[name])}"
            share = 0.8 * room * self.sizes[name] / total
            width = min(max(text_width(label, 11) + 10, share), room)
            if used + width > room and lines[-1]:
                lines.append([])
                used = 0.0
            lines[-1].append((name, label, width))
            used += width + _SPACE
        for line in lines:
            largest = max(range(len(line)), key=lambda at: line[at][2])
            name, label, width = line[largest]
            spare = room + _SPACE - sum(width + _SPACE for _, _, width in line)
            line[largest] = name, label, width + spare
        return lines

    def stack(self, stack: Sequence[Layer]) -> None:
        together = -(-len(stack) // _ROWS)
        rows = [stack[first : first + together] for first in range(0, len(stack), together)]
        widest = max(text_width(grid.label(row), 12) for row in (rows[0], rows[-1]))
        label_width = min(max(48, widest), 240)
        left = _EDGE + label_width
        room = int(_WIDTH - _EDGE - _SUMMARY - left)
        columns = grid.columns(stack, self.sizes, room, least=16, gap=3)
        longest = max(text_width(column.label, 12) for column in columns)
        self.y += min(longest, 200) * 0.71 + 14
        for column in columns:
            label = fitted(column.label, 12, 200)
            x = left + column.start + min(column.width / 2, 20)
            self.drawing.words(x, self.y - 6, label, 12, colours.FAINT, turned=True)
        height = min(max(900 // len(stack), 10), 22)
        for row in rows:
            self.row(row, columns, left, height)
        self.y += 14

    def row(
        self, layers: Sequence[Layer], columns: Sequence[grid.Column], left: float, height: int
    ) -> None:
        size, gap = min(height - 2, 12), 2 if height > 12 else 1
        base = self.y + height / 2 + size * 0.36
        label = fitted(grid.label(layers), size, left - _EDGE)
        self.drawing.words(left - 10, base, label, size, colours.FAINT, "end")
        for column in columns:
            names = [name for layer in layers for name in column.names(layer)]
            if names:
                residency = self.now.of(names)
                self.cell(left + column.start, column.width, height - gap, residency,
                          self.about(names))  # fmt: skip
        whole = self.now.of([name for layer in layers for name in layer.names])
        right = _WIDTH - _EDGE
        self.drawing.words(right - 82, base, percent(whole), size, anchor="end")
        n_bytes = human(whole.resident * self.now.page_size)
        self.drawing.words(right, base, n_bytes, size, colours.FAINT, "end")
        self.y += height

    def legend(self) -> None:
        draw = self.drawing
        self.y += 12
        draw.line([(_EDGE, self.y), (_WIDTH - _EDGE, self.y)], colours.RULE)
        self.y += 18
        draw.box(_EDGE, self.y, 14, 12, colours.NOTHING)
        draw.words(_EDGE + 20, self.y + 10, "no page", 11, colours.FAINT)
        x = _EDGE + 86
        draw.strip(x, self.y, 160, 12, [(i + 1) / 160 for i in range(160)])
        draw.words(x + 168, self.y + 10, "every page", 11, colours.FAINT)
        what = "a cell is a tensor, its first page at the left"
        draw.words(x + 260, self.y + 10, what, 11, colours.FAINT)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        draw.words(_WIDTH - _EDGE, self.y + 10, when, 11, colours.FAINT, "end")
        source = f"Resident: {_MEANS[self.now.source]}. Pages of {self.now.page_size >> 10} KiB."
        draw.words(_EDGE, self.y + 32, source, 11, colours.FAINT)
        self.y += 36

    # ---- pieces ----

    def cell(
        self, x: float, width: float, height: float, residency: Residency, about: Sequence[str]
    ) -> None:
        n = min(int(width / _GRAIN), residency.total)
        self.drawing.strip(x, self.y, width, height, residency.parts(n) if n else [])
        self.drawing.tip(x, self.y, width, height, [*about, _exactly(residency)])

    def about(self, names: Sequence[str]) -> list[str]:
        """What a cell says of its tensors."""
        if len(names) > 1:
            size = sum(self.sizes[name] for name in names)
            return [f"{len(names)} tensors, {names[0]} to {names[-1]}", human(size)]
        tensor = self.file[names[0]]
        shape = " × ".join(map(str, tensor.shape)) or "scalar"
        page = self.now.page_size
        first, last = tensor.offset // page, max(tensor.offset + tensor.nbytes - 1, 0) // page
        lines = [
            tensor.name,
            f"{tensor.type}, {shape}, {human(tensor.nbytes)}",
            f"pages {first:,} to {last:,} of {os.path.basename(tensor.mapping.path)}",
        ]
        runs = self.now.tensors[tensor.name].runs()
        if 0 < self.now.tensors[tensor.name].fraction < 1:
            shown = [f"{first + start:,} to {first + start + n - 1:,}" for start, n in runs[:_RUNS]]
            more = f" and {len(runs) - _RUNS} more runs" if len(runs) > _RUNS else ""
            lines.append(f"of these {', '.join(shown)}{more}")
        return lines


def percent(residency: Residency) -> str:
    """Rounded, but to 0 and 100 only where that is exact."""
    shown = 100 * residency.fraction
    if 0 < shown < 0.1:
        return "<0.1 %"
    return f"{min(shown, 99.9):.1f} %" if 0 < shown < 100 else f"{shown:.0f} %"


def _exactly(residency: Residency) -> str:
    return f"{residency.resident:,} of {residency.total:,} pages resident ({percent(residency)})"
