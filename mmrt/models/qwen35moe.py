"""Qwen 3.5 and 3.6 with experts in every layer (Qwen Team 2026), and one that all tokens go
through, gated; most layers have the gated delta rule in place of attention."""

from mmrt.models import qwen35
from mmrt.models.parts.config import Config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.qwen35 import build

__all__ = ["build", "config"]


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    return qwen35.config(fields, experts_from(fields))
