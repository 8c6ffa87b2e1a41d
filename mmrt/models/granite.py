"""Granite 3 and 4, those without experts: factors of embeddings, of what is added to the stream, of
scores and of logits (Yang et al. 2022, arXiv:2203.03466)."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = scaled(transformer_config(fields, longrope=True), fields)
    return replace(c, rotates=fields.flag("rope.scaling.finetuned", True))


def scaled(config: Config, fields: Fields) -> Config:
    """With the factors of the metadata."""
    return replace(
        config,
        embedding_scale=fields.factor("embedding_scale"),
        residual_scale=fields.factor("residual_scale"),
        logit_scale=1 / fields.factor("logit_scale"),  # it divides
    )


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    divisors = model.divisors_by_context()
    model.embed(config.embedding_scale)
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=True, rotates=config.rotates, divisors=divisors)
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "silu")
    model.logits()
