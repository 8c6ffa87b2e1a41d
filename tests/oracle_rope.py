"""Rotations of queries and keys, for the reference logits."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle_functions import Array


@dataclass
class Rope:
    """Rotary position embedding, over the first `dims` elements of each head.

    Pair i turns by position * base^(-2i / dims) / factors[i]. It is made of neighbours (2i, 2i + 1)
    or, in the NEOX manner, of elements i of the two halves. The result is scaled by magnitude.
    """

    base: float
    dims: int
    neox: bool
    factors: NDArray[np.floating[Any]] | None = None
    magnitude: float = 1.0

    def __call__(self, x: Array) -> Array:
        frequencies = self.base ** (-2 * np.arange(self.dims // 2) / self.dims)
        if self.factors is not None:
            frequencies /= self.factors
        angles = np.arange(len(x))[:, None, None] * frequencies
        cos = (self.magnitude * np.cos(angles)).astype(np.float32)
        sin = (self.magnitude * np.sin(angles)).astype(np.float32)

        half = self.dims // 2
        first = slice(0, half) if self.neox else slice(0, self.dims, 2)
        second = slice(half, self.dims) if self.neox else slice(1, self.dims, 2)
        a, b = x[..., first], x[..., second]
        turned = x.copy()
        turned[..., first] = a * cos - b * sin
        turned[..., second] = a * sin + b * cos
        return turned


def stretched(rope: Rope, model: Any) -> Rope:
    """With the scaling that the model's metadata asks for: positions divided by a factor (linear),
    or only those of the pairs that turn slowly, with a ramp between the two (YaRN,
    arXiv:2309.00071)."""
    scaling = model.get("rope.scaling.type", "linear")
    factor = model.get("rope.scaling.factor", model.get("rope.scale_linear", 1.0)) or 1.0
    magnitude = model.get("rope.scaling.attn_factor", 1.0)
    own = np.ones(rope.dims // 2) if rope.factors is None else rope.factors.astype(np.float64)
    if scaling == "none":
        return replace(rope, magnitude=magnitude)
    if scaling == "linear":
        return replace(rope, factors=own * factor, magnitude=magnitude)
    if scaling != "yarn":
        raise NotImplementedError(scaling)

    context = model.get("rope.scaling.original_context_length", model.get("context_length"))
    turns = context * rope.base ** (-2 * np.arange(rope.dims) / rope.dims) / (2 * np.pi)
    # The pairs, counted from the fastest, at which a ramp of interpolation begins and ends.
    fast = np.count_nonzero(turns > model.get("rope.scaling.yarn_beta_fast", 32.0)) - 1
    slow = np.count_nonzero(turns > model.get("rope.scaling.yarn_beta_slow", 1.0))
    first, last = max(int(fast), 0), min(int(slow), rope.dims - 1)
    ramp = np.clip((np.arange(rope.dims // 2) - first) / max(last - first, 0.001), 0, 1)
    magnitude *= 1 + 0.1 * np.log(factor)
    magnitude /= 1 + 0.1 * model.get("rope.scaling.yarn_log_multiplier", 0.0) * np.log(factor)
    return replace(rope, factors=own / (1 - ramp + ramp / factor), magnitude=magnitude)
