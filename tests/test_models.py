"""Files that are no sound models: each is refused by one exception of ours that names the file, the
field or tensor, and what was found; on the command line by one line."""

import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from command import call, start
from instruction_sets import ISAS
from tiny_models import FLOATS, TYPES, Blocks, TinyModel

import mmrt
from bench.blocks import HALVES
from mmrt.errors import FormatError, MmrtError, UnsupportedError

ARCHITECTURES: dict[str, Callable[..., TinyModel]] = {
    "llama": tiny_models.llama,
    "gemma3": tiny_models.gemma3,
    "qwen3moe": tiny_models.qwen3moe,
}
MISSING = object()


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> TinyModel:
    """A sound model, to be spoilt."""
    return ARCHITECTURES[request.param](separate_output=True)


def opened(path: Path) -> None:
    """Opens the model and has it write a little, if it can be opened."""
    with mmrt.Model(path) as model:
        model.generate([5, 6], max_tokens=2)
        model.generate("abc", max_tokens=2)


def assert_refused(path: Path, kind: type[MmrtError], *words: str) -> None:
    with pytest.raises(kind) as refused:
        opened(path)
    message = str(refused.value)
    assert path.name in message and "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message
    assert str(path) not in Path("/proc/self/maps").read_text(), "still mapped"


def test_sound_models_are_not_refused(model: TinyModel, tmp_path: Path) -> None:
    opened(model.write(tmp_path / "sound.gguf"))


# ---- fields ----

HUGE = 2**63
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 1e300, "1", True, [1.0])
COUNTS = (0, -1, HUGE, 2**31, 1.5, "1", True, [1], [1.5, 1.5])

# A field, and what it cannot be.
FIELDS: list[tuple[str, tuple[Any, ...]]] = [
    ("context_length", (MISSING, *COUNTS)),
    ("block_count", (MISSING, 4097, 2**31 - 1, *COUNTS)),
    ("embedding_length", (MISSING, *COUNTS)),
    ("feed_forward_length", (MISSING, *COUNTS)),
    ("attention.head_count", (MISSING, *COUNTS, 3, 2**30)),
    ("attention.head_count_kv", (*COUNTS, 3, 8)),
    ("attention.key_length", (*COUNTS, 2**30)),
    ("attention.value_length", (*COUNTS, 32)),
    ("attention.layer_norm_rms_epsilon", (MISSING, 0.0, *NUMBERS)),
    ("attention.scale", NUMBERS),
    ("attn_logit_softcapping", NUMBERS),
    ("final_logit_softcapping", NUMBERS),
    ("rope.dimension_count", (*COUNTS, 15, 18)),
    ("rope.freq_base", (0.0, 1.0, *NUMBERS)),
    ("rope.scaling.type", ("", "longrope", 3)),
    ("rope.scaling.factor", NUMBERS),
    ("rope.scaling.original_context_length", COUNTS),
    ("rope.scaling.yarn_beta_fast", (0.0, *NUMBERS)),
    ("rope.scaling.attn_factor", (0.0, *NUMBERS)),
    ("rope.scaling.yarn_log_multiplier", NUMBERS),
    ("attention.sliding_window", (-1, HUGE, 1.5, "1", [1])),
    ("attention.sliding_window_pattern", (-1, HUGE, "1", True, [True], [1, 2], [1.0, 0.0])),
    ("attention.causal", (2, "1", [True])),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in FIELDS for value in values],
    ids=lambda value: "missing" if value is MISSING else str(value)[:20],
)
def test_absurd_fields(model: TinyModel, field: str, value: Any, tmp_path: Path) -> None:
    name = f"{model.metadata['general.architecture']}.{field}"
    if value is MISSING:
        del model.metadata[name]
    else:
        model.metadata[name] = value
    path = model.write(tmp_path / "field.gguf")
    assert_refused(path, UnsupportedError if value in ("", "longrope") else FormatError)
    call("run", path, "abc", "-n", 2).assert_refused(1, path.name)


@pytest.mark.parametrize("value", [MISSING, "", "perceptron", 3, "llama\n", "../gguf", "rope"])
def test_architectures_that_are_not_known(model: TinyModel, value: Any, tmp_path: Path) -> None:
    del model.metadata["general.architecture"]
    if value is not MISSING:
        model.metadata["general.architecture"] = value
    kind = UnsupportedError if isinstance(value, str) else FormatError
    assert_refused(model.write(tmp_path / "other.gguf"), kind, "general.architecture")


# Fields that would change the result, and what is said of them.
UNAPPLIED: list[tuple[str, Any]] = [
    ("attention.causal", False),
    ("attention.causal", 0),
    ("attention.head_count", [4, 2]),
    ("attention.head_count_kv", [2, 4]),
    ("attention.clamp_kqv", 8.0),
    ("attention.max_alibi_bias", 8.0),
    ("attention.temperature_scale", 0.1),
    ("attention.shared_kv_layers", 1),
    ("attention.something_new", 3),
    ("attention.something_new", "old"),
    ("rope.something_new", [0, 1]),
    ("rope.scaling.type", "longrope"),
    ("rope.scaling.yarn_ext_factor", 0.5),
    ("use_parallel_residual", True),
    ("logit_scale", 0.5),
    ("residual_scale", 0.22),
    ("embedding_scale", 12.0),
    ("line\n\x1b[2J", 1),
]


@pytest.mark.parametrize(("field", "value"), UNAPPLIED, ids=str)
def test_fields_that_are_not_applied_are_refused(
    model: TinyModel, field: str, value: Any, tmp_path: Path
) -> None:
    name = f"{model.metadata['general.architecture']}.{field}"
    model.metadata[name] = value
    shown = name.replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert_refused(model.write(tmp_path / "field.gguf"), UnsupportedError, shown)


def test_widths_of_keys_are_those_of_values_and_windows(model: TinyModel, tmp_path: Path) -> None:
    architecture = model.metadata["general.architecture"]
    for field in ("value_length", "key_length_swa", "value_length_swa"):
        name = f"{architecture}.attention.{field}"
        before = model.metadata.get(name, 16)
        model.metadata[name] = 32
        path = model.write(tmp_path / "width.gguf")
        assert_refused(path, FormatError, f"{name}: differs from the key length, 16")
        model.metadata[name] = before


def test_the_width_of_heads_is_not_believed(tmp_path: Path) -> None:
    """No memory is taken for it before the matrices have been found to have such rows."""
    model = tiny_models.llama()
    for field in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        model.metadata[f"llama.{field}"] = 40_000_000
    path = model.write(tmp_path / "wide.gguf")
    tracemalloc.start()
    assert_refused(path, FormatError, "blk.0.attn_q.weight: shape (64, 64)")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


# ---- tensors ----


def test_every_tensor_is_needed(model: TinyModel, tmp_path: Path) -> None:
    for name in list(model.tensors):
        blocks = model.tensors.pop(name)
        path = model.write(tmp_path / "missing.gguf")
        if name == "output.weight":
            opened(path)  # the embedding serves
        else:
            assert_refused(path, FormatError, f"tensor {name} is missing")
        model.tensors[name] = blocks


UNUSED = [
    *("output_norm.bias", "token_embd.scale", "token_embd.bias", "position_embd.weight"),
    *("blk.1.attn_q_norm.weight", "blk.1.attn_k_norm.weight", "blk.1.attn_sinks.weight"),
    *("blk.1.attn_norm.bias", "blk.1.ffn_norm.bias", "blk.1.post_attention_norm.weight"),
    *("blk.1.ffn_gate_inp.weight", "blk.1.ffn_gate_exps.weight", "blk.1.attn_qkv.bias"),
    *("blk.1.nextn.eh_proj.weight", "blk.2.attn_norm.weight", "cls.output.weight"),
]


@pytest.mark.parametrize("name", UNUSED)
def test_tensors_that_nobody_uses_are_refused(name: str, tmp_path: Path) -> None:
    model = tiny_models.llama()
    model.tensors[name] = ones(8)
    path = model.write(tmp_path / "more.gguf")
    assert_refused(path, UnsupportedError, f"tensor {name}: mmrt does not know")
    call("run", path, "abc", "-n", 2).assert_refused(1, path.name, name)


def test_matrices_beside_the_one_for_all_are_refused(tmp_path: Path) -> None:
    model = tiny_models.llama()
    keys = model.tensors["blk.0.attn_k.weight"]
    tiny_models.fuse_qkv(model).tensors["blk.0.attn_k.weight"] = keys
    path = model.write(tmp_path / "both.gguf")
    assert_refused(path, UnsupportedError, "tensor blk.0.attn_k.weight: mmrt does not know")


def test_scales_and_biases_must_fit(tmp_path: Path) -> None:
    wrong = {
        "blk.1.ffn_up.scale": [ones(2), ones(96)],
        "output.scale": [blocks_of([math.nan]), blocks_of([math.inf])],
        "blk.1.ffn_gate.bias": [ones(95), ones(1)],
        "blk.1.attn_output.bias": [ones(63)],
        "output.bias": [ones(299), ones(64)],
        "blk.0.attn_q.bias": [ones(32)],
    }
    for name, values in wrong.items():
        for blocks in values:
            model = tiny_models.llama()
            model.tensors[name] = blocks
            path = model.write(tmp_path / "beside.gguf")
            assert_refused(path, FormatError, f"tensor {name}")


def test_rows_of_queries_are_not_taken_for_keys(tmp_path: Path) -> None:
    """Where all rows together are as many as they should be."""
    model = tiny_models.llama()
    model.tensors |= {"blk.0.attn_q.weight": ones(48, 64), "blk.0.attn_k.weight": ones(48, 64)}
    path = model.write(tmp_path / "rows.gguf")
    assert_refused(path, FormatError, "blk.0.attn_q.weight: shape (48, 64) where (64, 64)")


def blocks_of(values: list[float]) -> Blocks:
    return tiny_models.blocks_of("F32", np.array(values, np.float32))


def ones(*shape: int) -> Blocks:
    return tiny_models.blocks_of("F32", np.ones(shape, np.float32))


def test_every_shape_must_fit(model: TinyModel, tmp_path: Path) -> None:
    for name, blocks in list(model.tensors.items()):
        if name.startswith("blk.0."):
            continue  # as blk.1
        *rows, cols = blocks.data.view("<f4").shape
        shapes: list[tuple[int, ...]] = [(*rows, cols + 1), (2, *rows, cols), (1,)]
        shapes += [(rows[0] + 1, cols), (rows[0] * cols,)] if rows else [(cols - 1,)]
        for shape in shapes:
            model.tensors[name] = ones(*shape)
            kind = UnsupportedError if len(shape) > 3 else FormatError
            assert_refused(model.write(tmp_path / "shape.gguf"), kind, "tensor ")
        model.tensors[name] = blocks


@pytest.mark.parametrize(
    ("shape", "found"),
    [((3,), "(3,)"), ((63,), "(63,)"), ((2, 32), "(2, 32)"), ((64, 1), "(64, 1)")],
)
def test_a_bias_that_does_not_fit_is_named(
    shape: tuple[int, ...], found: str, tmp_path: Path
) -> None:
    model = tiny_models.llama(n_layers=1)
    model.tensors["blk.0.attn_q.bias"] = ones(*shape)
    complaint = f"tensor blk.0.attn_q.bias: shape {found} where (64,) is expected"
    assert_refused(model.write(tmp_path / "m.gguf"), FormatError, complaint)


@pytest.mark.parametrize("dims", [(64, 0), (0, 300)])
@pytest.mark.parametrize(
    "name", ["output", "blk.0.attn_q", "blk.0.attn_qkv", "rope_freqs", "blk.0.rope_freqs"]
)
def test_tensors_without_elements_are_not_taken_as_missing(
    name: str, dims: tuple[int, int], tmp_path: Path
) -> None:
    model = tiny_models.llama(n_layers=1, separate_output=True)
    model.tensors[f"{name}.weight"] = Blocks("F32", np.zeros((0, 64 * 4), np.uint8))
    path = model.write(tmp_path / "m.gguf")
    header = bytearray(path.read_bytes())
    field = f"{name}.weight".encode()
    field = struct.pack("<Q", len(field)) + field + struct.pack("<I", 2)
    at = header.index(field) + len(field)
    header[at : at + 16] = struct.pack("<2Q", *dims)
    path.write_bytes(header)
    with pytest.raises(FormatError, match=f"tensor {name}.weight"):
        mmrt.Model(path)


@pytest.mark.parametrize("type", ["I8", "I16", "I32", "I64", "F64"])
def test_integers_are_no_weights(model: TinyModel, type: str, tmp_path: Path) -> None:
    for name, blocks in list(model.tensors.items()):
        values = tiny_models.dequantize(blocks)
        model.tensors[name] = tiny_models.blocks_of(type, values)
        path = model.write(tmp_path / "type.gguf")
        assert_refused(path, UnsupportedError, f"tensor {name}", type)
        model.tensors[name] = blocks


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0"])
def test_norms_are_f32(model: TinyModel, type: str, tmp_path: Path) -> None:
    for name, blocks in list(model.tensors.items()):
        if "norm" in name:
            values = tiny_models.dequantize(blocks)
            if type == "Q8_0":
                values = values[: len(values) // 32 * 32]
                if not len(values):
                    continue
            model.tensors[name] = tiny_models.blocks_of(type, values)
            path = model.write(tmp_path / "norm.gguf")
            assert_refused(path, UnsupportedError, f"tensor {name}", type, "F32")
            model.tensors[name] = blocks


@pytest.mark.parametrize("divisors", [[0.0] * 8, [-1.0] * 8, [math.nan] * 8, [math.inf] * 8])
def test_divisors_of_rotations_are_positive(divisors: list[float], tmp_path: Path) -> None:
    model = tiny_models.llama()
    model.tensors["rope_freqs.weight"] = tiny_models.blocks_of(
        "F32", np.array(divisors, np.float32)
    )
    assert_refused(model.write(tmp_path / "rope.gguf"), FormatError, "tensor rope_freqs.weight")
    for shape in ((7,), (9,), (2, 4)):
        model.tensors["rope_freqs.weight"] = ones(*shape)
        assert_refused(model.write(tmp_path / "rope.gguf"), FormatError, "rope_freqs.weight")


# ---- vocabularies ----


@pytest.mark.parametrize("size", [299, 301])
def test_a_vocabulary_that_disagrees_with_the_embedding(
    model: TinyModel, size: int, tmp_path: Path
) -> None:
    for name in ("tokens", "token_type"):
        values = model.metadata[f"tokenizer.ggml.{name}"]
        model.metadata[f"tokenizer.ggml.{name}"] = [*values, values[-1]][:size]
    model.metadata["tokenizer.ggml.eos_token_id"] = 0
    path = model.write(tmp_path / "vocabulary.gguf")
    with mmrt.Model(path) as found:
        assert found.logits([5, 6]).shape == (2, 300)  # no text is needed
    assert_refused(path, FormatError, "tokenizer.ggml.tokens", str(size), "300")
    call("run", path, "abc").assert_refused(1, path.name, "tokenizer.ggml.tokens")


@pytest.mark.parametrize("name", ["model", "tokens", "merges"])
def test_a_vocabulary_that_is_not_there(model: TinyModel, name: str, tmp_path: Path) -> None:
    del model.metadata[f"tokenizer.ggml.{name}"]
    path = model.write(tmp_path / "vocabulary.gguf")
    with mmrt.Model(path) as found:
        assert found.logits([5, 6]).shape == (2, 300)
    assert_refused(path, FormatError, f"tokenizer.ggml.{name}: missing")


# ---- numbers that are none ----


EARLY = 5000  # elements, so that of the embedding the first 20 rows have the number


def spoil(blocks: Blocks, value: float, random: np.random.Generator) -> Blocks:
    """With one number, or one block's scale, that is not finite."""
    data = blocks.data.copy()
    if blocks.type == "F32":
        flat = data.reshape(-1).view("<f4")
        flat[random.integers(min(len(flat), EARLY))] = value
    elif blocks.type == "BF16":
        words = data.reshape(-1).view("<u2")
        words[random.integers(EARLY)] = np.float32(value).view(np.uint32) >> 16
    else:
        elements = tiny_models.elements_of(blocks.type)
        each = data.reshape(tiny_models.dequantize(blocks).size // elements, -1)
        at = HALVES[blocks.type].scale if blocks.type in HALVES else 0
        each[random.integers(EARLY // elements), at : at + 2] = np.array([value], np.float16).view(
            np.uint8
        )
    return blocks._replace(data=data)


SPOILT = [*FLOATS, *(type for type in TYPES if type in HALVES)]
CHEAP = ["F32", "Q4_1"]  # for `ref`, which does the same for all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type", "isa"),
    [(type, isa) for isa in ISAS for type in (CHEAP if isa == "ref" else SPOILT)],
    indirect=["isa"],
)
def test_weights_that_are_not_finite_are_named(
    model: TinyModel, type: str, isa: str, tmp_path: Path
) -> None:
    """Wherever they are, and in prompts as in steps of one token."""
    architecture = ARCHITECTURES[model.metadata["general.architecture"]]
    shape: dict[str, Any] = {"n_embd": 256, "n_ff": 256, "head_dim": 64, "n_layers": 1}
    if architecture is tiny_models.qwen3moe:  # every expert has a part in every token
        shape["experts"] = {"type": type, "width": 256, "count": 2, "used": 2}
    model = architecture(type=type, separate_output=True, **shape)
    random = np.random.default_rng(5)
    for i, (name, blocks) in enumerate(model.tensors.items()):
        value = (math.nan, math.inf, -math.inf)[i % 3]
        spoilt = TinyModel(model.metadata, {**model.tensors, name: spoil(blocks, value, random)})
        path = spoilt.write(tmp_path / "nan.gguf")
        ids = list(range(20)) if name == "token_embd.weight" else [7, 8, 9]
        with mmrt.Model(path) as found:
            for use in (found.logits, lambda ids: one_by_one(found, ids)):
                with pytest.raises(FormatError, match=r"nan\.gguf: tensor '(.*)' holds") as refused:
                    use(ids)
                assert f"tensor {name!r} holds NaN or infinity" in str(refused.value)


def one_by_one(model: mmrt.Model, ids: list[int]) -> None:
    with model.sequence() as sequence:
        for token in ids:
            sequence.extend([token])


def test_generation_says_so_too(model: TinyModel, tmp_path: Path) -> None:
    name = "blk.1.attn_output.weight"
    model.tensors[name] = spoil(model.tensors[name], math.nan, np.random.default_rng(1))
    path = model.write(tmp_path / "nan.gguf")
    assert_refused(path, FormatError, f"tensor {name!r} holds NaN or infinity")
    call("run", path, "abc").assert_refused(1, path.name, name)


def test_finite_weights_may_overflow(model: TinyModel, tmp_path: Path) -> None:
    for name in ("blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        data = model.tensors[name].data
        large = tiny_models.blocks_of("F32", data.view("<f4") * np.float32(1e37))
        model.tensors[name] = large
    path = model.write(tmp_path / "overflow.gguf")
    assert_refused(path, FormatError, "a logit or a hidden row is NaN or infinite")


# ---- the command line ----


def test_refusals_of_every_command(tmp_path: Path) -> None:
    """In a process of its own: no traceback, and nothing printed on the way out."""
    model = tiny_models.llama()
    model.tensors["blk.1.ffn_up.weight"] = ones(5, 64)
    path = model.write(tmp_path / "bad.gguf")
    for command in ("run -p x -m", "chat -m", "bench -m"):
        process = start(*command.split(), path, stdin=-3, stdout=-1, stderr=-1)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (1, "", 1), err
        assert "bad.gguf: tensor blk.1.ffn_up.weight: shape (5, 64) where (96, 64)" in err
