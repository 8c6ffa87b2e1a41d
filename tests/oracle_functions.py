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


def attention(
    q: Array,
    k: Array,
    v: Array,
    window: int | None = None,
    softcap: float = 0.0,
    scale: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """Causal softmax attention; q, k, v are (positions, heads, head_dim), the result has its heads
    joined. Consecutive query heads share a head of k and v. With a window, a position sees itself
    and the window - 1 before it. With a softcap, scores stay below it. scale: of the scores, if not
    1 / sqrt(head_dim). sinks: for each head a score more, of no key."""
    n, heads, head_dim = q.shape
    distance = np.arange(n)[:, None] - np.arange(n)
    visible = distance >= 0
    if window is not None:
        visible &= distance < window

    out = np.empty((n, heads, v.shape[-1]), np.float32)
    for head in range(heads):
        shared = head * k.shape[1] // heads
        scores = q[:, head] @ k[:, shared].T * np.float32(scale or 1 / np.sqrt(head_dim))
        if softcap:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        scores = np.where(visible, scores, np.float32(-np.inf))
        if sinks is not None:
            scores = np.column_stack([scores, np.full(n, sinks[head])])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        out[:, head] = weights[:, :n] @ v[:, shared]
    return out.reshape(n, -1)
