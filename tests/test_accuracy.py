"""Logits against the reference of oracle.py: of the two real models, and of tiny ones in every
shape and type that the architectures allow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import tiny_models
from instruction_sets import ISAS
from measures import BFLOATS, FLIPS, ROUNDING, Bound, distances, kl_divergence, perplexity
from numpy.typing import NDArray
from tiny_models import TinyModel

import mmrt

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
def reference(request: pytest.FixtureRequest) -> Iterator[Reference]:
    """The oracle's logits for the whole golden passage: they take ten to twenty seconds."""
    path: Path = request.getfixturevalue(f"{request.param}_path")
    golden = GOLDEN[oracle.Model(path).architecture]
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
}


@pytest.mark.parametrize("type", [t for t in tiny_models.TYPES if tiny_models.elements_of(t) == 32])
@pytest.mark.parametrize("shape", BLOCK_SHAPES.values(), ids=BLOCK_SHAPES.keys())
def test_shapes_in_blocks_of_32(shape: dict[str, Any], type: str, isa: str, tmp_path: Path) -> None:
    assert_equal_but_for_flips(tiny_models.llama(type=type, **shape).write(tmp_path / "model.gguf"))


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


@pytest.mark.parametrize("name", ["another base", "linear scaling", "soft caps"])
def test_gemma3_fields(name: str, isa: str, tmp_path: Path) -> None:
    shape = {"n_layers": 7, "head_dim": 32}  # the sixth sees all keys: the fields are for it
    path = with_fields(gemma3(**shape), FIELDS[name]).write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, gemma3(**shape), tmp_path)


@pytest.mark.parametrize("window", [1, 5, 31, 32, 33, 64, 100, 1000])
def test_sliding_windows(window: int, isa: str, tmp_path: Path) -> None:
    model = gemma3(n_layers=6, window=window, n_heads=6, n_kv_heads=2)
    assert_equal_but_for_rounding(model.write(tmp_path / "model.gguf"))


def test_biases(isa: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    model = tiny_models.llama()
    for name, matrix in list(model.tensors.items()):
        if ".attn_" in name and len(matrix.data.shape) == 2:
            bias = tiny_models.floats(random, len(matrix.data), spread=0.5)
            model.tensors[name.replace(".weight", ".bias")] = bias
    path = model.write(tmp_path / "model.gguf")
    assert_equal_but_for_rounding(path)
    assert_matters(path, tiny_models.llama(), tmp_path)


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
