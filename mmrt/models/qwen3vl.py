"""The language model of Qwen3-VL. Text has the same position along all axes: it is as Qwen 3's."""

from mmrt.models.qwen3 import build, config

__all__ = ["build", "config"]
