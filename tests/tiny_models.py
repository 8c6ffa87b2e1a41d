"""Small GGUF models of any shape with random weights, to be changed before they are written.

    model = llama(n_layers=3, type="Q4_K", n_embd=256, n_ff=256)
    model.metadata["llama.rope.scaling.type"] = "linear"
    model.tensors["blk.1.attn_q.bias"] = floats(random, 64)
    model.write(path)

Their vocabulary is byte-level: every text has ids, though what such models write is noise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from numpy.typing import NDArray
from own_types import OWN
from vocabularies import CONTROL, MERGES, NORMAL, byte_level

from bench import blocks as made
from mmrt.text.bpe import BYTE_LETTERS

FLOATS = ("F32", "F16", "BF16")
ROUNDED = (*FLOATS, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # that `gguf` rounds values to
TYPES = (
    *ROUNDED,
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)

FLOAT32_MAX = float(np.finfo(np.float32).max)

_SPECIALS = [("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]
_SMALLEST_VOCABULARY = len(byte_level(MERGES, _SPECIALS)["tokenizer.ggml.tokens"])


class Blocks(NamedTuple):
    """A tensor: rows of blocks, in bytes."""

    type: str
    data: NDArray[np.uint8]


def elements_of(type: str) -> int:
    """Elements in a block."""
    if type in OWN:
        return {"Q1_0": 128, "Q2_0": 64, "PQ2_0": 128}[type]
    return GGML_QUANT_SIZES[GGMLQuantizationType[type]][0]


def dequantize(blocks: Blocks) -> NDArray[np.float32]:
    if blocks.type in OWN:
        of_block = 2 + elements_of(blocks.type) // (8 if blocks.type == "Q1_0" else 4)
        return OWN[blocks.type](blocks.data.reshape(-1, of_block)).reshape(len(blocks.data), -1)
    values = quants.dequantize(blocks.data, GGMLQuantizationType[blocks.type])
    return np.asarray(values, np.float32)


def blocks_of(type: str, values: NDArray[np.float32]) -> Blocks:
    """`values` rounded to a type that `gguf` can write; for an integer type, their whole parts."""
    if type[0] == "I":
        data = values.astype(f"<i{int(type[1:]) // 8}")
    elif type == "F64":
        data = values.astype("<f8")
    else:
        data = quants.quantize(values, GGMLQuantizationType[type])
    return Blocks(type, np.ascontiguousarray(data).view(np.uint8))


def random_blocks(
    random: np.random.Generator, type: str, rows: int, cols: int, spread: float
) -> Blocks:
    """A matrix with weights of mean 0 (nearly) and standard deviation `spread`."""
    if type in ROUNDED:
        return blocks_of(type, random.normal(0, spread, (rows, cols)).astype(np.float32))
    n = rows * cols // elements_of(type)
    return Blocks(type, made.random_blocks(random, type, n, spread).reshape(rows, -1))


def floats(random: np.random.Generator, n: int, mean: float = 0.0, spread: float = 0.1) -> Blocks:
    """A vector in F32: a bias, or with mean 1 a norm."""
    return blocks_of("F32", random.normal(mean, spread, n).astype(np.float32))


@dataclass
class TinyModel:
    """A file to be: change its fields and tensors, then write it."""

    metadata: dict[str, Any]
    tensors: dict[str, Blocks]

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, "")
        writer.kv_data[0].clear()
        for name, value in self.metadata.items():
            kind = GGUFValueType.get_type(value)
            if kind == GGUFValueType.INT32 and 0 <= value < 1 << 32:
                kind = GGUFValueType.UINT32  # as converters write counts
            elif kind == GGUFValueType.INT32 and value >= 1 << 32:
                kind = GGUFValueType.UINT64
            elif kind == GGUFValueType.FLOAT32 and FLOAT32_MAX < abs(value) < np.inf:
                kind = GGUFValueType.FLOAT64
            writer.add_key_value(name, value, kind)
        for name, (type, data) in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[type])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _vocabulary(size: int) -> dict[str, Any]:
    padding = [(f"<pad{i}>", NORMAL) for i in range(size - _SMALLEST_VOCABULARY)]
    fields = byte_level(MERGES, [*padding, *_SPECIALS])
    assert len(fields["tokenizer.ggml.tokens"]) == size, f"at least {_SMALLEST_VOCABULARY} tokens"
    return {**fields, "tokenizer.ggml.eos_token_id": size - 1}


def llama(**shape: Any) -> TinyModel:
    """A model of the llama architecture; arguments as transformer()'s."""
    return transformer("llama", **shape)


def gemma3(*, window: int | None = 16, **shape: Any) -> TinyModel:
    """A model of the gemma3 architecture, whose sixth layer sees all keys and the others `window`,
    if it has one; other arguments as transformer()'s."""
    model = transformer("gemma3", **shape)
    if window is not None:
        model.metadata["gemma3.attention.sliding_window"] = window
    random = np.random.default_rng(1)
    n_embd, head_dim = (
        model.metadata[f"gemma3.{name}"] for name in ("embedding_length", "attention.key_length")
    )
    for i in range(model.metadata["gemma3.block_count"]):
        widths = {"attn_q_norm": head_dim, "attn_k_norm": head_dim}
        widths |= {"post_attention_norm": n_embd, "post_ffw_norm": n_embd}
        for name, width in widths.items():
            model.tensors[f"blk.{i}.{name}.weight"] = floats(random, width, mean=1.0)
    return model


def qwen3moe(*, experts: dict[str, Any] | None = None, **shape: Any) -> TinyModel:
    """A model of the qwen3moe architecture; experts: arguments of with_experts(), others as
    transformer()'s."""
    model = with_experts(transformer("qwen3moe", **shape), **(experts or {}))
    random = np.random.default_rng(1)
    for i in range(model.metadata["qwen3moe.block_count"]):
        for name in ("attn_q_norm", "attn_k_norm"):
            width = model.metadata["qwen3moe.attention.key_length"]
            model.tensors[f"blk.{i}.{name}.weight"] = floats(random, width, mean=1.0)
    return model


def with_experts(
    model: TinyModel,
    *,
    count: int = 8,
    used: int = 2,
    width: int = 64,
    type: str = "F32",
    biases: bool = False,
    dense: int = 0,
    **fields: Any,
) -> TinyModel:
    """The same model with experts in place of the gated units of all layers but the first `dense`.
    fields: others of the metadata, such as expert_gating_func."""
    architecture = model.metadata["general.architecture"]
    random = np.random.default_rng(2)
    n_embd = model.metadata[f"{architecture}.embedding_length"]
    fields |= {"expert_count": count, "expert_used_count": used}
    fields |= {"expert_feed_forward_length": width} | (
        {"leading_dense_block_count": dense} if dense else {}
    )
    model.metadata |= {f"{architecture}.{name}": value for name, value in fields.items()}
    for i in range(dense, model.metadata[f"{architecture}.block_count"]):
        prefix = f"blk.{i}."
        for role, rows, cols in (
            ("gate", width, n_embd),
            ("up", width, n_embd),
            ("down", n_embd, width),
        ):
            del model.tensors[f"{prefix}ffn_{role}.weight"]
            flat = random_blocks(random, type, count * rows, cols, 1 / np.sqrt(cols))
            stack = Blocks(type, flat.data.reshape(count, rows, -1))
            model.tensors[f"{prefix}ffn_{role}_exps.weight"] = stack
            if biases:
                bias = floats(random, count * rows).data.reshape(count, -1)
                model.tensors[f"{prefix}ffn_{role}_exps.bias"] = Blocks("F32", bias)
        router = random_blocks(random, "F32", count, n_embd, 2 / np.sqrt(n_embd))
        model.tensors[f"{prefix}ffn_gate_inp.weight"] = router
        if biases:
            model.tensors[f"{prefix}ffn_gate_inp.bias"] = floats(random, count)
    return model


def with_fields(model: TinyModel, **fields: Any) -> None:
    """Fields of the architecture, with _ for the dots that separate groups as they are written."""
    architecture = model.metadata["general.architecture"]
    model.metadata |= {f"{architecture}.{name}": value for name, value in fields.items()}


def field(model: TinyModel, name: str) -> Any:
    return model.metadata[f"{model.metadata['general.architecture']}.{name}"]


def with_shared_expert(model: TinyModel, width: int) -> TinyModel:
    """The same model, with an expert in every layer of experts that all tokens go through."""
    random = np.random.default_rng(13)
    for router in [name for name in model.tensors if "ffn_gate_inp.weight" in name]:
        n_embd = len(dequantize(model.tensors[router])[0])
        for role, rows, cols in (
            ("gate", width, n_embd),
            ("up", width, n_embd),
            ("down", n_embd, width),
        ):
            matrix = random_blocks(random, "F32", rows, cols, 1 / np.sqrt(cols))
            model.tensors[router.replace("gate_inp", f"{role}_shexp")] = matrix
    return model


def fuse_experts(model: TinyModel) -> TinyModel:
    """The same model, with each expert's gate and up in one matrix."""
    for name in [name for name in model.tensors if "ffn_gate_exps" in name]:
        parts = [model.tensors.pop(name.replace("gate", which)) for which in ("gate", "up")]
        fused = Blocks(parts[0].type, np.concatenate([part.data for part in parts], axis=1))
        model.tensors[name.replace("gate", "gate_up")] = fused
    return model


def fuse_qkv(model: TinyModel) -> TinyModel:
    """The same model, with the matrices of queries, keys and values in one."""
    layers = model.metadata[f"{model.metadata['general.architecture']}.block_count"]
    for i in range(layers):
        parts = [model.tensors.pop(f"blk.{i}.attn_{which}.weight") for which in "qkv"]
        fused = Blocks(parts[0].type, np.concatenate([part.data for part in parts]))
        model.tensors[f"blk.{i}.attn_qkv.weight"] = fused
    return model


def speaker(*says: bytes, ends: bool = True, context: int = 512) -> TinyModel:
    """A model that after any prompt says these bytes, each of them one token, and then ends its
    text, or else begins again. Only the latest token matters to it."""
    letters = [("".join(BYTE_LETTERS[byte] for byte in said), NORMAL) for said in says]
    vocabulary = byte_level(MERGES, letters + _SPECIALS)
    size = _SMALLEST_VOCABULARY + len(says)
    eos, first = size - 1, size - len(_SPECIALS) - len(says)
    said = [*range(first, first + len(says)), eos if ends else first]
    following = np.full(size, said[0])
    following[said[:-1]] = said[1:]

    # Embeddings are the axes; nothing is added to them; the output turns each to its follower.
    model = llama(n_layers=1, n_embd=size, n_heads=1, n_kv_heads=1, n_vocab=size, context=context)
    model.metadata |= vocabulary
    turns = np.zeros((size, size), np.float32)
    turns[following, np.arange(size)] = 1
    values: dict[str, NDArray[Any]] = {
        "token_embd": np.eye(size),
        "output_norm": np.ones(size),
        "output": turns,
    }
    for role in ("attn_output", "ffn_down"):
        nothing = dequantize(model.tensors[f"blk.0.{role}.weight"]) * 0
        values[f"blk.0.{role}"] = nothing
    for name, array in values.items():
        model.tensors[f"{name}.weight"] = blocks_of("F32", array.astype(np.float32))
    return model


def transformer(
    architecture: str,
    *,
    n_layers: int = 2,
    n_embd: int = 64,
    n_ff: int | list[int] = 96,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 16,
    n_vocab: int = 300,
    context: int = 512,
    type: str = "F32",
    types: dict[str, str] | None = None,
    separate_output: bool = False,
    seed: int = 0,
) -> TinyModel:
    """n_ff: of all layers, or of each; type: of all matrices; types: of some, by role ("attn_q",
    "ffn_down", "token_embd", "output", ...). separate_output: with an output.weight beside the
    embedding."""
    random = np.random.default_rng(seed)

    def matrix(role: str, rows: int, cols: int, gain: float = 1.0) -> Blocks:
        kind = (types or {}).get(role, type)
        return random_blocks(random, kind, rows, cols, gain / np.sqrt(cols))

    # A larger gain makes the odds of tokens as uneven as a real model's.
    tensors = {"token_embd.weight": matrix("token_embd", n_vocab, n_embd, gain=3.0)}
    for i in range(n_layers):
        width = n_ff if isinstance(n_ff, int) else n_ff[i]
        layer = {
            "attn_norm": floats(random, n_embd, mean=1.0),
            "attn_q": matrix("attn_q", n_heads * head_dim, n_embd),
            "attn_k": matrix("attn_k", n_kv_heads * head_dim, n_embd),
            "attn_v": matrix("attn_v", n_kv_heads * head_dim, n_embd),
            "attn_output": matrix("attn_output", n_embd, n_heads * head_dim),
            "ffn_norm": floats(random, n_embd, mean=1.0),
            "ffn_gate": matrix("ffn_gate", width, n_embd),
            "ffn_up": matrix("ffn_up", width, n_embd),
            "ffn_down": matrix("ffn_down", n_embd, width),
        }
        tensors |= {f"blk.{i}.{role}.weight": blocks for role, blocks in layer.items()}
    tensors["output_norm.weight"] = floats(random, n_embd, mean=1.0)
    if separate_output:
        tensors["output.weight"] = matrix("output", n_vocab, n_embd, gain=3.0)
    fields = {
        "context_length": context,
        "block_count": n_layers,
        "embedding_length": n_embd,
        "feed_forward_length": n_ff,
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 10000.0,
    }
    return TinyModel(
        {
            "general.architecture": architecture,
            **{f"{architecture}.{name}": value for name, value in fields.items()},
            **_vocabulary(n_vocab),
        },
        tensors,
    )
