"""Choosing tensors of a file: by layer number and by pattern."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from mmrt.errors import ArgumentError
from mmrt.files import layers

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def layer_numbers(text: str) -> list[range]:
    """ "0-3,7" -> [range(0, 4), range(7, 8)]. ArgumentError for other text."""
    ranges = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if not match:
            raise ArgumentError(f"layers: {part!r} is no number and no range such as 0-3")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ArgumentError(f"layers: the range {part.strip()} ends before it begins")
        ranges.append(range(first, last + 1))
    return ranges


def select(
    names: Iterable[str], numbers: Sequence[range] | None, patterns: Sequence[str]
) -> list[str]:
    """Of `names`, those in these layers (None: in all, and in none) that match one of the patterns
    at least (no patterns: all), spelled as the shell's: `*attn_?.weight`.

    Raises ArgumentError where a layer, the first and last of a range among them, is not there or a
    pattern finds nothing.
    """
    chosen = list(names)
    if patterns:
        chosen = _matching(chosen, patterns)
    if numbers is not None:
        chosen = _in_layers(chosen, numbers)
    return chosen


def _matching(names: list[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            import difflib

            near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.5) or names[:2]
            looks = f"; names look like {' and '.join(near)}" if near else ""
            raise ArgumentError(f"no tensor matches {pattern!r}{looks}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _in_layers(names: list[str], numbers: Sequence[range]) -> list[str]:
    found = {layer.number: layer for layer in layers.group(names) if layer.name}
    if not found:
        raise ArgumentError("layers: none of these tensors is in a numbered layer")
    for asked in numbers:
        for number in (asked[0], asked[-1]):
            if number not in found:
                raise ArgumentError(
                    f"layers: there is no layer {number}; they go from {min(found)} to {max(found)}"
                )
    chosen = {
        name
        for layer in layers.group(names)
        if layer.name and any(layer.number in asked for asked in numbers)
        for name in layer.names
    }
    return [name for name in names if name in chosen]
