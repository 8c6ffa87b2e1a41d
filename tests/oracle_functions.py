"""Norms, activations and roundings, in plain NumPy, of which the reference logits are made."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def round_to_int8(x: Array) -> Array:
    """Groups of 32 rounded to -127..127 times a scale."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, 1 / scale, 0).astype(np.float32)
    return np.asarray((np.rint(groups * inverse) * scale).reshape(x.shape), np.float32)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + epsilon), np.float32) * weight


def layer_norm(x: Array, weight: Array, epsilon: float) -> Array:
    mean = np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    return rms_norm(np.asarray(x - mean, np.float32), weight, epsilon)


def silu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)))


def gelu(x: Array) -> Array:
    """The tanh approximation, as the models were trained with."""
    return np.asarray(
        x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=x.dtype) * (x + 0.044715 * x**3)))
    )


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu2(x: Array) -> Array:
    return np.maximum(x, 0) ** 2


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def swiglu(gate: Array, up: Array) -> Array:
    return silu(gate) * up


def clamped_swiglu(gate: Array, up: Array) -> Array:
    """That of gpt-oss."""
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return np.asarray(gate * sigmoid(np.float32(1.702) * gate) * (up + 1))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
