"""Logits against the reference of oracle.py: of the two real models, and of tiny ones in every
shape and type that the architectures allow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracle
import oracle_model
import pytest
import tiny_models
from instruction_sets import ISAS
from measures import BFLOATS, FLIPS, ROUNDING, Bound, distances, kl_divergence, perplexity
from numpy.typing import NDArray
from tiny_models import TinyModel

import mmrt

pytestmark = pytest.mark.slow

_DOCUMENT = Path(__file__).with_name("golden") / "logits.json"
GOLDEN = {golden["architecture"]: golden for golden in json.loads(_DOCUMENT.read_text())["models"]}
Logits = NDArray[np.float32]


def logits_of(path: Path, ids: list[int], **options: Any) -> Logits:
    with mmrt.Model(path, **options) as model:
        return model.logits(ids)


# ---- the real models ----


class Reference(NamedTuple):
    path: Path
    golden: dict[str, Any]
    logits: Logits


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def reference(
    request: pytest.FixtureRequest, smollm2_path: Path, gemma3_path: Path
) -> Iterator[Reference]:
    """The oracle's logits for the whole golden passage: they take ten to twenty seconds."""
    path = smollm2_path if request.param == "smollm2" else gemma3_path
    golden = GOLDEN[oracle_model.Model(path).architecture]
    assert len(golden["ids"]) >= 560
    yield Reference(path, golden, oracle.logits(path, golden["ids"]))


@pytest.mark.parametrize("isa", [name for name in ISAS if name != "ref"], indirect=True)
def test_real_models_lose_little_to_rounding(reference: Reference, isa: str) -> None:
    ids, peer = reference.golden["ids"], reference.golden["llama_cpp"]
    found = logits_of(reference.path, ids)
    divergence = kl_divergence(reference.logits, found).mean()
    expected, actual = (perplexity(rows, ids) for rows in (reference.logits, found))
    print(
        f"\n{reference.path.name}, {isa}, {len(ids)} positions: mean KL {divergence:.2e} "
        f"(llama.cpp {peer['kl_mean']:.2e}), perplexity {actual:.3f} (reference {expected:.3f}, "
        f"llama.cpp {peer['perplexity']:.3f})"
    )
    assert divergence <= 1.2 * peer["kl_mean"]
    assert abs(actual / expected - 1) <= 0.005


def test_a_coder_loses_no_more_than_llama_cpp(coder_path: Path) -> None:
    """On few positions, as the reference takes a minute."""
    golden = GOLDEN["qwen2"]
    ids, peer = golden["ids"], golden["llama_cpp"]
    reference, found = oracle.logits(coder_path, ids), logits_of(coder_path, ids)
    divergence = kl_divergence(reference, found).mean()
    print(f"\n{coder_path.name}: mean KL {divergence:.2e} (llama.cpp {peer['kl_mean']:.2e})")
    assert divergence <= min(peer["kl_mean"], 4e-3)
    assert abs(perplexity(found, ids) / perplexity(reference, ids) - 1) <= 0.005


@pytest.mark.parametrize(("kv_k", "kv_v"), [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0")])
def test_int8_keys_and_values_lose_little(reference: Reference, kv_k: str, kv_v: str) -> None:
    """Hardly more than other rounding does, which is a few times 1e-3."""
    ids = reference.golden["ids"]
    f16 = logits_of(reference.path, ids)
    int8 = logits_of(reference.path, ids, kv_k=kv_k, kv_v=kv_v)
    loss, before = (kl_divergence(reference.logits, found).mean() for found in (int8, f16))
    between = kl_divergence(f16, int8).mean()
    print(
        f"\n{reference.path.name}, keys {kv_k}, values {kv_v}: mean KL {loss:.2e} from float32, "
        f"where f16 has {before:.2e}; {between:.2e} from f16"
    )
    assert loss <= 1.5 * before
    assert between <= 1e-2


def test_oracle_is_the_one_that_the_goldens_were_made_with(reference: Reference) -> None:
    expected = reference.golden["reference"]["perplexity"]
    assert perplexity(reference.logits, reference.golden["ids"]) == pytest.approx(expected, 1e-5)


def test_ref_is_as_near_on_real_models(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On few positions, as it is slow: FLIPS bounds what rounding alone does."""
    monkeypatch.setenv("MMRT_ISA", "ref")
    few = 16
    FLIPS.assert_holds(
        reference.logits[:few], logits_of(reference.path, reference.golden["ids"][:few])
    )


# ---- tiny models ----

# Short texts: in some of them no activation is near enough to a boundary to flip, and then what is
# left is float32 rounding.
SHORT_TEXTS = np.random.default_rng(7).integers(0, 300, (10, 5)).tolist()
LONG_TEXT = np.random.default_rng(8).integers(0, 300, 140).tolist()
UNFLIPPED = 2e-5  # standard deviations; up to 4e-6 were seen, and flips are a thousand times that


def assert_equal_but_for_flips(path: Path) -> None:
    references = [oracle.logits(path, ids, rounding=True) for ids in SHORT_TEXTS]
    with mmrt.Model(path) as model:
        found = [model.logits(ids) for ids in SHORT_TEXTS]
    FLIPS.assert_holds(np.concatenate(references), np.concatenate(found))
    worst = [distances(a, b).max() for a, b in zip(references, found, strict=True)]
    assert min(worst) < UNFLIPPED, worst


def assert_equal_but_for_rounding(path: Path, bound: Bound = ROUNDING) -> None:
    bound.assert_holds(oracle.logits(path, LONG_TEXT, rounding=True), logits_of(path, LONG_TEXT))


def rounding_of(type: str, isa: str) -> Bound:
    return BFLOATS if (type, isa) == ("BF16", "avx512bf16") else ROUNDING


def gemma3(**shape: Any) -> TinyModel:
    """With an output of its own: a random embedding would predict nothing but its own token."""
    return tiny_models.gemma3(separate_output=True, **shape)


ARCHITECTURES = {"llama": tiny_models.llama, "gemma3": gemma3}


@pytest.mark.parametrize("type", tiny_models.TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_type(architecture: str, type: str, isa: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[architecture](type=type, n_embd=256, n_ff=256, head_dim=64)
    path = model.write(tmp_path / "model.gguf")
    if type in tiny_models.FLOATS:
        assert_equal_but_for_rounding(path, rounding_of(type, isa))
    else:
        assert_equal_but_for_flips(path)


@pytest.mark.parametrize("type", tiny_models.FLOATS)
def test_float_weights_are_close_to_exact(type: str, isa: str, tmp_path: Path) -> None:
    path = tiny_models.llama(type=type).write(tmp_path / "model.gguf")
    exact = oracle.logits(path, LONG_TEXT)  # keys and values too are float32 here
    allowed = max(1e-6, rounding_of(type, isa).mean_kl)
    assert kl_divergence(exact, logits_of(path, LONG_TEXT)).mean() < allowed


SHAPES: dict[str, dict[str, Any]] = {
    "one head": {"n_heads": 1, "n_kv_heads": 1},
    "every head has its own keys": {"n_heads": 5, "n_kv_heads": 5},
    "groups of 3, heads of 48": {"n_heads": 6, "n_kv_heads": 2, "head_dim": 48},
    "groups of 5, heads of 80": {"n_heads": 5, "n_kv_heads": 1, "head_dim": 80},
    "groups of 7, heads of 32": {"n_heads": 7, "n_kv_heads": 1, "head_dim": 32},
    "groups of 8": {"n_heads": 8, "n_kv_heads": 1},
    "heads of 128": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 128},
    "heads of 256": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 256},
    "heads of 100": {"head_dim": 100},
    "heads of 20": {"n_heads": 6, "n_kv_heads": 3, "head_dim": 20},
    "heads of 2": {"n_heads": 5, "n_kv_heads": 5, "head_dim": 2},
    "odd widths": {"n_embd": 52, "n_ff": 77, "n_vocab": 301},
    "one layer": {"n_layers": 1},
    "narrow": {"n_embd": 4, "n_ff": 1},
}


@pytest.mark.parametrize("type", ["F32", "F16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_shape(
    architecture: str, shape: dict[str, Any], type: str, isa: str, tmp_path: Path
) -> None:
    model = ARCHITECTURES[architecture](type=type, **shape)
    assert_equal_but_for_rounding(model.write(tmp_path / "model.gguf"))


BLOCK_SHAPES: dict[str, dict[str, Any]] = {
    "no multiple of 256": {"n_embd": 288, "n_ff": 352, "head_dim": 48, "n_vocab": 307},
    "less than 256": {"n_embd": 32, "n_ff": 96, "n_heads": 6, "n_kv_heads": 2},
    "heads that are no whole groups": {"n_heads": 4, "head_dim": 80, "n_kv_heads": 1},
    "heads of 100": {"n_heads": 8, "head_dim": 100, "n_kv_heads": 2},
}


@pytest.mark.parametrize("type", [t for t in tiny_models.TYPES if tiny_models.elements_of(t) == 32])
@pytest.mark.parametrize("shape", BLOCK_SHAPES.values(), ids=BLOCK_SHAPES.keys())
def test_shapes_in_blocks_of_32(shape: dict[str, Any], type: str, isa: str, tmp_path: Path) -> None:
    assert_equal_but_for_flips(tiny_models.llama(type=type, **shape).write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("head_dim", [17, 99])
def test_heads_of_odd_widths_turn_in_part(head_dim: int, isa: str, tmp_path: Path) -> None:
    model = tiny_models.llama(head_dim=head_dim)
    model.metadata["llama.rope.dimension_count"] = 16
    assert_equal_but_for_rounding(model.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_types_may_be_mixed(architecture: str, isa: str, tmp_path: Path) -> None:
    types = {"token_embd": "Q6_K", "attn_q": "Q4_K", "attn_k": "F16", "attn_v": "Q5_K"}
    types |= {"ffn_gate": "Q4_0", "ffn_up": "F32", "ffn_down": "Q3_K", "output": "Q8_0"}
    shape = {"n_embd": 256, "n_ff": 256, "type": "Q5_1", "types": types}
    model = ARCHITECTURES[architecture](**shape)
    assert_equal_but_for_flips(model.write(tmp_path / "model.gguf"))


# ---- what metadata and optional tensors ask for ----

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
FIELDS: dict[str, dict[str, Any]] = {
    "another base": {"rope.freq_base": 500000.0},
    "half a head turns": {"rope.dimension_count": 16},
    "linear scaling": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    "yarn": YARN,
    "yarn with a ramp of its own": {
        **YARN,
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_beta_slow": 0.25,
        "rope.scaling.attn_factor": 0.8,
    },
    "yarn that keeps its magnitude": {**YARN, "rope.scaling.yarn_log_multiplier": 1.0},
    "a factor without a type": {"rope.scaling.factor": 4.0},
    "a factor by its old name": {"rope.scale_linear": 4.0},
    "a magnitude without a type": {"rope.scaling.attn_factor": 1.2},
    "a scale of scores": {"attention.scale": 0.3},
    "a sliding window": {"attention.sliding_window": 9},
    "a sliding window in every second layer": {
        "attention.sliding_window": 9,
        "attention.sliding_window_pattern": 2,
    },
    "soft caps": {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0},
    "a large epsilon": {"attention.layer_norm_rms_epsilon": 0.1},
}


def with_fields(model: TinyModel, fields: dict[str, Any]) -> TinyModel:
    architecture = model.metadata["general.architecture"]
    model.metadata |= {f"{architecture}.{name}": value for name, value in fields.items()}
    return model


def assert_matters(changed: Path, model: TinyModel, tmp_path: Path) -> None:
    """What a test is about changes logits by far more than ROUNDING allows."""
    plain = logits_of(model.write(tmp_path / "plain.gguf"), LONG_TEXT)
    assert distances(plain, logits_of(changed, LONG_TEXT)).max() > 20 * ROUNDING.distance


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_llama_fields(fields: dict[str, Any], isa: str, tmp_path: Path) -> None:
    model = with_fields(tiny_models.llama(head_dim=32), fields)
    path = model.write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, tiny_models.llama(head_dim=32), tmp_path)


NEUTRAL = {
    "llama.vocab_size": 300,
    "llama.tensor_data_layout": "Meta AI original pth",
    "llama.attention.layer_norm_epsilon": 1e-6,
    "llama.attention.causal": True,
    "llama.attention.clamp_kqv": 0.0,
    "llama.attention.max_alibi_bias": 0.0,
    "llama.attention.key_length_swa": 16,
    "llama.use_parallel_residual": False,
    "llama.logit_scale": 1.0,
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.nextn_predict_layers": 0,
    "llama.pooling_type": 0,
    "llama.rope.scaling.type": "none",
    "llama.rope.scaling.factor": 8.0,
    "llama.rope.scaling.finetuned": True,
    "llama.rope.scaling.yarn_ext_factor": -1.0,
    "llama.rope.dimension_sections": [4, 4, 0, 0],
    "llama.vision.block_count": 27,
    "llama.attention.sliding_window": 1000,
    "llama.attention.head_count": [4, 4],
    "llama.attention.head_count_kv": [2, 2],
    "llama.feed_forward_length": [96.0, 96.0],
    "llama.context_length": 512.0,
}


def test_fields_that_change_nothing(tmp_path: Path) -> None:
    model = tiny_models.llama()
    plain = logits_of(model.write(tmp_path / "plain.gguf"), LONG_TEXT)
    for name, value in NEUTRAL.items():
        model.metadata[name] = value
    model.tensors["v.patch_embd.weight"] = tiny_models.floats(np.random.default_rng(), 5)
    model.tensors["nothing"] = tiny_models.blocks_of("F32", np.empty(0, np.float32))
    model.tensors["blk.0.attn_q.input_scale"] = tiny_models.floats(np.random.default_rng(), 1)
    assert np.array_equal(plain, logits_of(model.write(tmp_path / "model.gguf"), LONG_TEXT))


GEMMA3_FIELDS: dict[str, dict[str, Any]] = {
    **{name: FIELDS[name] for name in ("another base", "linear scaling", "soft caps")},
    **{name: FIELDS[name] for name in ("a magnitude without a type", "a scale of scores")},
    "every second layer sees all": {"attention.sliding_window_pattern": 2},
    "every layer sees all": {"attention.sliding_window_pattern": 1},
    "no layer sees all": {"attention.sliding_window_pattern": 0},
    "layers that are named": {
        "attention.sliding_window_pattern": [False, True, True] + [False] * 4
    },
    "another base in windows": {"rope.freq_base_swa": 500.0},
    "bases by other names": {"rope.local.freq_base": 500.0, "rope.global.freq_base": 5000.0},
    "half a head turns in windows": {"rope.dimension_count_swa": 16},
    "no window": {"attention.sliding_window": 0},
}


@pytest.mark.parametrize("name", GEMMA3_FIELDS)
def test_gemma3_fields(name: str, isa: str, tmp_path: Path) -> None:
    shape = {"n_layers": 7, "head_dim": 32}  # the sixth sees all keys, if nothing else is said
    model = with_fields(gemma3(**shape), GEMMA3_FIELDS[name])
    if "rope.global.freq_base" in GEMMA3_FIELDS[name]:
        del model.metadata["gemma3.rope.freq_base"]
    path = model.write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, gemma3(**shape), tmp_path)


@pytest.mark.parametrize("window", [1, 5, 31, 32, 33, 64, 100, 1000])
def test_sliding_windows(window: int, isa: str, tmp_path: Path) -> None:
    model = gemma3(n_layers=6, window=window, n_heads=6, n_kv_heads=2)
    assert_equal_but_for_rounding(model.write(tmp_path / "model.gguf"))


def test_without_a_sliding_window(isa: str, tmp_path: Path) -> None:
    """Then all layers of gemma3 are alike, and turn by the base of those that see all."""
    base = {"rope.freq_base": 500.0}
    path = with_fields(gemma3(window=None), base).write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, with_fields(gemma3(window=1000), base), tmp_path)


def test_the_largest_gemma3_scales_scores_by_its_stream(tmp_path: Path) -> None:
    shape = {"n_layers": 62, "n_embd": 32, "n_ff": 32, "n_heads": 1, "n_kv_heads": 1}
    model, many_layers = gemma3(**shape), Bound(mean_kl=2e-6, distance=1e-2)
    path = model.write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path, many_layers)
    model.metadata["gemma3.attention.scale"] = 0.25  # which is that of other sizes
    own = model.write(tmp_path / "own.gguf")
    assert_equal_but_for_rounding(own, many_layers)
    between = distances(logits_of(path, LONG_TEXT), logits_of(own, LONG_TEXT))
    assert between.max() > 20 * many_layers.distance


def matrices_of(model: TinyModel) -> list[tuple[str, int]]:
    """What is multiplied with, by name without its end, and the rows of each."""
    return [
        (name.removesuffix(".weight"), len(blocks.data))
        for name, blocks in model.tensors.items()
        if len(blocks.data.shape) == 2 and name != "token_embd.weight"
    ]


@pytest.mark.parametrize("fused", [False, True], ids=["three", "fused"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_biases(architecture: str, fused: bool, isa: str, tmp_path: Path) -> None:
    """Of all matrices, alone or each beside a scale."""
    random = np.random.default_rng(3)

    def plain() -> TinyModel:
        model = ARCHITECTURES[architecture](n_ff=200)
        return tiny_models.fuse_qkv(model) if fused else model

    model = plain()
    for name, rows in [*matrices_of(model), ("output", 300)]:
        model.tensors[f"{name}.bias"] = tiny_models.floats(random, rows, spread=0.5)
    path = model.write(tmp_path / "biases.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, plain(), tmp_path)
    for name, _ in [*matrices_of(model), ("output", 300)]:
        model.tensors[f"{name}.scale"] = tiny_models.floats(random, 1, mean=1.5)
    path = model.write(tmp_path / "scales.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, plain(), tmp_path)


@pytest.mark.parametrize("type", ["NVFP4", "Q4_K"])
def test_scales_of_quantised_matrices(type: str, isa: str, tmp_path: Path) -> None:
    shape = {"n_embd": 256, "n_ff": 256, "head_dim": 64}
    model = tiny_models.llama(type=type, separate_output=True, **shape)
    for name, _ in matrices_of(model):
        model.tensors[f"{name}.scale"] = tiny_models.blocks_of("F32", np.array([0.7], np.float32))
    assert_equal_but_for_flips(model.write(tmp_path / "model.gguf"))


def test_one_matrix_for_queries_keys_and_values(tmp_path: Path) -> None:
    """Equal bits, of float and quantised types."""
    for type in ("F32", "Q4_0"):
        model = tiny_models.llama(type=type)
        expected = logits_of(model.write(tmp_path / "three.gguf"), LONG_TEXT)
        path = tiny_models.fuse_qkv(model).write(tmp_path / "fused.gguf")
        assert np.array_equal(expected, logits_of(path, LONG_TEXT))


def test_layers_of_different_widths(isa: str, tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=3, n_ff=[96, 40, 200]).write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)


def test_own_divisors_of_each_layer(isa: str, tmp_path: Path) -> None:
    model = tiny_models.llama(n_layers=3)
    for name, first in (("rope_freqs", 1.0), ("blk.1.rope_freqs", 5.0)):
        divisors = np.array([first, 1, 1, 1.5, 2, 4, 8, 8], np.float32)
        model.tensors[f"{name}.weight"] = tiny_models.blocks_of("F32", divisors)
    path = model.write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    del model.tensors["blk.1.rope_freqs.weight"]
    assert_matters(path, model, tmp_path)


def test_own_divisors_of_rotations(isa: str, tmp_path: Path) -> None:
    model = tiny_models.llama()
    model.tensors["rope_freqs.weight"] = tiny_models.blocks_of(
        "F32", np.array([1, 1, 1, 1.5, 2, 4, 8, 8], np.float32)
    )
    path = model.write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, tiny_models.llama(), tmp_path)


def test_output_of_its_own(isa: str, tmp_path: Path) -> None:
    path = tiny_models.llama(separate_output=True).write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, tiny_models.llama(), tmp_path)
