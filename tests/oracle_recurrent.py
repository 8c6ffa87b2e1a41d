"""Recurrent layers of oracle.py, each over all positions of one text, in their order."""

import numpy as np
from oracle_functions import Array, rms_norm, sigmoid, silu
from oracle_model import Layer


def short_convolution(weight: Layer, h: Array) -> Array:
    """Of each channel with its latest values, between two gates."""
    before, after, x = np.split(weight.product(h, "shortconv.in_proj"), 3, axis=-1)
    kernel = weight("shortconv.conv")
    taps = kernel.shape[1]
    u = np.concatenate([np.zeros((taps - 1, x.shape[1]), np.float32), before * x])
    y = sum(kernel[:, tap] * u[tap : tap + len(x)] for tap in range(taps))
    return weight.product(after * y, "shortconv.out_proj")


def gated_delta_net(weight: Layer, h: Array) -> Array:
    """Of each head a matrix, from keys to values, that decays and is corrected by each token."""
    model = weight.model
    dim, n_keys, n_values, taps = (
        model.get(f"ssm.{name}")
        for name in ("state_size", "group_count", "time_step_rank", "conv_kernel")
    )
    share = n_values // n_keys
    grouped = model.architecture == "qwen3next"
    u = weight.product(h, "attn_qkv")
    kernel = weight("ssm_conv1d")
    padded = np.concatenate([np.zeros((taps - 1, u.shape[1]), np.float32), u])
    u = silu(sum(kernel[:, tap] * padded[tap : tap + len(u)] for tap in range(taps)))
    q, k, v = np.split(u, [n_keys * dim, 2 * n_keys * dim], axis=-1)
    q, k = (unit_length(x.reshape(len(h), n_keys, dim), weight) for x in (q, k))
    v, z = v.reshape(len(h), -1, dim), weight.product(h, "attn_gate").reshape(len(h), -1, dim)
    if grouped:
        both = weight.product(h, "ssm_ba").reshape(len(h), n_keys, 2, share)
        write, decay = (both[:, :, i].reshape(len(h), -1) for i in range(2))
    else:
        write, decay = (weight.product(h, f"ssm_{name}") for name in ("beta", "alpha"))
    write = sigmoid(write)
    decay = np.log1p(np.exp(decay + model.tensor(f"{weight.prefix}ssm_dt.bias")))
    decay = np.exp(decay * model.tensor(f"{weight.prefix}ssm_a"))
    out = np.zeros_like(v)
    for head in range(n_values):
        shared = head // share if grouped else head % n_keys
        state = np.zeros((dim, dim), np.float32)
        for t in range(len(h)):
            state = state * decay[t, head]
            change = (v[t, head] - k[t, shared] @ state) * write[t, head]
            state = state + np.outer(k[t, shared], change)
            out[t, head] = q[t, shared] @ state / np.sqrt(np.float32(dim))
    epsilon = model.get("attention.layer_norm_rms_epsilon")
    y = rms_norm(out, weight("ssm_norm"), epsilon) * silu(z)
    return weight.product(y.reshape(len(h), -1), "ssm_out")


def state_spaces(weight: Layer, h: Array) -> Array:
    """Of each head a matrix, which decays and grows by each token as much as its step says."""
    model, n = weight.model, len(h)
    states, groups, heads, taps, inner = (
        model.get(f"ssm.{name}")
        for name in ("state_size", "group_count", "time_step_rank", "conv_kernel", "inner_size")
    )
    step_bias, factor, skip = (
        model.tensor(f"{weight.prefix}{name}").reshape(heads)
        for name in ("ssm_dt.bias", "ssm_a", "ssm_d")
    )
    projected = weight.product(h, "ssm_in")
    z, u, step = np.split(projected, [inner, 2 * inner + 2 * groups * states], axis=-1)
    kernel = weight("ssm_conv1d")
    padded = np.concatenate([np.zeros((taps - 1, u.shape[1]), np.float32), u])
    u = sum(kernel[:, tap] * padded[tap : tap + n] for tap in range(taps))
    if weight.has("ssm_conv1d.bias"):
        u = u + model.tensor(f"{weight.prefix}ssm_conv1d.bias")
    x, b, c = np.split(silu(u), [inner, inner + groups * states], axis=-1)
    x = x.reshape(n, heads, -1)
    b, c = (np.repeat(m.reshape(n, groups, -1), heads // groups, axis=1) for m in (b, c))
    step = np.log1p(np.exp(step + step_bias))
    state = np.zeros((heads, states, inner // heads), np.float32)
    out = np.zeros_like(x)
    for t in range(n):
        added = b[t][:, :, None] * (step[t][:, None] * x[t])[:, None]
        state = state * np.exp(step[t] * factor)[:, None, None] + added
        out[t] = (c[t][:, :, None] * state).sum(axis=1) + skip[:, None] * x[t]
    y = (out.reshape(n, inner) * silu(z)).reshape(n, groups, -1)
    norm = weight("ssm_norm").reshape(groups, -1)
    y = rms_norm(y, norm, model.get("attention.layer_norm_rms_epsilon"))
    return weight.product(y.reshape(n, inner), "ssm_out")


def unit_length(x: Array, weight: Layer) -> Array:
    epsilon = weight.model.get("attention.layer_norm_rms_epsilon")
    return np.asarray(x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), epsilon))
