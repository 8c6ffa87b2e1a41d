"""Layers by tensors: which column each tensor stands in, and how wide the columns are."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from mmrt.files.layers import Layer

OTHERS = "others"


class Column(NamedTuple):
    label: str
    roles: tuple[str, ...]  # one, but for OTHERS, which takes in what has no room of its own
    start: int
    width: int

    def names(self, layer: Layer) -> list[str]:
        """The tensors of `layer` in this column."""
        return [name for role in self.roles for name in layer.cells.get(role, ())]


def stacks(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The numbered layers, those of each stack together."""
    numbered = [layer for layer in layers if layer.name]
    return [list(found) for _, found in groupby(numbered, key=lambda layer: layer.stack)]


def label(layers: Sequence[Layer]) -> str:
    """What neighbours in a stack are called together: "blk 3", "blk 3-5"."""
    first, last = layers[0], layers[-1]
    numbers = str(first.number) if first is last else f"{first.number}-{last.number}"
    return f"{first.stack} {numbers}".strip()


def columns(
    stack: Sequence[Layer], sizes: dict[str, int], room: int, least: int, gap: int
) -> list[Column]:
    """Columns for the layers of a stack in `room` units: each `least` wide, and wider by the bytes
    that its tensors have (`sizes`, by name), with `gap` between them."""
    weights: dict[str, int] = {}
    for layer in stack:
        for role, names in layer.cells.items():
            weights[role] = weights.get(role, 0) + sum(sizes[name] for name in names)
    groups: list[tuple[str, tuple[str, ...]]] = [(role, (role,)) for role in weights]
    most = max((room + gap) // (least + gap), 1)
    if len(groups) > most:
        largest = sorted(weights, key=lambda role: -weights[role])[: most - 1]
        rest = tuple(role for role in weights if role not in largest)
        groups = [*((role, (role,)) for role in weights if role in largest), (OTHERS, rest)]
    spare = max(room - len(groups) * least - (len(groups) - 1) * gap, 0)
    total = sum(weights.values()) or 1
    found, start, seen = [], 0, 0
    for label, roles in groups:
        # The spare units by running sums, so that rounding leaves none over.
        before = spare * seen // total
        seen += sum(weights[role] for role in roles)
        width = least + spare * seen // total - before
        found.append(Column(label, roles, start, width))
        start += width + gap
    return found
