"""Gemma 4, for the reference logits: heads and windows by layer, keys and values that later layers
share, embeddings for each layer, and experts beside a unit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle_functions import Array, attention, gelu, rms_norm, softmax
from oracle_model import Layer, Model, split_heads
from oracle_rope import Rope


def unweighted_norm(x: Array, epsilon: float) -> Array:
    return rms_norm(x, np.ones(x.shape[-1], np.float32), epsilon)


def layer_embeddings(model: Model, ids: NDArray[np.int64], x: Array, epsilon: float) -> Array:
    """What each layer has of each token beside the stream: (positions, layers, width)."""
    width = model.get("embedding_length_per_layer_input", 0)
    if not width:
        return np.empty((len(x), 0, 0), np.float32)
    rows = model.tensor("per_layer_token_embd.weight", ids) * np.float32(np.sqrt(width))
    made = model.product(x, "per_layer_model_proj") / np.float32(np.sqrt(x.shape[-1]))
    made = made.reshape(len(x), -1, width)
    made = rms_norm(made, model.tensor("per_layer_proj_norm.weight"), epsilon)
    return np.asarray((rows.reshape(made.shape) + made) / np.sqrt(2), np.float32)


def unit(weight: Layer, h: Array) -> Array:
    h = gelu(weight.product(h, "ffn_gate")) * weight.product(h, "ffn_up")
    return weight.product(h, "ffn_down")


def experts(weight: Layer, x: Array, epsilon: float) -> Array:
    """The stream through those that the router chooses, which reads it otherwise than they do."""
    model = weight.model
    seen = unweighted_norm(x, epsilon) * model.tensor(f"{weight.prefix}ffn_gate_inp.scale")
    logits = np.asarray(seen @ weight("ffn_gate_inp").T / np.sqrt(x.shape[-1]), np.float32)
    h = rms_norm(x, weight("pre_ffw_norm_2"), epsilon)
    y = np.zeros_like(x)
    for row, scores in enumerate(softmax(logits)):
        chosen = np.argsort(-scores, kind="stable")[: model.get("expert_used_count")]
        for expert in chosen:
            gate, up = weight.gate_and_up(expert, h[row : row + 1])
            out = weight.of_expert(expert, gelu(gate) * up, "ffn_down_exps")
            y[row] += out[0] * (scores[expert] / scores[chosen].sum())
    return y


def gemma4(model: Model, ids: NDArray[np.int64]) -> Array:
    """The stream after the last norm."""
    epsilon, layers = (
        model.get(name) for name in ("attention.layer_norm_rms_epsilon", "block_count")
    )
    slides, keeping = (
        model.get("attention.sliding_window_pattern"),
        layers - model.get("attention.shared_kv_layers", 0),
    )
    dims = model.get("attention.key_length"), model.get("attention.key_length_swa")
    turned = model.get("rope.dimension_count"), model.get("rope.dimension_count_swa")
    freqs = "rope_freqs.weight"
    everywhere = Rope(
        model.get("rope.freq_base"),
        turned[0],
        neox=True,
        factors=model.tensor(freqs).astype(np.float64) if freqs in model.tensors else None,
    )
    nearby = Rope(model.get("rope.freq_base_swa", 10000.0), turned[1], neox=True)
    kept: dict[bool, tuple[Any, Any]] = {}

    x = model.tensor("token_embd.weight", ids) * np.float32(np.sqrt(model.get("embedding_length")))
    beside = layer_embeddings(model, ids, x, epsilon)
    for index in range(layers):
        weight, near = model.layer(index), bool(slides[index])
        rope, dim = (nearby if near else everywhere), dims[near]

        h = rms_norm(x, weight("attn_norm"), epsilon)
        q = split_heads(weight.product(h, "attn_q"), dim)
        q = rope(rms_norm(q, weight("attn_q_norm"), epsilon))
        if index < keeping:
            k = v = split_heads(weight.product(h, "attn_k"), dim)
            if weight.has("attn_v.weight"):
                v = split_heads(weight.product(h, "attn_v"), dim)
            k = rope(rms_norm(k, weight("attn_k_norm"), epsilon))
            kept[near] = model.stored(k), model.stored(unweighted_norm(v, epsilon))
        window = model.get("attention.sliding_window") if near else None
        h = weight.product(attention(q, *kept[near], window, scale=1.0), "attn_output")
        x = x + rms_norm(h, weight("post_attention_norm"), epsilon)

        change = unit(weight, rms_norm(x, weight("ffn_norm"), epsilon))
        if weight.has("ffn_gate_inp.weight"):
            change = rms_norm(change, weight("post_ffw_norm_1"), epsilon)
            routed = experts(weight, x, epsilon)
            change = change + rms_norm(routed, weight("post_ffw_norm_2"), epsilon)
        x = x + rms_norm(change, weight("post_ffw_norm"), epsilon)
        if beside.size:
            change = gelu(weight.product(x, "inp_gate")) * beside[:, index]
            x = x + rms_norm(weight.product(change, "proj"), weight("post_norm"), epsilon)
        if weight.has("layer_output_scale.weight"):
            x = x * weight("layer_output_scale")
    return rms_norm(x, model.tensor("output_norm.weight"), epsilon)
