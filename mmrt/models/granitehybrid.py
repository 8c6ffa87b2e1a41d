"""Granite 4 with state spaces (IBM 2025): most layers have Mamba 2's in place of attention (Dao and
Gu 2024, arXiv:2405.21060); after either, in every layer, a gated unit, or experts and one beside
them that all tokens go through; factors as Granite's."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.granite import scaled
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.recurrent import StateSpaces, layers_without_heads, state_spaces
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, width="feed_forward_length")
    c = scaled(transformer_config(fields, experts=experts, recurrent=True), fields)
    n_blocks = c.n_layers + c.n_predicting
    heads = fields.integers("attention.head_count_kv", n_blocks, least=0)
    return replace(
        c,
        recurrent=state_spaces(fields, layers_without_heads(heads, n_blocks)),
        rotates=fields.flag("rope.scaling.finetuned", True),
    )


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    spaces = config.recurrent
    assert isinstance(spaces, StateSpaces)
    model.embed(config.embedding_scale)
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        if spaces.layers[layer.index]:
            model.state_spaces(layer, spaces)
        else:
            model.attention(layer, interleaved=True, rotates=config.rotates)
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, "silu")
    model.logits()
