"""Llama, Mistral, SmolLM and others of the same shape (Touvron et al. 2023, arXiv:2302.13971)."""

from mmrt.errors import UnsupportedError
from mmrt.fields import Fields
from mmrt.models.config import Config, transformer_config
from mmrt.models.weights import Weights
from mmrt.program import Program


def config(fields: Fields) -> Config:
    if fields.integer("expert_count", 0, least=0):
        raise UnsupportedError(str(fields.error("expert_count", "mixtures of experts do not run")))
    return transformer_config("llama", fields)


def build(program: Program, config: Config, weights: Weights) -> None:
    c = config
    qkv_width = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    stream, change = program.buffer(c.n_embd), program.buffer(c.n_embd)
    normed, qkv = program.buffer(c.n_embd), program.buffer(qkv_width)
    heads, hidden = program.buffer(c.n_heads * c.head_dim), program.buffer(c.n_ff)

    divisors = weights.get("rope_freqs.weight")
    frequencies = c.rope.frequencies(None if divisors is None else divisors.dequantize().tolist())
    rope = program.rope_table(frequencies, c.rope.magnitude)

    embedding = weights["token_embd.weight"]
    program.embed(embedding, stream)
    for i in range(c.n_layers):
        layer = weights.layer(i)
        last = i == c.n_layers - 1  # from its attention on, only wanted tokens matter
        names = ("attn_q", "attn_k", "attn_v")
        program.norm(
            stream, layer["attn_norm"], normed, c.rms_eps, add=change if i else -1
        )
        program.linear(
            normed, [layer[n] for n in names], qkv, biases=[layer.bias(n) for n in names]
        )
        program.rope(qkv, rope, i, c.n_heads, interleaved=True)
        program.attend(
            qkv, heads, i, c.n_heads, c.attention_scale, outputs_only=last
        )
        program.linear(
            heads,
            [layer["attn_output"]],
            change,
            biases=[layer.bias("attn_output")],
            outputs_only=last,
        )
        program.norm(
            stream, layer["ffn_norm"], normed, c.rms_eps, add=change, outputs_only=last
        )
        program.glu(
            normed, layer["ffn_gate"], layer["ffn_up"], hidden, "silu", outputs_only=last
        )
        program.linear(hidden, [layer["ffn_down"]], change, outputs_only=last)
    program.norm(
        stream, weights["output_norm.weight"], normed, c.rms_eps, add=change, outputs_only=True
    )
    program.logits(normed, weights.get("output.weight") or embedding, c.logit_softcap)
