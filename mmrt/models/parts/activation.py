"""The activation of feed-forward layers, in architectures whose files may say which it is."""

from typing import NamedTuple

from mmrt.models.parts.fields import Fields

# Of those that Program.glu() knows, those that are zero for gates below zero.
HAVE_ZEROS = ("relu", "relu2")

# As files name them, and as Program.glu() does.
_NAMES = {"silu": "silu", "relu": "relu", "relu2": "relu2", "fatrelu": "relu"}


class Activation(NamedTuple):
    name: str
    threshold: float = 0.0  # gates up to it count as zero


SILU = Activation("silu")


def activation_from(fields: Fields) -> Activation:
    """That of the field hidden_activation, SiLU without it: no file is guessed to have another.

    "fatrelu" (Song et al. 2024, arXiv:2402.13516) is ReLU of what exceeds a threshold, which
    hidden_activation_param says. UnsupportedError names the field for any other.
    """
    said = fields.text("hidden_activation", "silu")
    if said not in _NAMES:
        known = ", ".join(_NAMES)
        raise fields.unsupported("hidden_activation", f"expected {known}, found {said!r:.40}")
    threshold = fields.number("hidden_activation_param") if said == "fatrelu" else 0.0
    return Activation(_NAMES[said], threshold)
