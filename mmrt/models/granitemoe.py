"""Granite 3 with experts in every layer (IBM 2024), and in some one beside them that all tokens go
through: factors as Granite's."""

from mmrt.core.program import Program
from mmrt.models.granite import scaled
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, width="feed_forward_length")
    return scaled(transformer_config(fields, longrope=True, experts=experts), fields)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    divisors = model.divisors_by_context()
    model.embed(config.embedding_scale)
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=True, divisors=divisors)
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, "silu")
    model.logits()
