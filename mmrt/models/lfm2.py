"""LFM 2 (Liquid AI 2025, arXiv:2511.23404): most layers have a short convolution between two gates
in place of attention, and keep the last few tokens alone; the others norm each query and key, and
rotate by halves."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import Experts
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.recurrent import short_convolutions
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields, experts: Experts | None = None) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field.
    experts: of layers that have some."""
    c = transformer_config(fields, experts=experts, recurrent=True)
    return replace(c, recurrent=short_convolutions(fields, c.n_layers + c.n_predicting))


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    assert config.recurrent is not None
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        if config.recurrent.layers[layer.index]:
            model.short_convolution(layer, config.recurrent.taps)
        else:
            model.attention(
                layer, interleaved=False, q_norm=layer["attn_q_norm"], k_norm=layer["attn_k_norm"]
            )
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, "silu")
    model.logits(norm="token_embd_norm")
