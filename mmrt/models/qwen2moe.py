"""Qwen 1.5 and 2 with experts (Yang et al. 2024, arXiv:2407.10671): as Qwen 2, with experts in
every layer, and one beside them that all tokens go through, as far as a gate lets it."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, normalised=False)
    if experts is not None and not experts.shared_width:
        experts = replace(experts, shared_width=fields.integer("feed_forward_length"))
    return transformer_config(fields, experts=experts)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=False)
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, "silu", shared_gate=layer["ffn_gate_inp_shexp"])
    model.logits()
