"""Qwen 3 (Yang et al. 2025, arXiv:2505.09388): norms of each query and key."""

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    return transformer_config(fields)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(
            layer, interleaved=False, q_norm=layer["attn_q_norm"], k_norm=layer["attn_k_norm"]
        )
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "silu")
    model.logits()
