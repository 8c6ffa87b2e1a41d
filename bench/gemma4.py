"""What files of Gemma 4's small models have, for bench.make_model: wider heads in every sixth
layer, which sees all; embeddings for each layer; layers that share the keys of others."""

from typing import Any, Protocol

from mmrt.files.gguf_writer import Entry

_PATTERN = 6  # every sixth layer sees all


class Shape(Protocol):
    """That of bench.make_model, as far as it is read here."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_ff(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def head_dim_in_window(self) -> int: ...
    @property
    def n_sharing(self) -> int: ...
    @property
    def layer_embedding(self) -> int: ...


def _sees_all(layer: int) -> bool:
    return layer % _PATTERN == _PATTERN - 1


def fields_of(shape: Shape) -> dict[str, Any]:
    """Beside those that all models have."""
    return {
        "attention.key_length_swa": shape.head_dim_in_window,
        "attention.value_length_swa": shape.head_dim_in_window,
        "attention.shared_kv_layers": shape.n_sharing,
        "attention.sliding_window_pattern": [not _sees_all(i) for i in range(shape.n_layers)],
        "embedding_length_per_layer_input": shape.layer_embedding,
        "final_logit_softcapping": 30.0,
        "rope.dimension_count_swa": shape.head_dim_in_window,
        "rope.freq_base_swa": 10000.0,
    }


def tensors_of(shape: Shape, type: str, embedding: str) -> list[Entry]:
    """The embedding is the output's matrix too; embedding: its type and that of layers' own."""
    both = shape.n_layers * shape.layer_embedding
    return [
        Entry("token_embd.weight", embedding, (shape.n_vocab, shape.n_embd)),
        Entry("per_layer_token_embd.weight", embedding, (shape.n_vocab, both)),
        Entry("per_layer_model_proj.weight", type, (both, shape.n_embd)),
        Entry("per_layer_proj_norm.weight", "F32", (shape.layer_embedding,)),
        Entry("rope_freqs.weight", "F32", (shape.head_dim // 2,)),
        *(
            Entry(f"blk.{i}.{role}.weight", *kind)
            for i in range(shape.n_layers)
            for role, kind in _layer(shape, i, type).items()
        ),
        Entry("output_norm.weight", "F32", (shape.n_embd,)),
    ]


def _layer(shape: Shape, layer: int, type: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    dim = shape.head_dim if _sees_all(layer) else shape.head_dim_in_window
    keeps = layer < shape.n_layers - shape.n_sharing
    n_embd, q, kv = shape.n_embd, shape.n_heads * dim, shape.n_kv_heads * dim
    vectors = {
        "attn_norm": n_embd,
        "attn_q_norm": dim,
        **({"attn_k_norm": dim} if keeps else {}),
        "post_attention_norm": n_embd,
        "ffn_norm": n_embd,
        "post_ffw_norm": n_embd,
        "post_norm": n_embd,
        "layer_output_scale": 1,
    }
    matrices = {
        "attn_q": (q, n_embd),
        **({"attn_k": (kv, n_embd), "attn_v": (kv, n_embd)} if keeps else {}),
        "attn_output": (n_embd, q),
        "ffn_gate": (shape.n_ff, n_embd),
        "ffn_up": (shape.n_ff, n_embd),
        "ffn_down": (n_embd, shape.n_ff),
        "inp_gate": (shape.layer_embedding, n_embd),
        "proj": (n_embd, shape.layer_embedding),
    }
    return {
        **{role: ("F32", (n,)) for role, n in vectors.items()},
        **{role: (type, rows) for role, rows in matrices.items()},
    }
