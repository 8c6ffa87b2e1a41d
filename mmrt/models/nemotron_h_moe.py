"""Nemotron 3 (NVIDIA 2025): as Nemotron-H, with experts in place of units, chosen
with a bias by sigmoids, and one beside them that all tokens go through."""

from dataclasses import replace

from mmrt.models import nemotron_h
from mmrt.models.nemotron_h import build
from mmrt.models.parts.config import Config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields

__all__ = ["build", "config"]


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    experts = experts_from(fields, gating="sigmoid", normalised=False)
    if experts is not None:
        latent = fields.integer("moe_latent_size", 0, least=0)
        experts = replace(experts, latent=latent)
    return nemotron_h.config(fields, experts)
