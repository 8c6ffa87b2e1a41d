"""Recurrent layers, which keep a block of fixed size in place of keys and values."""

from dataclasses import dataclass

from mmrt.models.parts.fields import Fields, PerLayer


@dataclass(frozen=True)
class Recurrent:
    layers: tuple[bool, ...]  # which are
    taps: int  # of their convolutions: inputs that one output is made of
    n_floats: int  # that each keeps


def layers_without_heads(heads: PerLayer, n_layers: int) -> tuple[bool, ...]:
    """Which layers have no heads of keys and values."""
    return tuple(heads[layer] == 0 for layer in range(n_layers))


def short_convolutions(fields: Fields, n_layers: int) -> Recurrent:
    """As LFM2 has them: in layers without heads of keys, with as many channels as the stream."""
    taps = fields.integer("shortconv.l_cache", least=2)
    heads = fields.integers("attention.head_count_kv", n_layers, least=0)
    n_floats = (taps - 1) * fields.integer("embedding_length")
    return Recurrent(layers_without_heads(heads, n_layers), taps, n_floats)
