"""Gemma 3, text only (Gemma Team 2025, arXiv:2503.19786): five layers with a sliding window, then
one that sees all; norms before and after each sub-layer, and of queries and keys."""

import math
from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_PATTERN = 6  # every sixth layer sees all keys
_LOCAL_ROPE_BASE = 10000.0
_LAYERS_OF_27B = 62


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, window_pattern=_PATTERN, window_base=_LOCAL_ROPE_BASE)
    # Layers with a window are not stretched.
    c = replace(c, rope_in_window=c.rope_in_window.unstretched())
    if c.n_layers == _LAYERS_OF_27B and not fields.number("attention.scale", 0.0, or_zero=True):
        # This size alone scales scores by the width of a head's share of the stream.
        c = replace(c, attention_scale=(c.n_embd / c.n_heads) ** -0.5)
    return c


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed(scale=math.sqrt(config.n_embd))
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(
            layer,
            interleaved=False,
            q_norm=layer["attn_q_norm"],
            k_norm=layer["attn_k_norm"],
            post=layer["post_attention_norm"],
        )
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "gelu", post=layer["post_ffw_norm"])
    model.logits()
