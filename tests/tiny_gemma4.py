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
