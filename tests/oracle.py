"""Reference logits: every architecture in plain float32 numpy, to be read and compared with.

Weights come through the `gguf` package, dequantised to float32 one matrix at a time, so nothing
here shares code with what it judges. Positions start at 0, every position attends to those before
it and to itself, and nothing is cached: one call is one sequence. On demand it rounds where mmrt
does, so that what is left between the two is the order of sums, or a mistake.

Checked against llama.cpp: given the same weights widened to float32, and a float32 cache, its
logits are at a mean KL divergence of 1e-10 (SmolLM2, llama) and 5e-7 (Gemma 3 270M).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle_functions import (
    Array,
    attention,
    clamped_swiglu,
    gelu,
    layer_norm,
    relu,
    relu2,
    rms_norm,
    sigmoid,
    silu,
    softmax,
    swiglu,
)
from oracle_gemma4 import gemma4
from oracle_latent import latent_attention
from oracle_model import Layer, Model, one_of, split_heads
from oracle_recurrent import gated_delta_net, short_convolution, state_spaces
from oracle_rope import Rope, stretched

HEAD_ROWS = 16384  # rows of the output matrix in float32 at a time


def window_of(model: Model, layer: int, pattern: int) -> int | None:
    """Keys that a layer sees, None for all. Of `pattern` layers all but the last have a window,
    unless the file has another number, or says it of each layer."""
    said = model.get("attention.sliding_window_pattern", pattern)
    slides = said[layer] if isinstance(said, list) else not said or layer % said < said - 1
    return (model.get("attention.sliding_window", 0) or None) if slides else None


def experts(weight: "Layer", x: Array, family: "Family") -> Array:
    """Each row of x through the experts that its router's scores choose, weighted and added up."""
    model = weight.model
    count, used = model.get("expert_count"), model.get("expert_used_count")
    logits = weight.product(x, "ffn_gate_inp")
    gating = model.get("expert_gating_func", family.gating)
    gates: dict[int, Callable[[Any], Any]] = {
        1: softmax,
        2: sigmoid,
        3: lambda x: x,
        4: lambda x: np.sqrt(np.log1p(np.exp(x))),
    }
    scores = gates[gating](logits)
    chosen_by = scores.copy()
    if weight.has("exp_probs_b.bias"):
        chosen_by += model.tensor(f"{weight.prefix}exp_probs_b.bias")
    groups = model.get("expert_group_count", 1)
    if groups > 1:
        best_two = np.sort(chosen_by.reshape(len(x), groups, -1), axis=-1)[:, :, -2:].sum(axis=-1)
        kept = np.argsort(-best_two, axis=-1)[:, : model.get("expert_group_used_count")]
        allowed = np.zeros((len(x), groups), bool)
        np.put_along_axis(allowed, kept, True, axis=-1)
        chosen_by = np.where(np.repeat(allowed, count // groups, axis=-1), chosen_by, -np.inf)
    latent = weight.has("ffn_latent_down.weight")
    x = weight.product(x, "ffn_latent_down") if latent else x
    y = np.zeros_like(x, np.float32)
    for row, by in enumerate(chosen_by):
        chosen = np.argsort(-by, kind="stable")[:used]
        weights = scores[row, chosen]
        if gating == 3:
            weights = softmax(weights)
        if model.get("expert_weights_norm", family.normalised):
            weights = weights / max(weights.sum(), 2.0**-14)
        for expert, share in zip(chosen, weights, strict=True):
            h = family.unit(*weight.gate_and_up(expert, x[row : row + 1]))
            h = weight.of_expert(expert, h, "ffn_down_exps")
            y[row] += h[0] * np.float32(share * (model.get("expert_weights_scale", 1.0) or 1.0))
    return weight.product(y, "ffn_latent_up") if latent else y


def shared_expert(weight: "Layer", h: Array) -> Array:
    """The one that all rows go through, as much as a gate lets through, if it has one."""
    y = weight.product(h, "ffn_up_shexp")
    gated = weight.has("ffn_gate_shexp.weight")
    y = swiglu(weight.product(h, "ffn_gate_shexp"), y) if gated else relu2(y)
    y = weight.product(y, "ffn_down_shexp")
    if weight.has("ffn_gate_inp_shexp.weight"):
        y = y * sigmoid(h @ weight("ffn_gate_inp_shexp"))[:, None]
    return y


def unit_or_experts(weight: "Layer", index: int, h: Array, family: "Family") -> Array:
    """What the layer has after its attention."""
    model = weight.model
    dense = index < model.get("leading_dense_block_count", 0)
    if dense or (index + 1) % model.get("interleave_moe_layer_step", 1):
        return weight.product(family.hidden(weight, h), "ffn_down")
    if not model.get("expert_count", 0):
        return weight.product(family.hidden(weight, h), "ffn_down")
    y = experts(weight, h, family)
    return y + shared_expert(weight, h) if weight.has("ffn_up_shexp.weight") else y


def llama(model: Model, ids: NDArray[np.int64]) -> Array:
    """Pre-norm blocks with SwiGLU; RoPE on neighbours, whose factors may be in the file, for all
    layers or for each."""
    epsilon = model.get("attention.layer_norm_rms_epsilon")
    head_dim = model.get(
        "attention.key_length",
        model.get("embedding_length") // one_of(model.get("attention.head_count")),
    )
    softcap = model.get("attn_logit_softcapping", 0.0)
    scale = model.get("attention.scale", 0.0)

    x = model.tensor("token_embd.weight", ids)
    for index in range(model.get("block_count")):
        weight = model.layer(index)
        window = window_of(model, index, pattern=0)
        factors = (f"blk.{index}.rope_freqs.weight", "rope_freqs.weight")
        own = next((model.tensor(name) for name in factors if name in model.tensors), None)
        rope = Rope(
            base=model.get("rope.freq_base", 10000.0),
            dims=model.get("rope.dimension_count", head_dim),
            neox=False,
            factors=own,
        )
        rope = stretched(rope, model)

        h = rms_norm(x, weight("attn_norm"), epsilon)
        q, k, v = weight.queries_keys_values(h, head_dim)
        q, k, v = rope(q), model.stored(rope(k)), model.stored(v)
        x = x + weight.product(attention(q, k, v, window, softcap, scale), "attn_output")

        h = rms_norm(x, weight("ffn_norm"), epsilon)
        x = x + unit_or_experts(weight, index, h, Family())
    return rms_norm(x, model.tensor("output_norm.weight"), epsilon)


def gemma3(model: Model, ids: NDArray[np.int64]) -> Array:
    """Norms before and after each half of a block, and on q and k; NEOX RoPE; layers with a sliding
    window, five to each global one unless the file says otherwise. Those have a base of their own
    and are not stretched. The largest size alone scales its scores differently."""
    epsilon = model.get("attention.layer_norm_rms_epsilon")
    head_dim = model.get("attention.key_length")
    dims = model.get("rope.dimension_count", head_dim)
    local_rope = Rope(
        base=model.get("rope.freq_base_swa", model.get("rope.local.freq_base", 10000.0)),
        dims=model.get("rope.dimension_count_swa", dims),
        neox=True,
        magnitude=model.get("rope.scaling.attn_factor", 1.0),
    )
    base = model.get("rope.freq_base", model.get("rope.global.freq_base", 10000.0))
    global_rope = stretched(Rope(base, dims, neox=True), model)
    softcap = model.get("attn_logit_softcapping", 0.0)
    scale = model.get("attention.scale", 0.0)
    if model.get("block_count") == 62 and not scale:
        scale = np.sqrt(model.get("attention.head_count") / model.get("embedding_length"))

    x = model.tensor("token_embd.weight", ids) * np.float32(np.sqrt(model.get("embedding_length")))
    for index in range(model.get("block_count")):
        weight = model.layer(index)
        window = window_of(model, index, pattern=6)
        rope = local_rope if window else global_rope

        h = rms_norm(x, weight("attn_norm"), epsilon)
        q, k, v = weight.queries_keys_values(h, head_dim)
        v = model.stored(v)
        q = rope(rms_norm(q, weight("attn_q_norm"), epsilon))
        k = model.stored(rope(rms_norm(k, weight("attn_k_norm"), epsilon)))
        h = weight.product(attention(q, k, v, window, softcap, scale), "attn_output")
        x = x + rms_norm(h, weight("post_attention_norm"), epsilon)

        h = rms_norm(x, weight("ffn_norm"), epsilon)
        h = gelu(weight.product(h, "ffn_gate")) * weight.product(h, "ffn_up")
        x = x + rms_norm(weight.product(h, "ffn_down"), weight("post_ffw_norm"), epsilon)
    return rms_norm(x, model.tensor("output_norm.weight"), epsilon)


def gated(weight: Layer, h: Array) -> Array:
    gate, said = weight.product(h, "ffn_gate"), weight.model.get("hidden_activation", "silu")
    if said == "fatrelu":
        gate[gate <= np.float32(weight.model.get("hidden_activation_param"))] = 0
    activation = {"silu": silu, "relu2": relu2}.get(said, relu)
    return activation(gate) * weight.product(h, "ffn_up")


def gelu_gated(weight: Layer, h: Array) -> Array:
    return gelu(weight.product(h, "ffn_gate")) * weight.product(h, "ffn_up")


def gated_in_one(weight: Layer, h: Array) -> Array:
    gate, up = np.split(weight.product(h, "ffn_up"), 2, axis=-1)
    return silu(gate) * up


def squared(weight: Layer, h: Array) -> Array:
    return relu2(weight.product(h, "ffn_up"))


@dataclass(frozen=True)
class Family:
    """What an architecture has otherwise than Qwen 2, which has norms before both halves of a
    block, NEOX RoPE in all layers, and SwiGLU."""

    neox: bool = True
    hidden: Callable[[Layer, Array], Array] = gated
    norms_before: tuple[str, ...] = ("attn_norm", "ffn_norm")  # none: of neither half
    norms_after: bool = False
    head_norms: bool = False  # of each query and key
    wide_norms: bool = False  # of a position's queries together, and of its keys
    layer_norm: bool = False
    parallel: bool = False  # both halves read the same, and both are added
    pattern: int = 0  # of so many layers all but the last have a window
    window: int = 0  # where the file has none
    scaled: bool = False  # by the fields of Granite
    rope_where: Callable[[int, bool], bool] = lambda layer, slides: True
    caps: tuple[float, float] = (0.0, 0.0)  # of scores and logits, where the file has none
    plain_rope_in_window: bool = False
    unit: Callable[..., Array] = swiglu  # of experts
    gating: int = 1  # of experts, where the file does not say
    normalised: bool = True  # likewise


FAMILIES = {
    "qwen2": Family(),
    "qwen2vl": Family(),
    "qwen3": Family(head_norms=True),
    "qwen3vl": Family(head_norms=True),
    "qwen3moe": Family(head_norms=True),
    "qwen2moe": Family(normalised=False),
    "olmoe": Family(wide_norms=True, normalised=False),
    "minimax-m2": Family(wide_norms=True, gating=2),
    "glm4moe": Family(
        norms_before=("attn_norm", "post_attention_norm"),
        head_norms=True,
        gating=2,
        normalised=False,
    ),
    "deepseek2": Family(neox=False, normalised=False),
    "gpt-oss": Family(
        norms_before=("attn_norm", "post_attention_norm"),
        pattern=2,
        unit=clamped_swiglu,
        gating=3,
        normalised=False,
    ),
    "ernie4_5": Family(neox=False),
    "ernie4_5-moe": Family(neox=False),
    "granitemoe": Family(neox=False, scaled=True),
    "seed_oss": Family(norms_before=("attn_norm", "post_attention_norm")),
    "phi3": Family(hidden=gated_in_one),
    "mistral3": Family(neox=False),
    "arcee": Family(neox=False, hidden=squared),
    "granite": Family(neox=False, scaled=True),
    "granitehybrid": Family(neox=False, scaled=True),
    "smollm3": Family(neox=False, rope_where=lambda layer, _: layer % 4 != 3),
    "glm4": Family(neox=False, hidden=gated_in_one, norms_after=True),
    "gemma2": Family(
        hidden=gelu_gated, norms_after=True, pattern=2, window=4096, caps=(50.0, 30.0)
    ),
    "olmo2": Family(
        norms_before=(), norms_after=True, wide_norms=True, pattern=4, plain_rope_in_window=True
    ),
    "exaone4": Family(norms_before=(), norms_after=True, head_norms=True),
    "exaone4 of 64 layers": Family(
        norms_before=(),
        norms_after=True,
        head_norms=True,
        pattern=4,
        window=4096,
        rope_where=lambda _, slides: slides,
    ),
    "cohere2": Family(
        neox=False,
        norms_before=("attn_norm",),
        layer_norm=True,
        parallel=True,
        pattern=4,
        rope_where=lambda _, slides: slides,
    ),
}


def family_of(model: Model) -> Family | None:
    if model.architecture == "exaone4" and model.get("block_count") == 64:
        return FAMILIES["exaone4 of 64 layers"]
    return FAMILIES.get(model.architecture)


def score_scale(model: Model, head_dim: int) -> float:
    scale = model.get("attention.scale", 0.0)
    if not scale and (model.architecture, model.get("block_count")) == ("gemma2", 46):
        return float(np.sqrt(model.get("attention.head_count") / model.get("embedding_length")))
    return float(scale or 1 / np.sqrt(head_dim))


def divisors(model: Model) -> Array | None:
    """Of the pairs of a head: in one table, or in two, for short and for long contexts."""
    if "rope_freqs.weight" in model.tensors:
        return model.tensor("rope_freqs.weight")
    if "rope_factors_long.weight" not in model.tensors:
        return None
    before = model.get("rope.scaling.original_context_length", model.get("context_length"))
    return model.tensor(f"rope_factors_{'long' if model.context > before else 'short'}.weight")


def growth_of_queries(model: Model, n: int) -> Array:
    """By their positions, in Ministral 3."""
    if model.architecture != "mistral3":
        return np.ones((n, 1, 1), np.float32)
    period = model.get("rope.scaling.original_context_length", model.get("context_length"))
    factor = model.get("attention.temperature_scale", 0.0)
    grown = 1 + factor * np.log(1 + np.arange(n) // period)
    return np.asarray(grown, np.float32)[:, None, None]


def transformer(model: Model, ids: NDArray[np.int64]) -> Array:
    """All that differ from Qwen 2 as Family says."""
    family = family_of(model)
    assert family is not None
    n_embd, heads = (model.get(name) for name in ("embedding_length", "attention.head_count"))
    head_dim = model.get("attention.key_length", n_embd // heads)
    norm = layer_norm if family.layer_norm else rms_norm
    epsilon = model.get(f"attention.layer_norm_{'' if family.layer_norm else 'rms_'}epsilon")
    dims, base = model.get("rope.dimension_count", head_dim), model.get("rope.freq_base", 10000.0)
    seeing = model.architecture == "glm4" and model.get("rope.dimension_sections", False)
    everywhere = Rope(base, dims, family.neox or bool(seeing), divisors(model))
    if model.get("rope.scaling.type", "") != "longrope":
        everywhere = stretched(everywhere, model)
    else:
        everywhere.magnitude = model.get("rope.scaling.attn_factor", 1.0)
    nearby = Rope(base, dims, family.neox) if family.plain_rope_in_window else everywhere
    if base_nearby := model.get("rope.freq_base_swa", 0.0):
        nearby = replace(nearby, base=base_nearby)
    may_not_rotate = model.architecture in ("granite", "granitehybrid")
    finetuned = not may_not_rotate or model.get("rope.scaling.finetuned", True)
    size = model.get("attention.sliding_window", family.window)
    pattern = model.get("attention.sliding_window_pattern", family.pattern)
    softcap = model.get("attn_logit_softcapping", family.caps[0])
    embedded, added = (
        np.float32((family.scaled and model.get(f"{name}_scale", 1.0)) or 1.0)
        for name in ("embedding", "residual")
    )
    if model.architecture == "gemma2":
        embedded = np.float32(np.sqrt(n_embd))

    x = model.tensor("token_embd.weight", ids) * embedded
    for index in range(model.get("block_count") - model.get("nextn_predict_layers", 0)):
        weight = model.layer(index)
        slides = (
            pattern[index]
            if isinstance(pattern, list)
            else pattern and index % pattern < pattern - 1
        )
        window = (size or None) if slides else None
        rope = nearby if window else everywhere

        h = norm(x, weight("attn_norm"), epsilon) if family.norms_before else x
        if model.architecture == "deepseek2":
            change = latent_attention(weight, h, epsilon)
        elif weight.has("ssm_in.weight"):
            change = state_spaces(weight, h)
        else:
            q, k, v = weight.queries_keys_values(h, head_dim)
            if family.wide_norms:
                q, k = (
                    split_heads(rms_norm(part.reshape(len(x), -1), weight(name), epsilon), head_dim)
                    for part, name in ((q, "attn_q_norm"), (k, "attn_k_norm"))
                )
            if family.head_norms and weight.has("attn_q_norm.weight"):
                q = rms_norm(q, weight("attn_q_norm"), epsilon)
                k = rms_norm(k, weight("attn_k_norm"), epsilon)
            if finetuned and family.rope_where(index, bool(slides)):
                q, k = rope(q), rope(k)
            q = q * growth_of_queries(model, len(x))
            k, v = model.stored(k), model.stored(v)
            sinks = weight("attn_sinks") if weight.has("attn_sinks.weight") else None
            change = attention(q, k, v, window, softcap, score_scale(model, head_dim), sinks)
            change = weight.product(change, "attn_output")
        if family.norms_after:
            change = rms_norm(change, weight("post_attention_norm"), epsilon)
        x = x + added * change

        if len(family.norms_before) == 2:
            h = norm(x, weight(family.norms_before[1]), epsilon)
        elif not family.parallel:
            h = x
        change = unit_or_experts(weight, index, h, family)
        if family.norms_after:
            change = rms_norm(change, weight("post_ffw_norm"), epsilon)
        x = x + added * change
    return norm(x, model.tensor("output_norm.weight"), epsilon)


def opt(model: Model, ids: NDArray[np.int64]) -> Array:
    """Pre-norm blocks with ReLU and biases everywhere; embeddings of positions, after two rows of
    none, in place of rotations."""
    epsilon = model.get("attention.layer_norm_epsilon")
    head_dim = model.get("attention.key_length")

    def norm(x: Array, name: str) -> Array:
        y = layer_norm(x, model.tensor(f"{name}.weight"), epsilon)
        return y + model.tensor(f"{name}.bias") if f"{name}.bias" in model.tensors else y

    positions = model.tensor("position_embd.weight")[2:]
    x = model.tensor("token_embd.weight", ids) + positions[: len(ids)]
    for index in range(model.get("block_count")):
        weight = model.layer(index)
        q, k, v = weight.queries_keys_values(norm(x, f"{weight.prefix}attn_norm"), head_dim)
        k, v = model.stored(k), model.stored(v)
        x = x + weight.product(attention(q, k, v), "attn_output")
        h = relu(weight.product(norm(x, f"{weight.prefix}ffn_norm"), "ffn_up"))
        x = x + weight.product(h, "ffn_down")
    return norm(x, "output_norm")


def lfm2(model: Model, ids: NDArray[np.int64]) -> Array:
    """Pre-norm blocks with SwiGLU or experts; layers without key-value heads have a short
    convolution, the others norms of q and k and NEOX RoPE."""
    epsilon = model.get("attention.layer_norm_rms_epsilon")
    head_dim = model.get("attention.key_length")
    rope = Rope(model.get("rope.freq_base"), model.get("rope.dimension_count"), neox=True)
    family = Family(gating=2)

    x = model.tensor("token_embd.weight", ids)
    for index, heads in enumerate(model.get("attention.head_count_kv")):
        weight = model.layer(index)
        h = rms_norm(x, weight("attn_norm"), epsilon)
        if heads:
            q, k, v = weight.queries_keys_values(h, head_dim)
            q = rope(rms_norm(q, weight("attn_q_norm"), epsilon))
            k = model.stored(rope(rms_norm(k, weight("attn_k_norm"), epsilon)))
            h = weight.product(attention(q, k, model.stored(v)), "attn_output")
        else:
            h = short_convolution(weight, h)
        x = x + h
        x = x + unit_or_experts(weight, index, rms_norm(x, weight("ffn_norm"), epsilon), family)
    return rms_norm(x, model.tensor("token_embd_norm.weight"), epsilon)


def qwen35(model: Model, ids: NDArray[np.int64]) -> Array:
    """Pre-norm blocks with SwiGLU or experts; gated delta nets, and in every few layers attention
    with norms of q and k, NEOX RoPE and a gate for each element of its heads."""
    epsilon = model.get("attention.layer_norm_rms_epsilon")
    head_dim = model.get("attention.key_length")
    rope = Rope(model.get("rope.freq_base"), model.get("rope.dimension_count"), neox=True)
    interval = model.get("full_attention_interval", 4)
    layers = range(model.get("block_count") - model.get("nextn_predict_layers", 0))
    recurrent = [(index + 1) % interval != 0 for index in layers]

    x = model.tensor("token_embd.weight", ids)
    for index in layers:
        weight = model.layer(index)
        h = rms_norm(x, weight("attn_norm"), epsilon)
        if model.get("attention.recurrent_layers", recurrent)[index]:
            h = gated_delta_net(weight, h)
        else:
            k, v = (split_heads(weight.product(h, f"attn_{which}"), head_dim) for which in "kv")
            both = weight.product(h, "attn_q").reshape(len(h), -1, 2, head_dim)
            q = rope(rms_norm(both[:, :, 0], weight("attn_q_norm"), epsilon))
            k = model.stored(rope(rms_norm(k, weight("attn_k_norm"), epsilon)))
            h = attention(q, k, model.stored(v)) * sigmoid(both[:, :, 1]).reshape(len(h), -1)
            h = weight.product(h, "attn_output")
        x = x + h
        h = rms_norm(x, weight("post_attention_norm"), epsilon)
        x = x + unit_or_experts(weight, index, h, Family())
    return rms_norm(x, model.tensor("output_norm.weight"), epsilon)


def nemotron_h(model: Model, ids: NDArray[np.int64]) -> Array:
    """Blocks of one part each: state spaces, attention without positions, or a unit, or experts,
    with squared ReLU."""
    epsilon = model.get("attention.layer_norm_rms_epsilon")
    head_dim = model.get("attention.key_length")
    family = Family(hidden=squared, unit=relu2, gating=2, normalised=False)

    x = model.tensor("token_embd.weight", ids)
    for index, width in enumerate(model.get("feed_forward_length")):
        weight = model.layer(index)
        h = rms_norm(x, weight("attn_norm"), epsilon)
        if weight.has("ssm_in.weight"):
            h = state_spaces(weight, h)
        elif width:
            h = unit_or_experts(weight, index, h, family)
        else:
            q, k, v = weight.queries_keys_values(h, head_dim)
            h = weight.product(attention(q, model.stored(k), model.stored(v)), "attn_output")
        x = x + h
    return rms_norm(x, model.tensor("output_norm.weight"), epsilon)


FORWARD = {
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "qwen35": qwen35,
    "qwen35moe": qwen35,
    "qwen3next": qwen35,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "llama": llama,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "opt": opt,
}


def logits(path: str | Path, ids: Sequence[int], rounding: bool = False, context: int = 0) -> Array:
    """One row a position: the scores of every token to come after ids[: position + 1]."""
    model = Model(path, rounding, context)
    family = family_of(model)
    x = FORWARD.get(model.architecture, transformer)(model, np.asarray(ids, np.int64))

    head = "output" if "output.weight" in model.tensors else "token_embd"
    vocabulary = len(model.tensors[f"{head}.weight"].data)
    out = np.empty((len(x), vocabulary), np.float32)
    for start in range(0, vocabulary, HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        out[:, rows] = model.product(x, head, rows, beside="output")
    if model.architecture in ("granite", "granitehybrid", "granitemoe"):
        out /= np.float32(model.get("logit_scale", 1.0))
    if model.architecture == "cohere2":
        out *= np.float32(model.get("logit_scale"))
    usual = 30.0 if model.architecture == "gemma4" else family.caps[1] if family else 0.0
    softcap = np.float32(model.get("final_logit_softcapping", usual))
    return softcap * np.tanh(out / softcap) if softcap else out
