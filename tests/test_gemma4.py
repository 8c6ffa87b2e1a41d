"""Gemma 4: heads, windows and rotations by layer; values that are normed, or keys as they come."""

from pathlib import Path

import numpy as np
import oracle
import pytest
import tiny_gemma4
from measures import FLIPS, Bound
from tiny_architectures import tiny

import mmrt
from mmrt.core.program import Part
from mmrt.core.state import PAGE_TOKENS, Cache
from mmrt.errors import FormatError

IDS = np.random.default_rng(8).integers(0, 300, 70).tolist()
ROUNDING = Bound(mean_kl=2e-6, distance=5e-3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("gemma4", True).write(tmp_path_factory.mktemp("gemma4") / "model.gguf")


def test_pages_are_as_wide_as_each_layer_needs(path: Path) -> None:
    """Three layers with a window have 2 heads of 32, the other two 1 of 64."""
    with mmrt.Model(path) as model:
        assert model.store.page_bytes == PAGE_TOKENS * 2 * 2 * (3 * 2 * 32 + 2 * 64)


@pytest.mark.parametrize(("kv_k", "kv_v"), [("q8_0", "q8_0"), ("q8_0", "f16"), ("f16", "q8_0")])
def test_int8(kv_k: str, kv_v: str, path: Path) -> None:
    expected = oracle.logits(path, IDS)
    with mmrt.Model(path, kv_k=kv_k, kv_v=kv_v) as model, model.sequence() as sequence:
        FLIPS.assert_holds(expected, model.logits(IDS))
        FLIPS.assert_holds(expected, np.stack([sequence.extend([token]) for token in IDS]))


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


def test_heads_that_are_no_whole_groups(tmp_path: Path) -> None:
    """They have room in buffers, of which values that are keys are a part too."""
    path = tiny("gemma4", True, head_dim=20).write(tmp_path / "model.gguf")
    with mmrt.Model(path) as model:
        ROUNDING.assert_holds(oracle.logits(path, IDS, rounding=True), model.logits(IDS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention.key_length", 32),
        ("attention.value_length", 32),
        ("attention.key_length_swa", 64),
        ("attention.value_length_swa", 64),
        ("attention.head_count_kv", [2, 2, 2, 2, 1]),
        ("attention.head_count_kv", [2, 2, 1, 2]),
        ("attention.head_count_kv", [4, 2, 1, 2, 1]),
        ("attention.head_count", 3),
        ("attention.sliding_window", 0),
        ("attention.sliding_window_pattern", [True] * 5),
        ("attention.sliding_window_pattern", 3),
        ("rope.dimension_count", 66),
        ("rope.dimension_count", 32),
        ("rope.dimension_count_swa", 34),
    ],
)
def test_widths_must_fit(name: str, value: object, tmp_path: Path) -> None:
    model = tiny("gemma4", True)
    tiny_gemma4.with_fields(model, **{name: value})
    with pytest.raises(FormatError, match=r"model.gguf: (tensor |gemma4\.|layer )") as refused:
        mmrt.Model(model.write(tmp_path / "model.gguf"))
    assert "\n" not in str(refused.value)
