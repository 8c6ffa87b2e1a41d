"""Gemma 3, text only (Gemma Team 2025, arXiv:2503.19786): five layers with a sliding window, then
one that sees all; norms before and after each sub-layer, and of queries and keys."""

import math
from dataclasses import replace

from mmrt.fields import Fields
from mmrt.models.config import Config, transformer_config
from mmrt.models.rope import Rope
from mmrt.models.weights import Weights
from mmrt.program import Program

_PATTERN = 6  # every sixth layer sees all keys
_LOCAL_ROPE_BASE = 10000.0
_LAYERS_OF_27B = 62


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    c = transformer_config("gemma3", fields)
    c = replace(c, window=fields.integer("attention.sliding_window"))
    if c.n_layers == _LAYERS_OF_27B:
        # This size alone scales scores by the width of a head's share of the stream.
        c = replace(c, attention_scale=(c.n_embd / c.n_heads) ** -0.5)
    return c


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    c = config
    qkv_width = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    stream, change = program.buffer(c.n_embd), program.buffer(c.n_embd)
    normed, qkv = program.buffer(c.n_embd), program.buffer(qkv_width)
    heads, hidden = program.buffer(c.n_heads * c.head_dim), program.buffer(c.n_ff)

    # Layers with a window rotate by a base of their own, and are not stretched.
    everywhere = program.rope_table(c.rope.frequencies(), c.rope.magnitude)
    nearby = program.rope_table(Rope(c.rope.n_dims, _LOCAL_ROPE_BASE).frequencies())

    embedding = weights["token_embd.weight"]
    program.embed(embedding, stream, scale=math.sqrt(c.n_embd))
    after = None  # the norm of what the sub-layer before has to add to the stream
    for i in range(c.n_layers):
        layer = weights.layer(i)
        last = i == c.n_layers - 1  # from its attention on, only wanted tokens matter
        sees_all = i % _PATTERN == _PATTERN - 1
        program.norm(
            stream, layer["attn_norm"], normed, c.rms_eps, add=change if i else -1, post=after
        )
        program.linear(normed, [layer["attn_q"], layer["attn_k"], layer["attn_v"]], qkv)
        program.rope(
            qkv,
            everywhere if sees_all else nearby,
            i,
            c.n_heads,
            interleaved=False,
            q_norm=layer["attn_q_norm"],
            k_norm=layer["attn_k_norm"],
            eps=c.rms_eps,
        )
        program.attend(
            qkv,
            heads,
            i,
            c.n_heads,
            c.attention_scale,
            window=0 if sees_all else c.window,
            softcap=c.attention_softcap,
            outputs_only=last,
        )
        program.linear(heads, [layer["attn_output"]], change, outputs_only=last)
        program.norm(
            stream,
            layer["ffn_norm"],
            normed,
            c.rms_eps,
            add=change,
            post=layer["post_attention_norm"],
            outputs_only=last,
        )
        program.glu(normed, layer["ffn_gate"], layer["ffn_up"], hidden, "gelu", outputs_only=last)
        program.linear(hidden, [layer["ffn_down"]], change, outputs_only=last)
        after = layer["post_ffw_norm"]
    program.norm(
        stream,
        weights["output_norm.weight"],
        normed,
        c.rms_eps,
        add=change,
        post=after,
        outputs_only=True,
    )
    program.logits(normed, weights.get("output.weight") or embedding, c.logit_softcap)
