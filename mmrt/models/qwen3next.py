"""Qwen3-Next (Qwen Team 2025): as Qwen 3.5 with experts, but that heads of values which share a key
are neighbours."""

from mmrt.models import qwen35
from mmrt.models.parts.config import Config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.qwen35 import build

__all__ = ["build", "config"]


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    return qwen35.config(fields, experts_from(fields), grouped=True)
