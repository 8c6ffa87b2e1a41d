"""OPT (Zhang et al. 2022, arXiv:2205.01068): positions have embeddings, all matrices and norms
biases; units have no gate, and ReLU leaves most of them at zero."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_FIRST_POSITION = 2  # the table's rows before it are of no position


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, epsilon="attention.layer_norm_epsilon")
    if not fields.flag("do_layer_norm_before", True):  # in OPT 350M
        raise fields.unsupported(
            "do_layer_norm_before", "false, but mmrt runs models with norms before sub-layers"
        )
    return replace(c, rotates=False)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed(first_position=_FIRST_POSITION)
    for layer in model.layers():
        model.norm(layer["attn_norm"], bias=layer.beside("attn_norm.bias"), centred=True)
        model.attention(layer, interleaved=False, rotates=False)
        model.norm(layer["ffn_norm"], bias=layer.beside("ffn_norm.bias"), centred=True)
        model.plain_unit(layer, "relu")
    model.logits(centred=True, biased=True)
