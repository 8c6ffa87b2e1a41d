"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): experts in every layer; norms of all queries,
and of all keys, together."""

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, normalised=False, width="feed_forward_length")
    return transformer_config(fields, experts=experts)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.attention(
            layer,
            interleaved=False,
            q_norm=layer["attn_q_norm"],
            k_norm=layer["attn_k_norm"],
            wide_norms=True,
        )
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, "silu")
    model.logits()
