"""Qwen 3.5 and 3.6, those without experts (Qwen Team 2026): three of four layers keep a matrix for
each head, written by the gated delta rule (Yang et al. 2025, arXiv:2412.06464); the fourth attends,
and its heads are gated."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import Experts
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.recurrent import DeltaNet, delta_net
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights


def config(fields: Fields, experts: Experts | None = None, grouped: bool = False) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field.
    experts: of layers that have some; grouped: as delta_net()'s."""
    c = transformer_config(fields, experts=experts)
    n_blocks = c.n_layers + c.n_predicting
    return replace(c, recurrent=delta_net(fields, n_blocks, grouped=grouped))


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    net = config.recurrent
    assert isinstance(net, DeltaNet)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        if net.layers[layer.index]:
            model.delta_net(layer, net)
        else:
            model.attention(
                layer,
                interleaved=False,
                q_norm=layer["attn_q_norm"],
                k_norm=layer["attn_k_norm"],
                gated=True,
            )
        model.norm(layer["post_attention_norm"])
        shared_gate = layer["ffn_gate_inp_shexp"] if config.experts is not None else None
        model.gated_unit_or_experts(layer, "silu", shared_gate=shared_gate)
    model.logits()
