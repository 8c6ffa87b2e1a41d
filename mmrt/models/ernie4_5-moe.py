"""Ernie 4.5 with experts (Baidu 2025): as Llama in its first layers; the others have experts, and
some beside them that all tokens go through."""

from mmrt.models.llama import build, config

__all__ = ["build", "config"]
