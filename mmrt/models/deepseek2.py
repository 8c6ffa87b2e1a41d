"""DeepSeek V2 and V3 (DeepSeek-AI 2024, arXiv:2405.04434, arXiv:2412.19437), Kimi K2, GLM 4.7 Flash
and others: of each token one row is kept for all heads, which keys and values are made of; the
first layers are dense, the others have experts, some of which all tokens go through."""

import math
from dataclasses import replace

from mmrt.core.program import Program
from mmrt.models.parts.config import Config, Latent, transformer_config
from mmrt.models.parts.experts import experts_from
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.transformer import Transformer
from mmrt.models.parts.weights import Weights

_FLASH_VOCABULARY, _FLASH_BLOCKS = 154880, (47, 48)  # GLM 4.7 Flash, whose files do not say all


def config(fields: Fields) -> Config:
    """The model's shape, from its metadata. FormatError or UnsupportedError names the field."""
    flash = (
        fields.integer("vocab_size", 0, least=0) == _FLASH_VOCABULARY
        and fields.integer("block_count") in _FLASH_BLOCKS
    )
    experts = experts_from(fields, gating="sigmoid" if flash else "softmax", normalised=False)
    fields.integer("attention.q_lora_rank", 0, least=0)  # the matrices tell
    latent = _latent(fields)
    c = transformer_config(fields, experts=experts, latent=latent)
    key, share = latent.head_dim, c.rope.log_multiplier
    # Files say a tenth of what the magnitude's growth is taken back by, which is all or nothing
    # here; scores have that growth then.
    c = replace(c, rope=replace(c.rope, log_multiplier=1.0 if share else 0.0))
    if c.rope.scaling != "yarn":
        return replace(c, attention_scale=key**-0.5)
    scale = c.rope.magnitude * (1 + share * math.log(max(c.rope.factor, 1)))
    return replace(c, attention_scale=scale**2 * key**-0.5)


def _latent(fields: Fields) -> Latent:
    if fields.integer("attention.key_length_mla", 0, least=0) == 0:
        raise fields.unsupported(
            "attention.key_length_mla",
            "missing: the file was written before 2025-04, with keys and values for each head; "
            "mmrt needs one that is converted anew",
        )
    latent = Latent(
        values=fields.integer("attention.kv_lora_rank"),
        turned=fields.integer("rope.dimension_count"),
        head_dim=fields.integer("attention.key_length_mla"),
        result=fields.integer("attention.value_length_mla"),
    )
    if latent.values % 32:
        raise fields.unsupported(
            "attention.kv_lora_rank", f"{latent.values} is no multiple of 32, as mmrt needs it"
        )
    if latent.turned >= latent.head_dim:
        raise fields.error(
            "rope.dimension_count",
            f"expected less than the {latent.head_dim} of a head, found {latent.turned}",
        )
    return latent


def build(program: Program, config: Config, weights: Weights) -> None:
    """Lists the operations of the forward pass. FormatError names a tensor that is unfit."""
    model = Transformer(program, config, weights)
    model.embed()
    for layer in model.layers():
        model.norm(layer["attn_norm"])
        model.latent_attention(layer, interleaved=True)
        model.norm(layer["ffn_norm"])
        model.gated_unit_or_experts(layer, "silu")
    model.logits()
