"""The language model of Qwen2-VL. Text has the same position along all axes: it is as Qwen 2's."""

from mmrt.models.qwen2 import build, config

__all__ = ["build", "config"]
