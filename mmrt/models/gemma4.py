"""Gemma 4, text only (Gemma Team 2026): layers with a sliding window and some that see all, whose
heads are wider; norms of queries, keys and values, and before and after each sub-layer. The small
ones have embeddings for each layer too, and layers that share the keys and values of others; one
has experts beside each gated unit."""

import math
from dataclasses import replace

from mmrt.core.program import Program
from mmrt.core.tensor import Tensor
from mmrt.errors import UnsupportedError
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Layer, Weights

_LOCAL_ROPE_BASE = 10000.0  # where the file does not say
_LOGIT_SOFTCAP = 30.0  # likewise
_MOST_EMBEDDED = 1 << 29  # values of a token in all layers


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    fields.integer("attention.sliding_window")  # every file has one, and says where
    slides = fields.flags("attention.sliding_window_pattern", fields.integer("block_count"))
    c = transformer_config(
        fields, window_base=_LOCAL_ROPE_BASE, experts=experts_from(fields), by_layer=True
    )
    n_sharing = fields.integer("attention.shared_kv_layers", 0, least=0)
    keeping = slides[: max(c.n_layers - n_sharing, 0)]
    if set(slides[: c.n_layers]) != set(keeping):
        raise fields.error(
            "attention.shared_kv_layers", f"{n_sharing} of {c.n_layers}: some have none to share"
        )
    name = "embedding_length_per_layer_input"
    layer_embedding = fields.integer(name, 0, least=0)
    if c.n_layers * layer_embedding > _MOST_EMBEDDED:
        raise fields.error(name, f"{layer_embedding} exceeds the supported maximum")
    return replace(
        c,
        attention_scale=1.0,
        logit_softcap=fields.number("final_logit_softcapping", _LOGIT_SOFTCAP, or_zero=True),
        n_sharing=n_sharing,
        layer_embedding=layer_embedding,
    )


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    if len(config.layers) < config.n_layers and (config.n_sharing or config.layer_embedding):
        raise UnsupportedError("its layers need what others have, and only all of them run")
    model = Transformer(program, config, weights)
    divisors = weights["rope_freqs.weight"]  # of layers that see all
    model.embed(scale=math.sqrt(config.n_embd))
    if config.layer_embedding:
        model.embed_in_layers()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        _attention(model, config, layer, divisors)
        model.norm(layer["ffn_norm"])
        if config.experts is not None:
            model.gated_unit_and_experts(layer, "gelu", post=layer["post_ffw_norm"])
        else:
            model.gated_unit(layer, "gelu", post=layer["post_ffw_norm"])
        if config.layer_embedding:
            model.embedded_unit(layer, "gelu", post=layer["post_norm"])
        model.multiply(weights.factor(f"blk.{layer.index}.layer_output_scale.weight"))
    model.logits()


def _attention(model: Transformer, config: Config, layer: Layer, divisors: Tensor) -> None:
    keeps = config.keys_of(layer.index) == layer.index
    own = [layer.get(name) for name in ("attn_k", "attn_v", "attn_k_norm")]  # in files regardless
    model.attention(
        layer,
        interleaved=False,
        divisors=None if config.window.of(layer.index) else divisors,
        q_norm=layer["attn_q_norm"],
        k_norm=layer["attn_k_norm"] if keeps else None,
        keys_are_values=own[1] is None,
        normed_values=True,
        post=layer["post_attention_norm"],
    )
