"""Latent attention (DeepSeek-AI 2024, arXiv:2405.04434), for the reference logits: all heads read
one row of each token, with their own matrices before and after."""

from dataclasses import replace
from typing import Any

import numpy as np
from oracle_functions import Array, attention, rms_norm
from oracle_rope import Rope, stretched


def latent_attention(weight: Any, x: Array, epsilon: float) -> Array:
    """What attention adds to the stream; weight: the oracle's Layer."""
    model = weight.model
    heads, head_dim = model.get("attention.head_count"), model.get("attention.key_length_mla")
    values, turned = model.get("attention.kv_lora_rank"), model.get("rope.dimension_count")

    q = x
    if weight.has("attn_q_a.weight"):
        q = rms_norm(weight.product(x, "attn_q_a"), weight("attn_q_a_norm"), epsilon)
    q = weight.product(q, "attn_q_b" if weight.has("attn_q_a.weight") else "attn_q")
    q = q.reshape(len(x), heads, head_dim)
    row = weight.product(x, "attn_kv_a_mqa")[:, None]

    rope = Rope(model.get("rope.freq_base", 10000.0), turned, neox=False)
    share = model.get("rope.scaling.yarn_log_multiplier", 0.0)
    growth = model.get("rope.scaling.attn_factor", 1.0)  # of queries and keys alike
    rope = stretched(rope, model)
    if model.get("rope.scaling.type", "") == "yarn":
        factor = np.log(model.get("rope.scaling.factor"))
        magnitude = growth * (1.0 if share else 1 + 0.1 * factor)
        rope, growth = replace(rope, magnitude=magnitude), magnitude * (1 + share * factor)
    else:
        growth = 1.0

    latent = rms_norm(row[..., :values], weight("attn_kv_a_norm"), epsilon)
    key = model.stored(np.concatenate([latent, rope(row[..., values:])], axis=-1))
    inner = weight.product_of_heads(q[..., : head_dim - turned], "attn_k_b")
    query = np.concatenate([inner, rope(q[..., head_dim - turned :])], axis=-1)
    scale = growth**2 / np.sqrt(head_dim)
    found = attention(query, key, key[..., :values], scale=scale)
    found = weight.product_of_heads(found.reshape(len(x), heads, values), "attn_v_b")
    return np.asarray(weight.product(found.reshape(len(x), -1), "attn_output"))
