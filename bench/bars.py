"""Runtimes side by side, as bars against the machine's limit or one of them."""

from collections.abc import Sequence
from typing import NamedTuple

from mmrt.sight.pictures import colours
from mmrt.sight.pictures.drawing import Drawing

_WIDTH, _EDGE, _LABELS = 960, 28, 260
_BAR, _GAP, _GROUP = 15, 3, 16  # heights: of a bar, between two, between two groups
_COLOURS = ("#b2e0b2", "#60a0d8", "#3f6ea8", "#d8a860", "#a87c3f", "#a86f9e")


class Bar(NamedTuple):
    name: str
    share: float  # of the limit
    text: str  # beside it


class Group(NamedTuple):
    title: str
    bars: Sequence[Bar]


def draw(title: str, groups: Sequence[Group], limit: str = "the machine's limit") -> Drawing:
    """One bar a runtime, a line at 1, which is `limit`."""
    drawing = Drawing(_WIDTH, title=title)
    names = list(dict.fromkeys(bar.name for group in groups for bar in group.bars))
    fills = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    left, right = _EDGE + _LABELS, _WIDTH - _EDGE - 130
    longest = max(1.0, *(bar.share for group in groups for bar in group.bars))
    drawing.words(_EDGE, _EDGE + 8, title, 17)
    y = _EDGE + 32.0
    x = float(_EDGE)
    for name in names:
        drawing.box(x, y - 9, 10, 10, fills[name])
        drawing.words(x + 15, y, name, 12, colours.FAINT)
        x += 36 + 7 * len(name)
    y += 34
    top = y
    for group in groups:
        height = len(group.bars) * (_BAR + _GAP) - _GAP
        drawing.words(left - 12, y + height / 2 + 4, group.title, 12, anchor="end")
        for bar in group.bars:
            length = (right - left) * bar.share / longest
            drawing.box(left, y, length, _BAR, fills[bar.name])
            drawing.words(right + 10, y + _BAR - 3, bar.text, 11, colours.FAINT)
            y += _BAR + _GAP
        y += _GROUP - _GAP
    at = left + (right - left) / longest
    drawing.line([(at, top - 6), (at, y - _GROUP + 6)], colours.TEXT, 1.5)
    drawing.words(at, top - 11, limit, 11, anchor="middle")
    drawing.height = y + _EDGE - _GROUP
    return drawing
