"""Tiny models of Gemma 4's kinds: dense ones, those with embeddings for each layer, and those with
experts beside a unit."""

from typing import Any

import numpy as np
import tiny_models
from tiny_models import TinyModel, floats


def field(model: TinyModel, name: str) -> Any:
    return model.metadata[f"gemma4.{name}"]


def with_fields(model: TinyModel, **fields: Any) -> None:
    model.metadata |= {f"gemma4.{name}": value for name, value in fields.items()}


def norms(model: TinyModel, layer: int, **widths: int) -> None:
    random = np.random.default_rng(31 + layer)
    for name, width in widths.items():
        # Scores are not scaled: smaller norms of queries and keys keep them apart from one another.
        mean = 0.4 if name in ("attn_q_norm", "attn_k_norm") else 1.0
        model.tensors[f"blk.{layer}.{name}.weight"] = floats(random, width, mean=mean, spread=0.1)


def matrices(model: TinyModel, layer: int, **shapes: tuple[int, int]) -> None:
    random, kind = np.random.default_rng(71 + layer), model.tensors["blk.0.attn_q.weight"].type
    for name, (rows, cols) in shapes.items():
        blocks = tiny_models.random_blocks(random, kind, rows, cols, 1 / np.sqrt(cols))
        model.tensors[f"blk.{layer}.{name}.weight"] = blocks


def dense(model: TinyModel, rich: bool) -> None:
    """Heads of layers that see all are twice as wide as `model` has them, with keys that are values
    too; rich: they have fewer keys, and a part of each head does not turn."""
    n_layers, n_embd = field(model, "block_count"), field(model, "embedding_length")
    n_heads, dim = field(model, "attention.head_count"), field(model, "attention.key_length")
    slides = [layer < 2 or layer % 2 == 1 if rich else layer % 2 == 0 for layer in range(n_layers)]
    n_kv = field(model, "attention.head_count_kv")
    heads = [n_kv if near or not rich else 1 for near in slides]
    for layer, near in enumerate(slides):
        wide = dim if near else 2 * dim
        norms(model, layer, attn_q_norm=wide, attn_k_norm=wide)
        norms(model, layer, post_attention_norm=n_embd, post_ffw_norm=n_embd)
        kv = heads[layer] * wide, n_embd
        matrices(model, layer, attn_q=(n_heads * wide, n_embd), attn_k=kv, attn_v=kv)
        matrices(model, layer, attn_output=(n_embd, n_heads * wide))
        if not near or not rich:
            del model.tensors[f"blk.{layer}.attn_v.weight"]
        if rich:
            scale = np.array([0.5 + 0.25 * layer], np.float32)
            name = f"blk.{layer}.layer_output_scale.weight"
            model.tensors[name] = tiny_models.blocks_of("F32", scale)
    lengths = {"attention.key_length": 2 * dim, "attention.value_length": 2 * dim}
    lengths |= {f"{name}_swa": dim for name in lengths}
    lengths |= {"rope.dimension_count": 2 * dim, "rope.dimension_count_swa": dim}
    with_fields(model, **lengths, **{"attention.sliding_window": 9 if rich else 33})
    with_fields(model, **{"attention.sliding_window_pattern": slides, "rope.freq_base": 1e6})
    with_fields(model, embedding_length_per_layer_input=0)
    if rich:
        with_fields(model, **{"attention.head_count_kv": heads, "rope.freq_base_swa": 5000.0})
        with_fields(model, final_logit_softcapping=5.0)
    divisors = np.where(np.arange(dim) < dim // (4 if rich else 2), 1, 1e30).astype(np.float32)
    model.tensors["rope_freqs.weight"] = tiny_models.blocks_of("F32", divisors)


def with_layer_embeddings(model: TinyModel, width: int, n_sharing: int, unused: bool) -> None:
    """Embeddings for each layer; the last n_sharing layers have no keys and values. unused: their
    matrices are in the file regardless."""
    n_layers, n_embd = field(model, "block_count"), field(model, "embedding_length")
    random, kind = np.random.default_rng(32), model.tensors["blk.0.attn_q.weight"].type
    n_vocab = len(model.tensors["token_embd.weight"].data)
    table = tiny_models.random_blocks(random, kind, n_vocab, n_layers * width, 0.3)
    model.tensors["per_layer_token_embd.weight"] = table
    made = tiny_models.random_blocks(random, kind, n_layers * width, n_embd, 1.0)
    model.tensors["per_layer_model_proj.weight"] = made
    model.tensors["per_layer_proj_norm.weight"] = floats(random, width, mean=1.0)
    for layer in range(n_layers):
        matrices(model, layer, inp_gate=(width, n_embd), proj=(n_embd, width))
        norms(model, layer, post_norm=n_embd)
        if layer >= n_layers - n_sharing and not unused:
            for name in ("attn_k", "attn_v", "attn_k_norm"):
                model.tensors.pop(f"blk.{layer}.{name}.weight", None)
    with_fields(model, embedding_length_per_layer_input=width)
    with_fields(model, **{"attention.shared_kv_layers": n_sharing})


def with_experts(model: TinyModel, *, used: int, fused: bool) -> None:
    """Beside the unit of every layer; the file may have one factor for each."""
    units = {n: b for n, b in model.tensors.items() if ".ffn_" in n}
    n_layers, n_embd = field(model, "block_count"), field(model, "embedding_length")
    kind = model.tensors["blk.0.attn_q.weight"].type
    tiny_models.with_experts(model, count=6, used=used, type=kind)
    if fused:
        tiny_models.fuse_experts(model)
    model.tensors |= units
    random = np.random.default_rng(33)
    for layer in range(n_layers):
        widths = dict.fromkeys(("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"), n_embd)
        norms(model, layer, **widths)
        scale = floats(random, n_embd, mean=3.0)
        model.tensors[f"blk.{layer}.ffn_gate_inp.scale"] = scale
        if fused:
            name = f"blk.{layer}.ffn_down_exps.scale"
            model.tensors[name] = floats(random, 6, mean=1.0, spread=0.5)


def whole(model: TinyModel, rich: bool) -> None:
    """Rich: with all that any of them has."""
    dense(model, rich)
    if rich:
        n_sharing = max(field(model, "block_count") - 3, 0)
        with_layer_embeddings(model, 32, n_sharing=n_sharing, unused=False)
        with_experts(model, used=2, fused=True)


def embedded(model: TinyModel, rich: bool) -> None:
    """As the small ones are. Rich: of seven layers, four share."""
    dense(model, rich)
    with_layer_embeddings(model, 64 if rich else 32, n_sharing=4 if rich else 2, unused=not rich)


def routed(model: TinyModel, rich: bool) -> None:
    dense(model, rich)
    with_experts(model, used=3 if rich else 1, fused=rich)


SHAPES: dict[bool, dict[str, Any]] = {
    True: {"n_layers": 7, "n_embd": 96, "n_ff": 160, "n_heads": 6, "n_kv_heads": 2, "head_dim": 32},
    False: {"n_layers": 4, "n_ff": 224, "n_kv_heads": 4, "head_dim": 32},
}
KINDS = {"dense": dense, "embedded": embedded, "routed": routed}


def tiny(kind: str, rich: bool, **shape: Any) -> TinyModel:
    """One of KINDS."""
    model = tiny_models.transformer("gemma4", **(SHAPES[rich] | {"seed": 3} | shape))
    KINDS[kind](model, rich)
    return model
