"""What files of hybrids have, for bench.make_model: in most layers gated delta nets, state spaces
or short convolutions in place of attention."""

from typing import TYPE_CHECKING, Any

from mmrt.files.gguf_writer import Entry

if TYPE_CHECKING:
    from bench.make_model import Shape

# Their layers, over and over: d delta nets, s state spaces, c short convolutions, a attention, each
# with a unit or experts after it; of Nemotron these are layers of their own, u.
_LAYERS = {
    "qwen35": "ddda",
    "qwen35moe": "ddda",
    "qwen3next": "ddda",
    "granitehybrid": "sssssassss",
    "nemotron_h_moe": "sususau",
    "lfm2": "ccaccaccacacacac",
}
ARCHITECTURES = tuple(_LAYERS)

Kinds = dict[str, tuple[str, tuple[int, ...]]]  # types and shapes of a layer's tensors, by name


def _layers(shape: "Shape") -> str:
    pattern = _LAYERS[shape.architecture]
    return (pattern * shape.n_layers)[: shape.n_layers]


def fields_of(shape: "Shape") -> dict[str, Any]:
    """Beside those that all models have, or in their place."""
    layers = _layers(shape)
    fields: dict[str, Any] = {}
    if "c" in layers:
        fields["shortconv.l_cache"] = shape.taps
    else:
        fields |= {
            "ssm.conv_kernel": shape.taps,
            "ssm.state_size": shape.n_states,
            "ssm.group_count": shape.n_state_groups,
            "ssm.time_step_rank": shape.n_state_heads,
            "ssm.inner_size": shape.state_width,
        }
    if "d" in layers:
        fields["full_attention_interval"] = 4
        fields["rope.dimension_count"] = shape.head_width // 4
    else:
        fields["attention.head_count_kv"] = [shape.n_kv_heads * (kind == "a") for kind in layers]
    if "u" in layers:
        fields["feed_forward_length"] = [shape.n_ff * (kind == "u") for kind in layers]
    if shape.n_ff_shared:
        fields["expert_shared_feed_forward_length"] = shape.n_ff_shared
    return fields | _own_fields(shape)


def _own_fields(shape: "Shape") -> dict[str, Any]:
    if shape.architecture in ("qwen35", "qwen35moe"):
        return {"rope.dimension_sections": [11, 11, 10, 0]}
    if shape.architecture == "granitehybrid":
        factors = {"embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 6.0}
        return {**factors, "attention.scale": 1 / shape.head_width, "rope.scaling.finetuned": False}
    if shape.architecture == "nemotron_h_moe":
        weights = {"expert_weights_norm": True, "expert_weights_scale": 2.5}
        epsilon = {"attention.layer_norm_epsilon": 1e-5}
        return {**weights, **epsilon, "expert_gating_func": 2, "expert_shared_count": 1}
    return {}


def tensors_of(shape: "Shape", type: str, embedding: str) -> list[Entry]:
    """The embedding is the output's matrix too."""
    last = "token_embd_norm" if shape.architecture.startswith("lfm2") else "output_norm"
    return [
        Entry("token_embd.weight", embedding, (shape.n_vocab, shape.n_embd)),
        *(
            Entry(f"blk.{i}.{name}", *tensor)
            for i, kind in enumerate(_layers(shape))
            for name, tensor in _layer(shape, kind, type).items()
        ),
        Entry(f"{last}.weight", "F32", (shape.n_embd,)),
    ]


def _layer(shape: "Shape", kind: str, type: str) -> Kinds:
    norm: tuple[str, tuple[int, ...]] = ("F32", (shape.n_embd,))
    mixers = {"a": _attention, "d": _delta_net, "s": _state_spaces, "c": _short_convolution}
    found = {"attn_norm.weight": norm}
    if kind in mixers:
        found |= mixers[kind](shape, type)
    alone = "u" in _LAYERS[shape.architecture]
    if kind == "u" or not alone:
        after = "post_attention_norm" if "d" in _LAYERS[shape.architecture] else "ffn_norm"
        found |= {} if alone else {f"{after}.weight": norm}
        found |= _unit_or_experts(shape, type, gated=not alone)
    return found


def _attention(shape: "Shape", type: str) -> Kinds:
    n_embd, dim, delta = shape.n_embd, shape.head_width, "d" in _LAYERS[shape.architecture]
    q, kv = dim * shape.n_heads, dim * shape.n_kv_heads
    found: Kinds = {
        "attn_q.weight": (type, (2 * q if delta else q, n_embd)),  # with a gate for each
        "attn_k.weight": (type, (kv, n_embd)),
        "attn_v.weight": (type, (kv, n_embd)),
        "attn_output.weight": (type, (n_embd, q)),
    }
    if delta or shape.architecture == "lfm2":
        found |= {f"attn_{x}_norm.weight": ("F32", (dim,)) for x in "qk"}
    return found


def _delta_net(shape: "Shape", type: str) -> Kinds:
    n_embd, heads, values = shape.n_embd, shape.n_state_heads, shape.state_width
    channels = 2 * shape.n_state_groups * shape.n_states + values
    if shape.architecture == "qwen3next":
        gates: Kinds = {"ssm_ba.weight": (type, (2 * heads, n_embd))}
    else:
        gates = {f"ssm_{x}.weight": (type, (heads, n_embd)) for x in ("alpha", "beta")}
    return {
        "attn_qkv.weight": (type, (channels, n_embd)),
        "attn_gate.weight": (type, (values, n_embd)),
        **gates,
        "ssm_conv1d.weight": ("F32", (channels, shape.taps)),
        "ssm_dt.bias": ("F32", (heads,)),
        "ssm_a": ("F32", (heads,)),
        "ssm_norm.weight": ("F32", (shape.n_states,)),
        "ssm_out.weight": (type, (n_embd, values)),
    }


def _state_spaces(shape: "Shape", type: str) -> Kinds:
    n_embd, heads, inner = shape.n_embd, shape.n_state_heads, shape.state_width
    groups = shape.n_state_groups
    channels = inner + 2 * groups * shape.n_states
    return {
        "ssm_in.weight": (type, (inner + channels + heads, n_embd)),
        "ssm_conv1d.weight": ("F32", (channels, shape.taps)),
        "ssm_conv1d.bias": ("F32", (channels,)),
        "ssm_dt.bias": ("F32", (heads,)),
        "ssm_a": ("F32", (heads, 1)),
        "ssm_d": ("F32", (heads, 1)),
        "ssm_norm.weight": ("F32", (groups, inner // groups)),
        "ssm_out.weight": (type, (n_embd, inner)),
    }


def _short_convolution(shape: "Shape", type: str) -> Kinds:
    n_embd = shape.n_embd
    return {
        "shortconv.in_proj.weight": (type, (3 * n_embd, n_embd)),
        "shortconv.conv.weight": ("F32", (n_embd, shape.taps)),
        "shortconv.out_proj.weight": (type, (n_embd, n_embd)),
    }


def _unit_or_experts(shape: "Shape", type: str, *, gated: bool) -> Kinds:
    if not shape.n_experts:
        return _unit(shape, type, shape.n_ff, "", gated)
    stack = {
        f"{name[:-7]}_exps.weight": (kind, (shape.n_experts, *matrix))
        for name, (kind, matrix) in _unit(shape, type, shape.n_ff_expert, "", gated).items()
    }
    found: Kinds = {"ffn_gate_inp.weight": ("F32", (shape.n_experts, shape.n_embd)), **stack}
    if shape.architecture == "nemotron_h_moe":
        found["exp_probs_b.bias"] = ("F32", (shape.n_experts,))
    if shape.n_ff_shared:
        found |= _unit(shape, type, shape.n_ff_shared, "_shexp", gated)
        if shape.architecture in ("qwen3next", "qwen35moe"):
            found["ffn_gate_inp_shexp.weight"] = ("F32", (shape.n_embd,))
    return found


def _unit(shape: "Shape", type: str, width: int, suffix: str, gated: bool) -> Kinds:
    into = ("gate", "up") if gated else ("up",)
    return {
        **{f"ffn_{role}{suffix}.weight": (type, (width, shape.n_embd)) for role in into},
        f"ffn_down{suffix}.weight": (type, (shape.n_embd, width)),
    }
