"""GLM 4.5 to 4.7 (GLM-4.5 Team 2025, arXiv:2508.06471): the first layers are dense; the others have
experts, chosen with a bias by sigmoids, and some beside them that all tokens go through; a part of
each head turns. The last blocks guess further tokens, and do not run."""

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, gating="sigmoid", normalised=False)
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
            q_norm=layer.get("attn_q_norm"),
            k_norm=layer.get("attn_k_norm"),
        )
        model.norm(layer["post_attention_norm"])
        model.gated_unit_or_experts(layer, "silu")
    model.logits()
