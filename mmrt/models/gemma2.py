"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): every other layer has a sliding window; norms before
and after each sub-layer; soft caps of scores and logits."""

import math
from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_PATTERN = 2  # every second layer sees all keys
_WINDOW = 4096  # where the file does not say
_LAYERS_OF_27B = 46


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, window_pattern=_PATTERN)
    size = fields.integer("attention.sliding_window", _WINDOW, least=0)
    caps = (
        fields.number(name, default, or_zero=True)
        for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0))
    )
    c = replace(c, window=replace(c.window, size=size))
    c = replace(c, attention_softcap=next(caps), logit_softcap=next(caps))
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
        model.attention(layer, interleaved=False, post=layer["post_attention_norm"])
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "gelu", post=layer["post_ffw_norm"])
    model.logits()
