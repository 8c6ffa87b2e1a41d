"""Ministral 3 and Devstral 2: as Llama, with queries that grow with their position."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields)
    temperature = fields.number("attention.temperature_scale", 0.0, or_zero=True)
    return replace(c, temperature=temperature, temperature_period=c.rope.original_context)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=True, divisors=model.divisors(layer))
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "silu")
    model.logits()
