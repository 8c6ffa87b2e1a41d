"""The shape of a transformer, as its metadata gives it."""

from dataclasses import dataclass

from mmrt.fields import Fields
from mmrt.models.rope import Rope, rope_from


@dataclass(frozen=True)
class Config:
    architecture: str
    context_length: int  # tokens, as trained
    n_layers: int
    n_embd: int  # width of the residual stream
    n_ff: int  # width of the feed-forward layers
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_eps: float
    rope: Rope
    attention_scale: float  # of the scores
    attention_softcap: float  # 0: none
    logit_softcap: float  # 0: none
    window: int  # keys seen by sliding-window layers; 0: every layer sees all


def transformer_config(architecture: str, fields: Fields) -> Config:
    """The fields that all transformers share; architectures replace what they do otherwise."""
    n_embd = fields.integer("embedding_length")
    n_heads = fields.integer("attention.head_count")
    n_kv_heads = fields.integer("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads:
        raise fields.error("attention.head_count_kv", f"{n_kv_heads} does not divide {n_heads}")
    head_dim = fields.integer("attention.key_length", max(n_embd // n_heads, 1))
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.error("attention.value_length", f"differs from the key length, {head_dim}")
    if (n_heads + 2 * n_kv_heads) * head_dim >= 1 << 31:
        raise fields.error("attention.head_count", f"{n_heads} heads of {head_dim} are absurd")
    return Config(
        architecture=architecture,
        context_length=fields.integer("context_length"),
        n_layers=fields.integer("block_count"),
        n_embd=n_embd,
        n_ff=fields.integer("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rms_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope=rope_from(fields, head_dim),
        attention_scale=fields.number("attention.scale", head_dim**-0.5),
        attention_softcap=fields.number("attn_logit_softcapping", 0.0, or_zero=True),
        logit_softcap=fields.number("final_logit_softcapping", 0.0, or_zero=True),
        window=fields.integer("attention.sliding_window", 0, least=0),
    )
