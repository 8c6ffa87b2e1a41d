"""SmolLM 3: as Llama, but every fourth layer rotates nothing."""

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_UNROTATED = 4


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    return transformer_config(fields)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        rotates = (layer.index + 1) % _UNROTATED != 0
        model.attention(layer, interleaved=True, rotates=rotates)
        model.norm(layer["ffn_norm"])
        model.gated_unit(layer, "silu")
    model.logits()
