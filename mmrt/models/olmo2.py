"""OLMo 2 and 3 (OLMo Team 2024, arXiv:2501.00656): no norms before sub-layers, but after them, and
of all queries, and of all keys, together."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_PATTERN = 4  # every fourth layer sees all keys


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, window_pattern=_PATTERN)
    # Layers with a window are not stretched.
    nearby = replace(c.rope_in_window.unstretched(), magnitude_factor=1.0)
    return replace(c, rope_in_window=nearby)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed(normed=False)
    for layer in model.layers():
        model.attention(
            layer,
            interleaved=False,
            q_norm=layer["attn_q_norm"],
            k_norm=layer["attn_k_norm"],
            wide_norms=True,
            post=layer["post_attention_norm"],
        )
        model.add()
        model.gated_unit(layer, "silu", post=layer["post_ffw_norm"])
        model.add()
    model.logits()
