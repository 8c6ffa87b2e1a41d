"""GLM 4, the dense ones of 2025: norms before and after each sub-layer; a part of each head turns;
one matrix for gate and up."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    has_axes = fields.is_array("rope.dimension_sections")
    return replace(transformer_config(fields), has_axes=has_axes)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        # Models that see images have their pairs in two halves.
        halves, post = config.has_axes, layer["post_attention_norm"]
        model.attention(layer, interleaved=not halves, post=post)
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "silu", fused=True, post=layer["post_ffw_norm"])
    model.logits()
