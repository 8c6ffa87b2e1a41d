"""One scale of colours for all pictures, and what they are drawn on.

The scale rises evenly in lightness, from deep blue to pale green: it reads the same to the
colour-blind, and in grey.
"""

_SCALE = (
    (46, 56, 118), (44, 88, 150), (38, 122, 164), (50, 156, 168), (96, 190, 165), (178, 224, 178),
)  # fmt: skip

LEVELS = 64
"""Colours that the scale is rounded to, so that neighbours of nearly one value become one shape."""

NOTHING = "#303848"  # exactly zero: off the scale, so that a single page shows
GROUND = "#12161d"
TEXT = "#e6e9ef"
FAINT = "#8d97a8"
RULE = "#2f3744"


def scale(fraction: float) -> str:
    """The colour of a value from 0 to 1, as "#rrggbb"; NOTHING for 0. Full colour is for 1 alone,
    the darkest for less than 1/64."""
    if fraction <= 0:
        return NOTHING
    level = 1.0 if fraction >= 1 else int(fraction * LEVELS) / LEVELS
    place = level * (len(_SCALE) - 1)
    below = min(int(place), len(_SCALE) - 2)
    pairs = zip(_SCALE[below], _SCALE[below + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - below)):02x}" for a, b in pairs)
