"""MiniMax M2 (MiniMax 2025): as OLMoE, but for its experts, which sigmoids choose, with a bias."""

from mmrt.models.olmoe import build
from mmrt.models.parts.config import Config, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields

__all__ = ["build", "config"]


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, gating="sigmoid", width="feed_forward_length")
    return transformer_config(fields, experts=experts)
