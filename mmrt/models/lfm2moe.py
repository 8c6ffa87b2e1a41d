"""LFM 2 with experts (Liquid AI 2025, arXiv:2511.23404) in all layers but the first few, chosen
with a bias by sigmoids; short convolutions in place of most attention."""

from mmrt.models import lfm2
from mmrt.models.lfm2 import build
from mmrt.models.parts.config import Config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields

__all__ = ["build", "config"]


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    return lfm2.config(fields, experts_from(fields, gating="sigmoid"))
