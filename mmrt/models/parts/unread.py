"""What a file says of its model and nobody has read.

A number or a tensor that a model needs, passed over, makes fluent nonsense. So everything is read,
or known to change nothing, or refused.
"""

from typing import Any

from mmrt.errors import UnsupportedError
from mmrt.models.parts.config import Config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.weights import Weights

# Fields of an architecture that say nothing about what its layers compute from text.
_HARMLESS = {
    "vocab_size",  # the rows of the embedding
    "tensor_data_layout",  # how the converter found the weights
    "pooling_type",  # how embeddings are made of the last layer's output, which has logits too
    "decoder_start_token_id",  # of models with an encoder
    "n_deepstack_layers",  # where features of images enter
    "attention.layer_norm_epsilon",  # of LayerNorm, beside the epsilon of the RMS norms
    "rope.dimension_sections",  # of positions in images; a token of text has the same in all
    "rope.scaling.finetuned",  # whether the stretched model was trained further
}
_OTHER_PARTS = ("vision.", "audio.", "mm.", "clip.")  # their fields begin so

# Values that leave the result as it is, where that is not zero, false or empty.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "embedding_scale": (1,),
    "residual_scale": (1,),
    "logit_scale": (1,),
    "expert_weights_scale": (1,),
    "full_attention_interval": (1,),
    "attention.output_scale": (1,),
    "attention.value_scale": (1,),
    "rope.scaling.alpha": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),  # -1: as the type of scaling says
}

# Tensors of the towers for images and sound, and scales of activations for hardware that
# multiplies in four bits.
_OTHER_TOWERS = ("v.", "a.", "mm.")
_INPUT_SCALE = ".input_scale"

# Tensors that a program of the later or of the earlier layers alone does not read.
_BEFORE_LAYERS = ("token_embd.", "position_embd.")
_AFTER_LAYERS = ("output_norm.", "token_embd_norm.", "output.")

_UNKNOWN = "mmrt does not know what to do with it"


def refuse_unread_fields(fields: Fields) -> None:
    """UnsupportedError for a field that may change the result and that nobody has asked for."""
    for name, value in fields.unread().items():
        if not (name in _HARMLESS or name.startswith(_OTHER_PARTS) or _is_neutral(name, value)):
            raise fields.unsupported(_printable(name), f"{value!r:.60}: {_UNKNOWN}")


def _is_neutral(name: str, value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(not each or each in _NEUTRAL.get(name, ()) for each in values)


def refuse_unread_tensors(weights: Weights, config: Config) -> None:
    """UnsupportedError for a tensor that may change the result and that nobody has asked for."""
    end = config.n_layers + config.n_predicting
    others = (i for i in range(end) if i not in config.layers)
    harmless = (*_OTHER_TOWERS, *(f"blk.{i}." for i in others))
    if config.layers.start:
        harmless += _BEFORE_LAYERS
    if config.layers.stop < config.n_layers:
        harmless += _AFTER_LAYERS
    for name in weights.unused():
        if not (name.startswith(harmless) or name.endswith(_INPUT_SCALE)):
            raise UnsupportedError(f"tensor {_printable(name)}: {_UNKNOWN}")


def _printable(name: str) -> str:
    return repr(name)[1:-1][:80]
