"""Curves over a common axis, such as speeds over budgets."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmrt.sight.pictures import colours
from mmrt.sight.pictures.drawing import Drawing, text_width

_WIDTH, _HEIGHT = 960, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 36, 84, 62
_COLOURS = ("#b2e0b2", "#60a0d8", "#d8a860", "#a86f9e")
_TICKS = 6  # about so many an axis


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = True  # at the points; without, it is a calculated line


@dataclass(frozen=True)
class Mark:
    """A vertical line at a place that has a name."""

    x: float
    name: str


def draw(
    title: str, x_name: str, y_name: str, curves: Sequence[Curve], marks: Sequence[Mark] = ()
) -> Drawing:
    """Both axes begin at 0."""
    drawing = Drawing(_WIDTH, _HEIGHT, title)
    points = [point for curve in curves for point in curve.points]
    most_x = max([x for x, _ in points] + [mark.x for mark in marks], default=0) or 1
    most_y = max((y for _, y in points), default=0) * 1.06 or 1
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * x / most_x, bottom - (bottom - _TOP) * y / most_y

    drawing.words(_LEFT, 32, title, 17)
    drawing.words((_LEFT + right) / 2, _HEIGHT - 16, x_name, 12, colours.FAINT, "middle")
    drawing.words(_LEFT, _TOP - 12, y_name, 12, colours.FAINT)
    for tick in _ticks(most_x):
        x, _ = place(tick, 0)
        drawing.words(x, bottom + 20, f"{tick:g}", 12, colours.FAINT, "middle")
    for tick in _ticks(most_y):
        _, y = place(0, tick)
        drawing.line([(_LEFT, y), (right, y)], colours.RULE)
        drawing.words(_LEFT - 10, y + 4, f"{tick:g}", 12, colours.FAINT, "end")
    for mark in marks:
        x, _ = place(mark.x, 0)
        drawing.line([(x, _TOP), (x, bottom)], colours.FAINT)
        drawing.words(x - 6, _TOP + 14, mark.name, 12, colours.FAINT, "end")
    legend = float(right)
    for curve, colour in reversed(list(zip(curves, _COLOURS, strict=False))):
        placed = [place(x, y) for x, y in curve.points]
        drawing.line(placed, colour, 2.5 if curve.dots else 1.5)
        for (x, y), (at, value) in zip(placed, curve.points, strict=True):
            if curve.dots:
                drawing.box(x - 3, y - 3, 6, 6, colour)
                drawing.tip(x - 6, y - 6, 12, 12, (curve.name, f"{at:.3g}: {value:.3g}"))
        legend -= text_width(curve.name, 12)
        drawing.words(legend, 56, curve.name, 12)
        drawing.box(legend - 16, 47, 10, 10, colour)
        legend -= 34
    return drawing


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most`."""
    step = 1.0
    while step * _TICKS > most:
        step /= 10
    while step * _TICKS * 10 <= most:
        step *= 10
    step *= next(factor for factor in (1, 2, 5, 10) if step * factor * _TICKS * 1.3 > most)
    return [round(i * step, 12) for i in range(int(most / step) + 1)]
