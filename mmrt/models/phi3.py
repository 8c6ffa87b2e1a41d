"""Phi 3 and 4 (Abdin et al. 2024, arXiv:2404.14219): one matrix for queries, keys and values, one
for gate and up; rotations for short and for long contexts."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, SlidingWindow, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, longrope=True)
    # What files say of a window is their checkpoint's note for faster attention: these models see
    # all keys, and so do the runtimes that their conversions are tested with.
    return replace(c, window=SlidingWindow(0, 0))


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    divisors = model.divisors_by_context()
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=False, divisors=divisors)
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "silu", fused=True)
    model.logits()
