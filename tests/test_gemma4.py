"""Gemma 4: heads, windows and rotations by layer; values that are normed, or keys as they come;
layers that share keys and values, and have embeddings of their own; experts beside units."""

from pathlib import Path

import numpy as np
import oracle
import pytest
import tiny_gemma4
import tiny_models
from machine import needs_eviction
from measures import FLIPS, Bound
from tiny_gemma4 import KINDS, tiny

import mmrt
from mmrt.core.program import Part
from mmrt.core.state import PAGE_TOKENS, Cache
from mmrt.errors import FormatError

IDS = np.random.default_rng(8).integers(0, 300, 70).tolist()
ROUNDING = Bound(mean_kl=2e-6, distance=5e-3)


@pytest.fixture(scope="module", params=list(KINDS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    return tiny(kind, True).write(tmp_path_factory.mktemp("gemma4") / f"{kind}.gguf")


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "bare"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference(kind: str, rich: bool, tmp_path: Path) -> None:
    path = tiny(kind, rich).write(tmp_path / "model.gguf")
    expected = oracle.logits(path, IDS, rounding=True)
    with mmrt.Model(path) as model, model.sequence() as sequence:
        ROUNDING.assert_holds(expected, model.logits(IDS))
        ROUNDING.assert_holds(expected, np.stack([sequence.extend([token]) for token in IDS]))


@pytest.mark.parametrize("kind", KINDS)
def test_budgets(kind: str, tmp_path: Path) -> None:
    """Quantised; in memory, within the least budget, and in one that keeps some."""
    path = tiny(kind, True, type="Q8_0", n_embd=64).write(tmp_path / "model.gguf")
    with mmrt.Model(path) as model:
        expected = model.logits(IDS), model.logits(IDS[:1])
        FLIPS.assert_holds(oracle.logits(path, IDS, rounding=True), expected[0])
    for part in (0, 2):
        with mmrt.Model(path) as model:
            ends = model.program.plan(0)
            model.program.set_budget(ends.least + part * (ends.most - ends.least) // 4)
            assert np.array_equal(expected[0], model.logits(IDS))
            assert np.array_equal(expected[1], model.logits(IDS[:1]))


def test_pages_are_as_wide_as_each_layer_needs(path: Path) -> None:
    """Of those that keep some: with a window they have 2 heads of 32, the others 1 of 64."""
    near, others = (2, 1) if path.stem == "embedded" else (4, 3)
    with mmrt.Model(path) as model:
        assert model.store.page_bytes == PAGE_TOKENS * 2 * 2 * (near * 2 * 32 + others * 64)


def test_layers_that_share_work_for_wanted_logits_alone(tmp_path: Path) -> None:
    """NaN in a row of a layer that shares is not met by tokens whose logits nobody wants, even if
    those of others are."""
    model = tiny("embedded", True)
    bias = np.zeros((300, 7 * 64), np.float32)
    bias[5, 3 * 64 :] = np.nan
    model.tensors["per_layer_token_embd.weight"] = tiny_models.blocks_of("F32", bias)
    with mmrt.Model(model.write(tmp_path / "model.gguf")) as opened:
        with opened.sequence() as sequence:
            assert np.isfinite(sequence.extend([5, 6, 7, 5, 9])).all()
        with pytest.raises(FormatError), opened.sequence() as sequence:
            sequence.extend([9, 5])


def test_a_table_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """Once there is a budget, rows of it are read where it is."""
    path = tiny("embedded", True, n_vocab=4000).write(tmp_path / "model.gguf")
    needs_eviction(path)
    name = "per_layer_token_embd.weight"
    with mmrt.Model(path) as model:
        model.file.evict()  # so that the disk has it
        model.file.warm([name])
        before = model.logits(IDS)
        model.program.set_budget(model.program.plan(0).most)
        dropped = model.file.residency().tensors[name]
        assert dropped.resident < dropped.total
        model.file.evict([name])
        assert np.array_equal(before, model.logits(IDS))
        # Of its edges, which are others' too, and of rows, whose pages may take a while to go.
        assert model.file.residency().tensors[name].resident <= 2 + 2 * len(IDS)


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
    path = tiny("embedded", True, head_dim=20).write(tmp_path / "model.gguf")
    with mmrt.Model(path) as model:
        ROUNDING.assert_holds(oracle.logits(path, IDS, rounding=True), model.logits(IDS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention.key_length", 32),
        ("attention.value_length", 32),
        ("attention.key_length_swa", 64),
        ("attention.value_length_swa", 64),
        ("attention.head_count_kv", [2, 2, 2, 2, 1, 2, 1]),
        ("attention.head_count_kv", [2, 2, 1, 2]),
        ("attention.head_count_kv", [4, 2, 1, 2, 1, 2, 1]),
        ("attention.head_count", 3),
        ("attention.sliding_window", 0),
        ("attention.sliding_window_pattern", [True] * 7),
        ("attention.shared_kv_layers", 5),
        ("attention.shared_kv_layers", 7),
        ("attention.shared_kv_layers", 2),
        ("embedding_length_per_layer_input", 32),
        *(("embedding_length_per_layer_input", 2**n - 1) for n in (27, 28, 29, 30, 31)),
        ("attention.sliding_window_pattern", 3),
        ("rope.dimension_count", 66),
        ("rope.dimension_count", 32),
        ("rope.dimension_count_swa", 34),
    ],
)
def test_widths_must_fit(name: str, value: object, tmp_path: Path) -> None:
    model = tiny("embedded", True)
    tiny_gemma4.with_fields(model, **{name: value})
    with pytest.raises(FormatError, match=r"model.gguf: (tensor |gemma4\.|layer )") as refused:
        mmrt.Model(model.write(tmp_path / "model.gguf"))
    assert "\n" not in str(refused.value)
