"""gpt-oss (OpenAI 2025, arXiv:2508.10925): clamped units in experts, with biases everywhere; every
other layer has a sliding window; a part of each head's attention goes into a sink."""

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_PATTERN = 2  # every second layer sees all keys


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, gating="chosen", normalised=False)
    return transformer_config(fields, window_pattern=_PATTERN, experts=experts)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(layer, interleaved=False, sinks=layer["attn_sinks"])
        model.norm(layer["post_attention_norm"])
        model.gated_unit_or_experts(layer, "clamped_silu")
    model.logits()
