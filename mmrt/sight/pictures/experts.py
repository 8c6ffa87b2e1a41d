"""How often each expert is used: layers by experts, the most used of a layer at the left."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from mmrt.sight.pictures import colours
from mmrt.sight.pictures.drawing import Drawing, fitted
from mmrt.sight.pictures.terminal import SHADES
from mmrt.sight.routing import RoutingTrace

_WIDTH = 1080
_EDGE = 32
_LABEL = 48
_SUMMARY = 190
_TOLD = 12  # experts that a tip lists


def shares(trace: RoutingTrace) -> NDArray[np.float64]:
    """What part of the tokens has gone to each expert, falling: [layers][experts]."""
    counts = np.sort(trace.uses(), axis=1)[:, ::-1]
    n_tokens = np.maximum((trace.choices[:, :, 0] >= 0).sum(0), 1)
    found: NDArray[np.float64] = counts / n_tokens[:, None]
    return found


def summary(row: NDArray[np.float64]) -> tuple[str, str]:
    """How many experts a layer has used, and what part of the uses a quarter of them has."""
    quarter = row[: max(len(row) // 4, 1)].sum() / max(row.sum(), 1e-9)
    return f"{np.count_nonzero(row)} used", f"{quarter:.0%} by a quarter"


def draw(trace: RoutingTrace) -> Drawing:
    """The picture of a trace."""
    drawing = Drawing(_WIDTH, title=f"experts of {trace.model}")
    y, right = float(_EDGE), _WIDTH - _EDGE
    drawing.words(_EDGE, y + 22, fitted(trace.model, 24, 640), 24)
    about = f"{trace.n_tokens} tokens, {trace.choices.shape[2]} of {trace.n_experts} experts each"
    drawing.words(right, y + 22, about, 13, colours.FAINT, "end")
    y += 48
    left, width = _EDGE + _LABEL, _WIDTH - 2 * _EDGE - _LABEL - _SUMMARY
    height = min(max(900 // len(trace.layers), 10), 22)
    rows, uses = shares(trace), trace.uses()
    for number, row, counts in zip(trace.layers, rows, uses, strict=True):
        base = y + height / 2 + 4
        drawing.words(left - 10, base, str(number), 11, colours.FAINT, "end")
        drawing.strip(left, y, width, height - 2, row.tolist())
        drawing.tip(left, y, width, height - 2, [f"layer {number}", *_most_used(counts)])
        used, quarter = summary(row)
        drawing.words(right - 110, base, used, 11, anchor="end")
        drawing.words(right, base, quarter, 11, colours.FAINT, "end")
        y += height
    y += 12
    drawing.line([(_EDGE, y), (right, y)], colours.RULE)
    y += 18
    drawing.box(_EDGE, y, 14, 12, colours.NOTHING)
    drawing.words(_EDGE + 20, y + 10, "no token", 11, colours.FAINT)
    drawing.strip(_EDGE + 86, y, 160, 12, [(i + 1) / 160 for i in range(160)])
    what = "every token; a cell is an expert, the most used of its layer at the left"
    drawing.words(_EDGE + 254, y + 10, what, 11, colours.FAINT)
    drawing.height = y + 12 + _EDGE
    return drawing


def _most_used(counts: NDArray[np.int64]) -> Sequence[str]:
    order = np.argsort(-counts, kind="stable")[:_TOLD]
    return [f"expert {expert}: {counts[expert]}" for expert in order if counts[expert]]


class TerminalExperts:
    """The same in a terminal, for rich to print; experts that have no cell of their own share."""

    def __init__(self, trace: RoutingTrace) -> None:
        self.trace = trace

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = shares(self.trace)
        width = max(min(rows.shape[1], options.max_width - 32), 1)
        faint, colourful = Style(color=colours.FAINT), bool(console.color_system)
        for number, row in zip(self.trace.layers, rows, strict=True):
            yield Segment(f"{number:>5} ", faint)
            for part in np.array_split(row, width):
                value = float(part.mean())
                if colourful:
                    yield Segment(" ", Style(bgcolor=Color.parse(colours.scale(value))))
                else:
                    yield Segment(SHADES[min(int(value * 3) + 1, 4) if value else 0])
            used, quarter = summary(row)
            yield Segment(f" {used:>8}, {quarter}\n", faint)
