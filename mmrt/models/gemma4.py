"""Gemma 4, text only (Gemma Team 2026): layers with a sliding window and some that see all, whose
heads are wider; norms of queries, keys and values, and before and after each sub-layer."""

import math
from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_LOCAL_ROPE_BASE = 10000.0  # where the file does not say
_LOGIT_SOFTCAP = 30.0  # likewise


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    fields.integer("attention.sliding_window")  # every file has one, and says where
    fields.flags("attention.sliding_window_pattern", fields.integer("block_count"))
    c = transformer_config(fields, window_base=_LOCAL_ROPE_BASE, by_layer=True)
    softcap = fields.number("final_logit_softcapping", _LOGIT_SOFTCAP, or_zero=True)
    return replace(c, attention_scale=1.0, logit_softcap=softcap)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed(scale=math.sqrt(config.n_embd))
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(
            layer,
            interleaved=False,
            divisors=None if config.window.of(layer.index) else weights["rope_freqs.weight"],
            q_norm=layer["attn_q_norm"],
            k_norm=layer["attn_k_norm"],
            keys_are_values=layer.get("attn_v") is None,
            normed_values=True,
            post=layer["post_attention_norm"],
        )
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "gelu", post=layer["post_ffw_norm"])
        model.multiply(weights.factor(f"blk.{layer.index}.layer_output_scale.weight"))
    model.logits()
