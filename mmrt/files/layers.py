"""Which layer of a model a tensor belongs to, as its name tells."""

from collections.abc import Iterable
from typing import NamedTuple


class Place(NamedTuple):
    """Where a tensor stands in its model: in which layer, and as what.

    The first whole number in the name is the layer's; later ones, of experts and the like, are a
    star in the role, so that each layer has the same roles:

        blk.3.attn_q.weight                      blk.3            attn_q
        model.layers.3.mlp.experts.7.w1.weight   model.layers.3   mlp.experts.*.w1
        token_embd.weight                        (none)           token_embd
    """

    layer: str  # "" for what is in no layer
    role: str

    @property
    def label(self) -> str:
        return self.layer or self.role


class Layer(NamedTuple):
    """A layer, or what is in none (`name` and `stack` are "")."""

    name: str  # "blk.3"
    stack: str  # "blk"
    number: int  # 3; -1 for what is in none
    cells: dict[str, list[str]]  # role -> names of its tensors: one, but for experts

    @property
    def names(self) -> list[str]:
        """Of all its tensors."""
        return [name for names in self.cells.values() for name in names]


def place(name: str) -> Place:
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if word.isdecimal()), -1)
    layer, rest = words[: at + 1], words[at + 1 :]
    if not rest:  # the number ends the name: it counts tensors, not layers
        layer, rest = [], words
    if len(rest) > 1 and rest[-1] == "weight":
        rest.pop()
    role = ".".join("*" if word.isdecimal() and layer else word for word in rest)
    return Place(".".join(layer), role)


def group(names: Iterable[str]) -> list[Layer]:
    """The layers that these tensors make up, by stack and number; first what is in none."""
    layers: dict[str, Layer] = {}
    stacks: dict[str, int] = {"": -1}
    for name in names:
        layer, role = place(name)
        stack, _, number = layer.rpartition(".")
        stacks.setdefault(stack, len(stacks))
        at = layers.setdefault(layer, Layer(layer, stack, int(number or -1), {}))
        at.cells.setdefault(role, []).append(name)
    return sorted(layers.values(), key=lambda layer: (stacks[layer.stack], layer.number))
