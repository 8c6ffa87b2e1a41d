"""Nemotron-H and Nemotron Nano 2 (NVIDIA 2025, arXiv:2504.03624): each layer has one part, most
Mamba 2's state spaces (Dao and Gu 2024, arXiv:2405.21060), a few attention without rotations, the
others a unit that has no gate and squares what is positive."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import Experts
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.recurrent import StateSpaces, layers_without_heads, state_spaces
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields, experts: Experts | None = None) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field.
    experts: in place of units."""
    epsilon = fields.spelling("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
    c = transformer_config(fields, epsilon=epsilon, experts=experts, recurrent=True, alone=True)
    n_blocks = c.n_layers + c.n_predicting
    heads = fields.integers("attention.head_count_kv", n_blocks, least=0)
    without = layers_without_heads(heads, n_blocks)
    units = tuple(c.n_ff[layer] > 0 for layer in range(n_blocks))
    for layer, (unit, no_heads) in enumerate(zip(units, without, strict=True)):
        if unit and not no_heads:
            raise fields.error(
                "feed_forward_length", f"layer {layer} has attention, and a unit beside it"
            )
    recurrent = tuple(not unit and each for unit, each in zip(units, without, strict=True))
    return replace(c, recurrent=state_spaces(fields, recurrent), units_alone=units)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    spaces = config.recurrent
    assert isinstance(spaces, StateSpaces)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        if spaces.layers[layer.index]:
            model.state_spaces(layer, spaces)
        elif config.units_alone[layer.index]:
            model.plain_unit_or_experts(layer, "relu2")
        else:
            model.attention(layer, interleaved=False, rotates=False)
    model.logits()
