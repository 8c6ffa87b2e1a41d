"""Command R7B and Command A (Cohere 2025, arXiv:2504.00698): attention and gated unit side by side
after one LayerNorm; three of four layers have a sliding window, and only these rotate."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_PATTERN = 4  # every fourth layer sees all keys


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, epsilon="attention.layer_norm_epsilon", window_pattern=_PATTERN)
    size = fields.integer("attention.sliding_window")
    return replace(c, window=replace(c.window, size=size), logit_scale=fields.number("logit_scale"))


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"], centred=True)
        rotates = config.window.slides(layer.index)
        model.attention(layer, interleaved=True, rotates=rotates)
        model.add()
        model.gated_unit(layer, "silu")
    model.logits(centred=True)
