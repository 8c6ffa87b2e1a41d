"""Llama, Mistral, SmolLM and others of the same shape (Touvron et al. 2023, arXiv:2302.13971)."""

import math

from mmrt.errors import FormatError, UnsupportedError
from mmrt.fields import Fields
from mmrt.models.config import Config, transformer_config
from mmrt.models.weights import Weights
from mmrt.program import Program


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    if fields.integer("expert_count", 0, least=0):
        raise UnsupportedError(str(fields.error("expert_count", "mixtures of experts do not run")))
    return transformer_config("llama", fields)


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    c = config
    qkv_width = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    stream, change = program.buffer(c.n_embd), program.buffer(c.n_embd)
    normed, qkv = program.buffer(c.n_embd), program.buffer(qkv_width)
    heads, hidden = program.buffer(c.n_heads * c.head_dim), program.buffer(c.n_ff)

    rope = program.rope_table(c.rope.frequencies(_divisors(weights, c)), c.rope.magnitude)

    embedding = weights["token_embd.weight"]
    program.embed(embedding, stream)
    for i in range(c.n_layers):
        layer = weights.layer(i)
        last = i == c.n_layers - 1  # from its attention on, only wanted tokens matter
        names = ("attn_q", "attn_k", "attn_v")
        program.norm(stream, layer["attn_norm"], normed, c.rms_eps, add=change if i else -1)
        program.linear(
            normed, [layer[n] for n in names], qkv, biases=[layer.bias(n) for n in names]
        )
        program.rope(qkv, rope, i, c.n_heads, interleaved=True)
        program.attend(
            qkv,
            heads,
            i,
            c.n_heads,
            c.attention_scale,
            softcap=c.attention_softcap,
            outputs_only=last,
        )
        program.linear(
            heads,
            [layer["attn_output"]],
            change,
            biases=[layer.bias("attn_output")],
            outputs_only=last,
        )
        program.norm(stream, layer["ffn_norm"], normed, c.rms_eps, add=change, outputs_only=last)
        program.glu(normed, layer["ffn_gate"], layer["ffn_up"], hidden, "silu", outputs_only=last)
        program.linear(hidden, [layer["ffn_down"]], change, outputs_only=last)
    program.norm(
        stream, weights["output_norm.weight"], normed, c.rms_eps, add=change, outputs_only=True
    )
    program.logits(normed, weights.get("output.weight") or embedding, c.logit_softcap)


def _divisors(weights: Weights, config: Config) -> list[float] | None:
    """The model's own divisors of its rotations (Llama 3.1 has them), if it has any."""
    tensor = weights.get("rope_freqs.weight")
    if tensor is None:
        return None
    pairs = config.rope.n_dims // 2
    if tensor.shape != (pairs,):
        raise FormatError(
            f"tensor {tensor.name}: shape {tensor.shape} where {(pairs,)} is expected"
        )
    divisors: list[float] = tensor.dequantize().tolist()
    if not all(0 < divisor < math.inf for divisor in divisors):
        raise FormatError(f"tensor {tensor.name}: expected positive numbers, found others")
    return divisors
