"""Latent attention: one row a token for all heads, of which values are a part."""

from pathlib import Path

import numpy as np
import oracle
import pytest
import tiny_models
from measures import FLIPS
from tiny_architectures import tiny

import mmrt
from mmrt.core.program import Part
from mmrt.core.state import PAGE_TOKENS, Cache, KeyValues, StateStore
from mmrt.errors import FormatError, UnsupportedError

IDS = np.random.default_rng(8).integers(0, 300, 70).tolist()
VALUES, ROW = 64, 80  # of the rich model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("deepseek2", True).write(tmp_path_factory.mktemp("latent") / "model.gguf")


@pytest.mark.parametrize(("kv", "of_element"), [("f16", 2.0), ("q8_0", 1 + 4 / 32)])
def test_pages_hold_the_row_alone(kv: str, of_element: float, path: Path) -> None:
    """Values, and each head's keys, take nothing."""
    room = ROW if kv == "f16" else 96  # whole groups of 32
    with mmrt.Model(path, kv_k=kv, kv_v=kv) as model:
        n_layers = len(model.store.layers)
        assert model.store.page_bytes == n_layers * PAGE_TOKENS * room * of_element


@pytest.mark.parametrize(("kv_k", "kv_v"), [("q8_0", "q8_0"), ("q8_0", "f16"), ("f16", "q8_0")])
def test_int8(kv_k: str, kv_v: str, path: Path) -> None:
    """The type of keys is that of values."""
    expected = oracle.logits(path, IDS)
    with mmrt.Model(path, kv_k=kv_k, kv_v=kv_v) as model, model.sequence() as sequence:
        FLIPS.assert_holds(expected, model.logits(IDS))
        FLIPS.assert_holds(expected, np.stack([sequence.extend([token]) for token in IDS]))
        found = model.logits(IDS)
    with mmrt.Model(path, kv_k=kv_k, kv_v=kv_k) as model:
        assert np.array_equal(found, model.logits(IDS))


def test_forks_and_rewinds_are_as_fresh_texts(path: Path) -> None:
    with mmrt.Model(path, exact=True) as model, model.sequence() as sequence:
        fresh = model.logits(IDS)
        sequence.extend(IDS[:45])
        with sequence.fork() as fork:
            assert np.array_equal(fork.extend(IDS[45:60]), fresh[59])
            assert np.array_equal(sequence.extend(IDS[45:50]), fresh[49])
            fork.truncate(33)
            assert np.array_equal(fork.extend(IDS[33:]), fresh[-1])
        sequence.truncate(7)
        assert np.array_equal(sequence.extend(IDS[7:64]), fresh[63])


def test_several_texts_in_a_step(path: Path) -> None:
    texts = [IDS[:3], IDS[10:43], IDS[20:21], IDS[30:70]]
    with mmrt.Model(path, exact=True) as model:
        alone = [model.logits(text)[-1] for text in texts]
        parts = [Part(Cache(model.store), np.array(text, np.int32), 1) for text in texts]
        together = np.empty((len(texts), 300), np.float32)
        model.program.run(parts, together)
        assert np.array_equal(np.stack(alone), together)


def test_sections_of_long_texts(tmp_path: Path) -> None:
    """A single token's keys are cut into sections."""
    ids = np.random.default_rng(9).integers(0, 300, 700).tolist()
    model = tiny("deepseek2", True, n_layers=2, context=700)
    path = model.write(tmp_path / "model.gguf")
    expected = oracle.logits(path, ids, rounding=True)[-5:]
    with mmrt.Model(path, exact=True) as opened, opened.sequence() as sequence:
        sequence.extend(ids[:-5])
        alone = np.stack([sequence.extend([token]) for token in ids[-5:]])
        assert np.array_equal(opened.logits(ids)[-5:], alone)
        FLIPS.assert_holds(expected, alone)


def test_without_stretching(tmp_path: Path) -> None:
    """YaRN's magnitude is in scores and rotations, or in neither."""
    seen = set()
    for fields in (
        {},
        {"rope.scaling.yarn_log_multiplier": 0.07},
        {"rope.scaling.yarn_log_multiplier": 0.0},
        {"rope.scaling.attn_factor": 1.2},
        {"rope.scaling.type": "none"},
    ):
        model = tiny("deepseek2", True)
        tiny_models.with_fields(model, **fields)
        path = model.write(tmp_path / "model.gguf")
        expected = oracle.logits(path, IDS, rounding=True)
        with mmrt.Model(path) as opened:
            found = opened.logits(IDS)
        FLIPS.assert_holds(expected, found)
        assert np.abs(expected - found)[:9].max() < 0.01
        seen.add(found.tobytes())
    assert len(seen) == 5


def test_files_of_before_are_refused(tmp_path: Path) -> None:
    model = tiny("deepseek2", True)
    del model.metadata["deepseek2.attention.key_length_mla"]
    with pytest.raises(UnsupportedError, match=r"attention\.key_length_mla: missing: .* anew"):
        mmrt.Model(model.write(tmp_path / "old.gguf"))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("attention.kv_lora_rank", 48, UnsupportedError),
        ("attention.kv_lora_rank", 96, FormatError),
        ("attention.head_count_kv", 2, FormatError),
        ("attention.value_length", 32, FormatError),
        ("rope.dimension_count", 48, FormatError),
    ],
)
def test_widths_must_fit(name: str, value: int, kind: type[Exception], tmp_path: Path) -> None:
    model = tiny("deepseek2", True)
    tiny_models.with_fields(model, **{name: value})
    with pytest.raises(kind, match=r"deepseek2\."):
        mmrt.Model(model.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("values", [33, 96])
def test_a_store_refuses_values_that_do_not_fit_their_keys(values: int) -> None:
    with pytest.raises(UnsupportedError, match=r"layer 0: values of \d+ elements within keys"):
        StateStore([KeyValues(1, 80, 0, values)])


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "IQ4_NL"])
def test_a_single_head(type: str, tmp_path: Path) -> None:
    made = tiny("deepseek2", True, type=type, n_heads=1, n_embd=256, n_ff=256)
    path = made.write(tmp_path / "model.gguf")
    ids = [*IDS, *IDS[:30]]
    expected = oracle.logits(path, ids, rounding=True)
    with mmrt.Model(path) as model, model.sequence() as sequence:
        FLIPS.assert_holds(expected[-1:], sequence.extend(ids)[None])


@pytest.mark.parametrize("width", [16, 48])
def test_matrices_of_another_width_are_refused(width: int, tmp_path: Path) -> None:
    model = tiny("deepseek2", True, type="F32")
    right = model.tensors["blk.1.attn_k_b.weight"].data
    wrong = np.resize(right, (*right.shape[:-1], 4 * width))
    model.tensors["blk.1.attn_k_b.weight"] = tiny_models.Blocks("F32", wrong)
    with pytest.raises(
        FormatError, match=rf"blk\.1\.attn_k_b\.weight: rows of {width}, expected 32"
    ):
        mmrt.Model(model.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", ["attn_k_b", "attn_v_b"])
def test_biases_are_not_passed_over(name: str, tmp_path: Path) -> None:
    model = tiny("deepseek2", True, type="F32")
    heads, rows, _ = model.tensors[f"blk.1.{name}.weight"].data.shape
    bias = tiny_models.floats(np.random.default_rng(1), heads * rows)
    model.tensors[f"blk.1.{name}.bias"] = bias
    with pytest.raises(FormatError, match=rf"blk\.1\.{name}\.bias: no bias is known"):
        mmrt.Model(model.write(tmp_path / "model.gguf"))
