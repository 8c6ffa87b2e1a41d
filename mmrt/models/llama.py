"""Llama, Mistral, SmolLM and others of the same shape (Touvron et al. 2023, arXiv:2302.13971), and
Mixtral, whose layers have experts (Jiang et al. 2024, arXiv:2401.04088); also with ReLU in place of
SiLU, where the file says so."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.activation import SILU, activation_from
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, width="feed_forward_length")
    activation = activation_from(fields)
    if experts and activation != SILU:
        raise fields.unsupported("hidden_activation", "mmrt runs experts of this family with silu")
    return replace(transformer_config(fields, experts=experts), activation=activation)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=True, divisors=model.divisors(layer))
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, *config.activation)
    model.logits()
