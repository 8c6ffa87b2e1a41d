"""Ernie 4.5 (Baidu 2025), those without experts: as Llama."""

from mmrt.models.llama import build, config

__all__ = ["build", "config"]
