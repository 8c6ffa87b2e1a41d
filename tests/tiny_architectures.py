"""Two tiny models of every architecture: one with all that its files may have, one with no more
than they must, in other shapes. Windows are shorter than the texts of tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tiny_gemma4
import tiny_models
from tiny_models import Blocks, TinyModel, field, floats, with_fields
from tiny_state_spaces import one_part_each, state_spaces, with_latent

RICH: dict[str, Any] = {
    **{"n_layers": 5, "n_embd": 96, "n_ff": 160, "n_heads": 6, "n_kv_heads": 2},
    **{"head_dim": 32, "separate_output": True, "seed": 3},
}
BARE: dict[str, Any] = {
    **{"n_layers": 4, "n_embd": 64, "n_ff": 224, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16},
    **{"seed": 4},
}

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 32,
}

Change = Callable[[TinyModel, bool], None]


def each_layer(model: TinyModel, sizes: dict[str, int], mean: float = 0.0) -> None:
    """Adds vectors of float32 to every layer, by their names."""
    random = np.random.default_rng(11)
    for i in range(field(model, "block_count")):
        for name, size in sizes.items():
            model.tensors[f"blk.{i}.{name}"] = floats(random, size, mean=mean, spread=0.3)


def widths(model: TinyModel) -> tuple[int, int]:
    """Of a token's queries, and of its keys."""
    dim = field(model, "attention.key_length")
    return field(model, "attention.head_count") * dim, field(model, "attention.head_count_kv") * dim


def biases(model: TinyModel) -> None:
    q, kv = widths(model)
    each_layer(model, {"attn_q.bias": q, "attn_k.bias": kv, "attn_v.bias": kv})


def head_norms(model: TinyModel) -> None:
    dim = field(model, "attention.key_length")
    each_layer(model, {"attn_q_norm.weight": dim, "attn_k_norm.weight": dim}, mean=1.0)


def norms_after(model: TinyModel) -> None:
    n_embd = field(model, "embedding_length")
    names = ("post_attention_norm.weight", "post_ffw_norm.weight")
    each_layer(model, dict.fromkeys(names, n_embd), mean=1.0)


def without(model: TinyModel, *roles: str) -> None:
    for i in range(field(model, "block_count")):
        for role in roles:
            del model.tensors[f"blk.{i}.{role}.weight"]


def rename(model: TinyModel, before: str, after: str) -> None:
    for i in range(field(model, "block_count")):
        model.tensors[f"blk.{i}.{after}.weight"] = model.tensors.pop(f"blk.{i}.{before}.weight")


def fuse_units(model: TinyModel) -> None:
    for i in range(field(model, "block_count")):
        parts = [model.tensors.pop(f"blk.{i}.ffn_{which}.weight") for which in ("gate", "up")]
        fused = Blocks(parts[0].type, np.concatenate([part.data for part in parts]))
        model.tensors[f"blk.{i}.ffn_up.weight"] = fused


def table(model: TinyModel, name: str, most: float) -> None:
    """Divisors of rotations that grow from 1 to `most`."""
    n = field(model, "rope.dimension_count") // 2
    values = np.geomspace(1, most, n).astype(np.float32)
    model.tensors[f"{name}.weight"] = tiny_models.blocks_of("F32", values)


def windows(model: TinyModel, rich: bool) -> None:
    with_fields(model, **{"attention.sliding_window": 9 if rich else 33})


def as_it_is(model: TinyModel, rich: bool) -> None:
    pass


def qwen2(model: TinyModel, rich: bool) -> None:
    biases(model)
    if rich:
        model.tensors["output.bias"] = floats(np.random.default_rng(12), 300)
        with_fields(model, **{"rope.freq_base": 1e6})


def qwen2vl(model: TinyModel, rich: bool) -> None:
    biases(model)
    pairs = field(model, "rope.dimension_count") // 2
    with_fields(model, **{"rope.dimension_sections": [pairs // 4, pairs // 4, pairs // 2, 0]})


def qwen3(model: TinyModel, rich: bool) -> None:
    head_norms(model)
    if rich:
        with_fields(model, **{"rope.freq_base": 1e6}, **YARN)


def routed(model: TinyModel, rich: bool, **options: Any) -> None:
    tiny_models.with_experts(model, count=6, used=3 if rich else 1, **options)


def as_wide_as_units(model: TinyModel) -> None:
    """The field for units says how wide experts are."""
    architecture = model.metadata["general.architecture"]
    width = model.metadata.pop(f"{architecture}.expert_feed_forward_length")
    with_fields(model, feed_forward_length=width)


def selection_biases(model: TinyModel, spread: float = 0.3) -> None:
    random = np.random.default_rng(15)
    for router in [name for name in model.tensors if "ffn_gate_inp.weight" in name]:
        bias = floats(random, field(model, "expert_count"), spread=spread)
        model.tensors[router.replace("ffn_gate_inp.weight", "exp_probs_b.bias")] = bias


def qwen3moe(model: TinyModel, rich: bool) -> None:
    head_norms(model)
    routed(model, rich)


def qwen2moe(model: TinyModel, rich: bool) -> None:
    biases(model)
    routed(model, rich)
    width = 64 if rich else field(model, "feed_forward_length")
    tiny_models.with_shared_expert(model, width)
    gate = {"ffn_gate_inp_shexp.weight": field(model, "embedding_length")}
    each_layer(model, gate)
    if rich:
        with_fields(model, expert_shared_feed_forward_length=width)


def olmoe(model: TinyModel, rich: bool) -> None:
    q, kv = widths(model)
    each_layer(model, {"attn_q_norm.weight": q, "attn_k_norm.weight": kv}, mean=1.0)
    routed(model, rich)
    as_wide_as_units(model)


def minimax_m2(model: TinyModel, rich: bool) -> None:
    olmoe(model, rich)
    with_fields(model, expert_feed_forward_length=field(model, "feed_forward_length"))
    selection_biases(model)
    with_fields(model, **{"rope.dimension_count": field(model, "attention.key_length") // 2})
    with_fields(model, expert_gating_func=2)


def granitemoe(model: TinyModel, rich: bool) -> None:
    granite(model, rich)
    routed(model, rich)
    as_wide_as_units(model)
    if rich:
        tiny_models.with_shared_expert(model, 96)
        with_fields(model, expert_shared_feed_forward_length=96)


def ernie4_5_moe(model: TinyModel, rich: bool) -> None:
    routed(model, rich, dense=1 if rich else 0)
    with_fields(model, interleave_moe_layer_step=1, leading_dense_block_count=1 if rich else 0)
    if rich:
        selection_biases(model)
        tiny_models.with_shared_expert(model, 128)
        with_fields(model, expert_shared_count=2, expert_shared_feed_forward_length=128)


def glm4moe(model: TinyModel, rich: bool) -> None:
    routed(model, rich, dense=1 if rich else 0)
    rename(model, "ffn_norm", "post_attention_norm")
    selection_biases(model)
    with_fields(model, **{"rope.dimension_count": field(model, "attention.key_length") // 2})
    with_fields(model, leading_dense_block_count=1 if rich else 0)
    tiny_models.with_shared_expert(model, 128 if rich else 64)
    with_fields(model, expert_shared_count=2 if rich else 1)
    if rich:
        biases(model)
        head_norms(model)
        with_fields(model, expert_gating_func=2)
        with_fields(model, expert_weights_norm=True, expert_weights_scale=2.5)
        predicting_block(model)


def deepseek2(model: TinyModel, rich: bool) -> None:
    heads, n_embd = field(model, "attention.head_count"), field(model, "embedding_length")
    values, turned, before, result = (64, 16, 32, 64) if rich else (32, 8, 64, 32)
    rank, width, random = 96, heads * (before + turned), np.random.default_rng(17)
    shapes = {"attn_q_a": (rank, n_embd), "attn_q_b": (width, rank)}
    if not rich:
        shapes = {"attn_q": (width, n_embd)}
    shapes |= {"attn_kv_a_mqa": (values + turned, n_embd), "attn_output": (n_embd, heads * result)}
    stacks = {"attn_k_b": (values, before), "attn_v_b": (result, values)}
    kind = model.tensors["blk.0.attn_q.weight"].type
    without(model, "attn_q", "attn_k", "attn_v", "attn_output")
    for i in range(field(model, "block_count")):
        for name, (rows, cols) in shapes.items():
            matrix = tiny_models.random_blocks(random, kind, rows, cols, 1 / np.sqrt(cols))
            model.tensors[f"blk.{i}.{name}.weight"] = matrix
        for name, (rows, cols) in stacks.items():
            flat = tiny_models.random_blocks(random, kind, heads * rows, cols, 1 / np.sqrt(cols))
            stack = Blocks(kind, flat.data.reshape(heads, rows, -1))
            model.tensors[f"blk.{i}.{name}.weight"] = stack
    norms = {"attn_kv_a_norm.weight": values} | ({"attn_q_a_norm.weight": rank} if rich else {})
    each_layer(model, norms, mean=1.0)
    widths_of = {"attention.key_length": values + turned, "attention.value_length": values}
    widths_of |= {"attention.key_length_mla": before + turned, "attention.value_length_mla": result}
    widths_of |= {"attention.kv_lora_rank": values, "rope.dimension_count": turned}
    with_fields(model, **{"attention.head_count_kv": 1}, **widths_of)
    tiny_models.with_experts(model, count=8, used=2, dense=1)
    tiny_models.with_shared_expert(model, 128 if rich else 64)
    with_fields(model, expert_shared_count=2 if rich else 1)
    if rich:
        selection_biases(model, spread=1.0)  # so that rounding changes few choices
        with_fields(model, **{"attention.q_lora_rank": rank, **YARN})
        with_fields(model, **{"rope.scaling.yarn_log_multiplier": 0.1})
        with_fields(model, expert_group_count=4, expert_group_used_count=2, expert_gating_func=2)
        with_fields(model, expert_weights_norm=True, expert_weights_scale=2.5)


def predicting_block(model: TinyModel) -> None:
    """The last block guesses further tokens."""
    random, n_embd = np.random.default_rng(14), field(model, "embedding_length")
    with_fields(model, nextn_predict_layers=1)
    prefix = f"blk.{field(model, 'block_count') - 1}.nextn"
    both = tiny_models.random_blocks(random, "F32", n_embd, 2 * n_embd, 1.0)
    model.tensors[f"{prefix}.eh_proj.weight"] = both
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        model.tensors[f"{prefix}.{norm}.weight"] = floats(random, n_embd, mean=1.0)


def gpt_oss(model: TinyModel, rich: bool) -> None:
    biases(model)
    routed(model, rich, biases=True)
    rename(model, "ffn_norm", "post_attention_norm")
    windows(model, rich)
    sizes = {"attn_output.bias": field(model, "embedding_length")}
    each_layer(model, sizes)
    each_layer(model, {"attn_sinks.weight": field(model, "attention.head_count")}, mean=1.0)
    if rich:
        with_fields(model, **YARN)


def each_third_of_pairs(model: TinyModel) -> None:
    """Turns with another axis of positions in images."""
    pairs = field(model, "rope.dimension_count") // 2
    thirds = [(pairs + 2 - i) // 3 for i in range(3)]
    with_fields(model, **{"rope.dimension_sections": [*thirds, 0]})


def qwen3vl(model: TinyModel, rich: bool) -> None:
    qwen3(model, rich=False)
    each_third_of_pairs(model)
    with_fields(model, n_deepstack_layers=3 if rich else 0)


def seed_oss(model: TinyModel, rich: bool) -> None:
    rename(model, "ffn_norm", "post_attention_norm")
    if rich:
        biases(model)


def phi3(model: TinyModel, rich: bool) -> None:
    tiny_models.fuse_qkv(model)
    fuse_units(model)
    if rich:
        with_fields(model, **{"rope.dimension_count": 24, "attention.sliding_window": 9})
        with_fields(model, **{"rope.scaling.original_context_length": 128})
        with_fields(model, **{"rope.scaling.attn_factor": 1.2})
        table(model, "rope_factors_short", 4.0)
        table(model, "rope_factors_long", 30.0)


def mistral3(model: TinyModel, rich: bool) -> None:
    if rich:
        with_fields(model, **YARN, **{"attention.temperature_scale": 0.4})
        with_fields(model, **{"rope.scaling.yarn_log_multiplier": 1.0})
        with_fields(model, **{"rope.scaling.yarn_beta_fast": 16.0})
        with_fields(model, **{"rope.scaling.yarn_beta_slow": 0.5})


def granite(model: TinyModel, rich: bool) -> None:
    with_fields(model, **{"attention.scale": 0.3 if rich else 0.1, "logit_scale": 0.7})
    with_fields(model, embedding_scale=1.5, residual_scale=0.4)
    if not rich:
        with_fields(model, **{"rope.scaling.finetuned": False})


def gemma2(model: TinyModel, rich: bool) -> None:
    norms_after(model)
    windows(model, rich)
    if rich:
        with_fields(model, attn_logit_softcapping=2.0, final_logit_softcapping=5.0)


def olmo2(model: TinyModel, rich: bool) -> None:
    q, kv = widths(model)
    each_layer(model, {"attn_q_norm.weight": q, "attn_k_norm.weight": kv}, mean=1.0)
    norms_after(model)
    without(model, "attn_norm", "ffn_norm")
    if rich:
        windows(model, rich)
        with_fields(model, **YARN, **{"rope.scaling.attn_factor": 1.3})


def glm4(model: TinyModel, rich: bool) -> None:
    norms_after(model)
    fuse_units(model)
    with_fields(model, **{"rope.dimension_count": field(model, "attention.key_length") // 2})
    if rich:
        biases(model)


def exaone4(model: TinyModel, rich: bool) -> None:
    head_norms(model)
    norms_after(model)
    without(model, "attn_norm", "ffn_norm")
    windows(model, rich)
    if rich:
        table(model, "rope_freqs", 8.0)


def cohere2(model: TinyModel, rich: bool) -> None:
    without(model, "ffn_norm")
    windows(model, rich)
    del model.metadata["cohere2.attention.layer_norm_rms_epsilon"]
    with_fields(model, logit_scale=0.25 if rich else 2.0)
    with_fields(model, **{"attention.layer_norm_epsilon": 1e-4})


def arcee(model: TinyModel, rich: bool) -> None:
    without(model, "ffn_gate")
    if rich:
        table(model, "rope_freqs", 8.0)


def opt(model: TinyModel, rich: bool) -> None:
    random, n_embd = np.random.default_rng(16), field(model, "embedding_length")
    without(model, "ffn_gate")
    del model.metadata["opt.attention.layer_norm_rms_epsilon"], model.metadata["opt.rope.freq_base"]
    del model.metadata["opt.rope.dimension_count"]
    with_fields(model, **{"attention.layer_norm_epsilon": 1e-5})
    rows = field(model, "context_length") + 2
    table = tiny_models.random_blocks(random, "F32", rows, n_embd, 0.3)
    model.tensors["position_embd.weight"] = table
    if rich:
        biases(model)
        norms = ("attn_norm.bias", "ffn_norm.bias", "attn_output.bias", "ffn_down.bias")
        each_layer(model, dict.fromkeys(norms, n_embd))
        each_layer(model, {"ffn_up.bias": field(model, "feed_forward_length")})
        model.tensors["output_norm.bias"] = floats(random, n_embd)


def short_convolutions(model: TinyModel, attends: Callable[[int], bool], taps: int) -> None:
    """In place of attention, but for some layers."""
    random, n_embd = np.random.default_rng(17), field(model, "embedding_length")
    head_norms(model)
    n_kv_heads = field(model, "attention.head_count_kv")
    layers = range(field(model, "block_count"))
    for i in layers:
        if attends(i):
            continue
        prefix = f"blk.{i}."
        type = model.tensors[f"{prefix}attn_output.weight"].type
        for name in [
            n for n in model.tensors if n.startswith(f"{prefix}attn_") and "norm" not in n
        ]:
            del model.tensors[name]
        for name in ("attn_q_norm", "attn_k_norm"):
            del model.tensors[f"{prefix}{name}.weight"]
        into, kernel, out = (
            f"{prefix}shortconv.{role}.weight" for role in ("in_proj", "conv", "out_proj")
        )
        spread = 1 / np.sqrt(n_embd)
        model.tensors[into] = tiny_models.random_blocks(random, type, 3 * n_embd, n_embd, spread)
        model.tensors[kernel] = tiny_models.random_blocks(random, "F32", n_embd, taps, 1.0)
        model.tensors[out] = tiny_models.random_blocks(random, type, n_embd, n_embd, spread)
    with_fields(model, **{"attention.head_count_kv": [n_kv_heads * attends(i) for i in layers]})
    with_fields(model, **{"shortconv.l_cache": taps})
    model.tensors["token_embd_norm.weight"] = model.tensors.pop("output_norm.weight")


def lfm2(model: TinyModel, rich: bool) -> None:
    if rich:
        short_convolutions(model, lambda layer: layer in (0, 2), taps=4)
        with_fields(model, **{"rope.freq_base": 1e6})
    else:
        short_convolutions(model, lambda layer: layer > 1, taps=3)


def lfm2moe(model: TinyModel, rich: bool) -> None:
    routed(model, rich, dense=1 if rich else 0, expert_gating_func=2)
    selection_biases(model)
    with_fields(model, leading_dense_block_count=1 if rich else 0)
    lfm2(model, rich)


def delta_nets(model: TinyModel, interval: int, n_keys: int, n_values: int, taps: int) -> None:
    """In place of attention, but for each `interval`th layer, whose heads get gates."""
    random, n_embd, dim = np.random.default_rng(18), field(model, "embedding_length"), 32
    head_norms(model)
    rename(model, "ffn_norm", "post_attention_norm")
    grouped = model.metadata["general.architecture"] == "qwen3next"
    channels, values = (2 * n_keys + n_values) * dim, n_values * dim
    sizes = {"attn_qkv": (channels, n_embd), "attn_gate": (values, n_embd)}
    sizes |= {"ssm_out": (n_embd, values)}
    gates = {"ssm_ba": 2 * n_values} if grouped else {"ssm_alpha": n_values, "ssm_beta": n_values}
    for i in range(field(model, "block_count")):
        prefix = f"blk.{i}."
        q = model.tensors[f"{prefix}attn_q.weight"]
        if (i + 1) % interval == 0:
            q = tiny_models.random_blocks(random, q.type, 2 * len(q.data), n_embd, n_embd**-0.5)
            model.tensors[f"{prefix}attn_q.weight"] = q
            continue
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"):
            del model.tensors[f"{prefix}{name}.weight"]
        for name, (rows, cols) in sizes.items():
            blocks = tiny_models.random_blocks(random, q.type, rows, cols, cols**-0.5)
            model.tensors[f"{prefix}{name}.weight"] = blocks
        for name, rows in gates.items():
            blocks = tiny_models.random_blocks(random, "F32", rows, n_embd, n_embd**-0.5)
            model.tensors[f"{prefix}{name}.weight"] = blocks
        kernel = tiny_models.random_blocks(random, "F32", channels, taps, 1.0)
        model.tensors[f"{prefix}ssm_conv1d.weight"] = kernel
        model.tensors[f"{prefix}ssm_dt.bias"] = floats(random, n_values, spread=1.0)
        factors = -np.exp(random.normal(-1, 1, n_values)).astype(np.float32)
        model.tensors[f"{prefix}ssm_a"] = tiny_models.blocks_of("F32", factors)
        model.tensors[f"{prefix}ssm_norm.weight"] = floats(random, dim, mean=1.0)
    with_fields(model, full_attention_interval=interval)
    with_fields(model, **{"ssm.conv_kernel": taps, "ssm.state_size": dim})
    with_fields(model, **{"ssm.group_count": n_keys, "ssm.time_step_rank": n_values})
    with_fields(model, **{"ssm.inner_size": values})
    if not grouped:
        each_third_of_pairs(model)


def qwen35(model: TinyModel, rich: bool) -> None:
    if rich:
        with_fields(model, **{"rope.dimension_count": 16, "rope.freq_base": 1e6})
    delta_nets(model, *((3, 2, 6, 3) if rich else (4, 2, 2, 4)))


def qwen35moe(model: TinyModel, rich: bool) -> None:
    routed(model, rich)
    tiny_models.with_shared_expert(model, 96)
    each_layer(model, {"ffn_gate_inp_shexp.weight": field(model, "embedding_length")})
    with_fields(model, expert_shared_feed_forward_length=96)
    qwen35(model, rich)


def granitehybrid(model: TinyModel, rich: bool) -> None:
    granitemoe(model, rich) if rich else granite(model, rich)
    attends = (2,) if rich else (0, 3)
    groups, states, taps = (2, 40, 4) if rich else (1, 16, 3)
    state_spaces(model, lambda i: i in attends, groups, states, taps)


def nemotron_h(model: TinyModel, rich: bool) -> None:
    if rich:
        biases(model)
    one_part_each(model, "umamu" if rich else "amum", width=128, rich=rich)


def nemotron_h_moe(model: TinyModel, rich: bool) -> None:
    routed(model, rich, expert_gating_func=2)
    selection_biases(model)
    tiny_models.with_shared_expert(model, 96)
    with_fields(model, expert_shared_count=1, expert_shared_feed_forward_length=96)
    one_part_each(model, "muamu" if rich else "aumm", width=128, rich=rich)
    with_fields(model, expert_weights_norm=True, expert_weights_scale=2.5)
    if rich:
        with_latent(model, 64)


def gemma3(model: TinyModel, rich: bool) -> None:
    head_norms(model)
    norms_after(model)
    windows(model, rich)


def llama(model: TinyModel, rich: bool) -> None:
    if rich:
        table(model, "rope_freqs", 8.0)


# Those some of whose layers are recurrent.
HYBRIDS = [
    *("lfm2", "lfm2moe", "qwen35", "qwen35moe", "qwen3next"),
    *("granitehybrid", "nemotron_h", "nemotron_h_moe"),
]

CHANGES: dict[str, Change] = {
    "arcee": arcee,
    "cohere2": cohere2,
    "deepseek2": deepseek2,
    "ernie4_5": as_it_is,
    "ernie4_5-moe": ernie4_5_moe,
    "exaone4": exaone4,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma4": tiny_gemma4.whole,
    "glm4": glm4,
    "glm4moe": glm4moe,
    "gpt-oss": gpt_oss,
    "granite": granite,
    "granitehybrid": granitehybrid,
    "granitemoe": granitemoe,
    "lfm2": lfm2,
    "lfm2moe": lfm2moe,
    "llama": llama,
    "minimax-m2": minimax_m2,
    "mistral3": mistral3,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h_moe,
    "olmo2": olmo2,
    "olmoe": olmoe,
    "opt": opt,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2moe": qwen2moe,
    "qwen2vl": qwen2vl,
    "qwen3": qwen3,
    "qwen35": qwen35,
    "qwen35moe": qwen35moe,
    "qwen3moe": qwen3moe,
    "qwen3next": qwen35moe,
    "qwen3vl": qwen3vl,
    "seed_oss": seed_oss,
    "smollm3": as_it_is,
}

SHAPES: dict[tuple[str, bool], dict[str, Any]] = {
    ("exaone4", True): {"n_layers": 64, "n_embd": 64, "n_ff": 32, "n_heads": 2, "n_kv_heads": 1},
    # Other runtimes know one without a first matrix of queries by its 27 layers.
    ("deepseek2", False): {"n_layers": 27, "n_ff": 64, "separate_output": True, "seed": 6},
    ("deepseek2", True): {"seed": 6},
    ("cohere2", True): {"separate_output": False, "n_embd": 192},
    ("gemma2", True): {"separate_output": False},
    ("gemma3", True): {"n_layers": 7},
    ("gemma4", False): {"head_dim": 32},
    **{
        (name, False): {"separate_output": True}
        for name in ("gpt-oss", "minimax-m2", "olmo2", "olmoe")
    },
    ("granitemoe", True): {"seed": 5},  # with another, float16 changes which experts are chosen
    ("qwen2moe", False): {"separate_output": True, "seed": 5},
    **{(name, True): {"n_kv_heads": 6, "n_embd": 192} for name in ("olmoe", "phi3")},
    # Other runtimes take their heads to be as wide as the stream together.
    **{
        (name, True): {"n_embd": 192}
        for name in ("lfm2", "lfm2moe", "olmo2", "qwen2", "qwen2moe", "qwen2vl")
    },
}


def tiny(architecture: str, rich: bool, **shape: Any) -> TinyModel:
    """rich: with every field and tensor that the architecture may have. shape: as transformer()'s,
    beside its own."""
    own = (RICH if rich else BARE) | SHAPES.get((architecture, rich), {}) | shape
    model = tiny_models.transformer(architecture, **own)
    CHANGES[architecture](model, rich)
    return model
