"""State spaces in tiny models of architectures that have them."""

from collections.abc import Callable

import numpy as np
import tiny_models
from tiny_models import TinyModel, field, floats, with_fields


def state_spaces(
    model: TinyModel,
    attends: Callable[[int], bool],
    groups: int,
    states: int,
    taps: int,
    *,
    width: int = 0,
) -> None:
    """In place of attention, but for some layers; twice as wide as the stream, or `width`."""
    random, n_embd, dim = np.random.default_rng(19), field(model, "embedding_length"), 32
    inner, n_kv_heads = width or 2 * n_embd, field(model, "attention.head_count_kv")
    heads, channels = inner // dim, inner + 2 * groups * states
    layers = range(field(model, "block_count"))
    for i in layers:
        if attends(i):
            continue
        prefix = f"blk.{i}."
        type = model.tensors[f"{prefix}attn_q.weight"].type
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            del model.tensors[f"{prefix}{name}.weight"]
        into = tiny_models.random_blocks(
            random, type, inner + channels + heads, n_embd, n_embd**-0.5
        )
        factors = -np.exp(random.normal(-1, 1, (heads, 1))).astype(np.float32)
        of_heads = tiny_models.blocks_of("F32", random.normal(0, 1, (heads, 1)).astype(np.float32))
        norm = random.normal(1, 0.3, (groups, inner // groups)).astype(np.float32)
        for name, blocks in {
            "ssm_in.weight": into,
            "ssm_conv1d.weight": tiny_models.random_blocks(random, "F32", channels, taps, 1.0),
            "ssm_conv1d.bias": floats(random, channels),
            "ssm_dt.bias": floats(random, heads, spread=1.0),
            "ssm_a": tiny_models.blocks_of("F32", factors),
            "ssm_d": of_heads,
            "ssm_norm.weight": tiny_models.blocks_of("F32", norm),
            "ssm_out.weight": tiny_models.random_blocks(random, type, n_embd, inner, inner**-0.5),
        }.items():
            model.tensors[f"{prefix}{name}"] = blocks
    with_fields(model, **{"attention.head_count_kv": [n_kv_heads * attends(i) for i in layers]})
    with_fields(model, **{"ssm.conv_kernel": taps, "ssm.state_size": states})
    with_fields(model, **{"ssm.group_count": groups, "ssm.time_step_rank": heads})
    with_fields(model, **{"ssm.inner_size": inner})


def one_part_each(model: TinyModel, kinds: str, *, width: int, rich: bool) -> None:
    """Layers of state spaces ("m"), attention ("a") or units ("u"), as the letters say."""
    layers = range(field(model, "block_count"))
    kinds = (kinds * len(layers))[: len(layers)]
    n_kv_heads, n_ff = field(model, "attention.head_count_kv"), field(model, "feed_forward_length")
    groups, states, taps = (2, 40, 4) if rich else (1, 16, 3)
    state_spaces(model, lambda i: kinds[i] != "m", groups, states, taps, width=width)
    for name in list(model.tensors):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        if layer is None:
            continue
        kind, role = kinds[layer], name.split(".", 2)[2]
        is_unit, attends = role.startswith(("ffn_", "exp_")), role.startswith("attn_")
        gates = role.startswith("ffn_gate") and "inp" not in role
        others = attends and role != "attn_norm.weight" and kind != "a"
        if role == "ffn_norm.weight" or gates or others or (is_unit and kind != "u"):
            del model.tensors[name]
    with_fields(model, **{"attention.head_count_kv": [n_kv_heads * (k == "a") for k in kinds]})
    with_fields(model, feed_forward_length=[n_ff * (k == "u") for k in kinds])
    with_fields(model, **{"attention.layer_norm_epsilon": 1e-5})


def with_latent(model: TinyModel, width: int) -> None:
    """Experts read, and give, less than the stream is wide."""
    random, n_embd = np.random.default_rng(20), field(model, "embedding_length")
    with_fields(model, moe_latent_size=width)
    for name in [name for name in model.tensors if name.endswith("_exps.weight")]:
        stack = model.tensors[name]
        count = len(stack.data)
        shape = (field(model, "expert_feed_forward_length"), width)
        rows, cols = shape if "up_exps" in name else shape[::-1]
        flat = tiny_models.random_blocks(random, stack.type, count * rows, cols, cols**-0.5)
        model.tensors[name] = tiny_models.Blocks(stack.type, flat.data.reshape(count, rows, -1))
        if "up_exps" in name:
            prefix = name.split("ffn_")[0]
            for role, rows, cols in (("down", width, n_embd), ("up", n_embd, width)):
                matrix = tiny_models.random_blocks(random, "F32", rows, cols, cols**-0.5)
                model.tensors[f"{prefix}ffn_latent_{role}.weight"] = matrix
