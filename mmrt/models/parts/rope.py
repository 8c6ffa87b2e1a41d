"""Rotary position embeddings and the ways in which models stretch them to longer contexts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError
from mmrt.models.parts.fields import Fields


@dataclass(frozen=True)
class Rope:
    """Pair i of n_dims / 2 turns by position * base^(-2 i / n_dims), then scaled (Su et al. 2021,
    arXiv:2104.09864)."""

    n_dims: int
    base: float
    scaling: str = "none"  # or "linear", "yarn", "longrope"
    factor: float = 1.0  # by which the context was stretched
    original_context: int = 0  # yarn: the context before that
    beta_fast: float = 32.0  # yarn: turns within that context above which a pair is left alone
    beta_slow: float = 1.0  # yarn: and below which it is stretched wholly
    log_multiplier: float = 0.0  # yarn: how much of the magnitude's growth is taken back
    magnitude_factor: float = 1.0

    def frequencies(self, divisors: Sequence[float] | None = None) -> list[float]:
        """Radians a position, one for each pair. divisors: the model's own, one for each pair."""
        plain = [self.base ** (-2 * i / self.n_dims) for i in range(self.n_dims // 2)]
        if divisors is not None:
            plain = [f / d for f, d in zip(plain, divisors, strict=True)]
        if self.scaling in ("linear", "longrope"):
            return [f / self.factor for f in plain]
        if self.scaling == "yarn":
            return [f * self._yarn_share(i) for i, f in enumerate(plain)]
        return plain

    def unstretched(self) -> "Rope":
        """The same within the context of before."""
        return replace(self, scaling="none", factor=1.0)

    @property
    def magnitude(self) -> float:
        """By which cosines and sines are multiplied (YaRN's attention temperature)."""
        if self.scaling != "yarn" or self.factor <= 1:
            return self.magnitude_factor
        growth = 0.1 * math.log(self.factor)
        return self.magnitude_factor * (1 + growth) / (1 + self.log_multiplier * growth)

    def _yarn_share(self, pair: int) -> float:
        """YaRN (Peng et al. 2023, arXiv:2309.00071): pairs that turn often within the original
        context keep their frequency, slow ones are divided by the factor, with a ramp between."""

        def pair_with(turns: float) -> float:
            length = self.original_context / (2 * math.pi * turns)
            return self.n_dims * math.log(length) / (2 * math.log(self.base))

        low = max(math.floor(pair_with(self.beta_fast)), 0)
        high = min(math.ceil(pair_with(self.beta_slow)), self.n_dims - 1)
        stretched = min(max((pair - low) / max(high - low, 0.001), 0.0), 1.0)
        return (1 - stretched) + stretched / self.factor


def rope_from(fields: Fields, head_dim: int, longrope: bool = False) -> Rope:
    """What the metadata says; UnsupportedError for a scaling that is not known. longrope: whether
    the architecture has divisors by context."""
    scaling = fields.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "yarn", *(["longrope"] if longrope else [])):
        raise fields.unsupported("rope.scaling.type", f"{scaling!r:.40}: unknown")
    factor = fields.spelling("rope.scaling.factor", "rope.scale_linear")
    return Rope(
        n_dims=_dims_from(fields, "rope.dimension_count", head_dim, head_dim),
        base=_base_from(
            fields, fields.spelling("rope.freq_base", "rope.global.freq_base"), 10000.0
        ),
        scaling=scaling,
        factor=fields.number(factor, 1.0, or_zero=True) or 1.0,
        original_context=fields.integer(
            "rope.scaling.original_context_length", fields.integer("context_length")
        ),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        log_multiplier=fields.number("rope.scaling.yarn_log_multiplier", 0.0, or_zero=True),
        magnitude_factor=fields.number("rope.scaling.attn_factor", 1.0),
    )


def rope_in_window_from(
    fields: Fields, rope: Rope, head_dim: int, base: float | None = None
) -> Rope:
    """That of layers with a sliding window: as `rope`, but for its own width and base, if the
    metadata gives them; base: its base otherwise."""
    name, n_dims = fields.spelling("rope.freq_base_swa", "rope.local.freq_base"), rope.n_dims
    return replace(
        rope,
        n_dims=_dims_from(fields, "rope.dimension_count_swa", min(n_dims, head_dim), head_dim),
        base=_base_from(fields, name, rope.base if base is None else base),
    )


def _dims_from(fields: Fields, name: str, default: int, head_dim: int) -> int:
    """How many elements of a head turn."""
    n_dims = fields.integer(name, default)
    if n_dims % 2 or n_dims > head_dim:
        raise fields.error(name, f"expected an even number up to {head_dim}, found {n_dims}")
    return n_dims


def _base_from(fields: Fields, name: str, default: float) -> float:
    base = fields.number(name, default)
    if base <= 1:
        raise fields.error(name, f"expected a number above 1, found {base!r}")
    return base


def divisors_from(tensor: Tensor, n_dims: int) -> list[float]:
    """A model's own divisors of its rotations (Llama 3.1 has them), one for each pair."""
    shape = (n_dims // 2,)
    if tensor.shape != shape:
        raise FormatError(f"tensor {tensor.name}: shape {tensor.shape} where {shape} is expected")
    divisors: list[float] = tensor.dequantize().tolist()
    if not all(0 < divisor < math.inf for divisor in divisors):
        raise FormatError(f"tensor {tensor.name}: expected positive numbers, found others")
    return divisors
