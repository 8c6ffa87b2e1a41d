"""EXAONE 4 (LG AI Research 2025, arXiv:2507.11407): norms after sub-layers, and of each query and
key. In the 32B three of four layers have a sliding window, and only these rotate."""

from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_PATTERN = 4  # every fourth layer sees all keys
_WINDOW = 4096  # where the file does not say
_LAYERS_OF_32B = 64


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config(fields, window_pattern=_PATTERN)
    size = fields.integer("attention.sliding_window", _WINDOW, least=0)
    # By this number of layers the runtimes that files are tested with tell the 32B.
    return replace(c, window=replace(c.window, size=size if c.n_layers == _LAYERS_OF_32B else 0))


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    hybrid = config.n_layers == _LAYERS_OF_32B
    model.embed(normed=False)
    for layer in model.layers():
        model.attention(
            layer,
            interleaved=False,
            rotates=not hybrid or config.window.slides(layer.index),
            divisors=model.divisors(layer),
            q_norm=layer["attn_q_norm"],
            k_norm=layer["attn_k_norm"],
            post=layer["post_attention_norm"],
        )
        model.add()
        model.gated_unit(layer, "silu", post=layer["post_ffw_norm"])
        model.add()
    model.logits()
