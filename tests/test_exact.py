"""Models opened with exact=True: what is computed for a token depends, to the bit, on the tokens
before it in its text alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from instruction_sets import ISAS
from numpy.typing import NDArray
from together import extend_together

import mmrt
from mmrt.core.streaming import READERS
from mmrt.memory.budget import Budget

Logits = NDArray[np.float32]
FAST = [isa for isa in ISAS if isa != "ref"] or ISAS
IDS = np.random.default_rng(2).integers(0, 300, 300).tolist()  # tiny models have 300 tokens

WIDE: dict[str, Any] = {"n_embd": 512, "n_ff": 768, "head_dim": 64, "n_layers": 1}
NARROW: dict[str, Any] = {"n_embd": 96, "n_ff": 352, "head_dim": 32, "n_layers": 2}

# Of each kind of kernel that there is, with rows of whole blocks of 256 and rows of fewer.
TINY = {
    "F32": tiny_models.llama(type="F32", n_heads=6, n_kv_heads=2, head_dim=48),
    "F16": tiny_models.llama(type="F16", n_heads=5, n_kv_heads=1, head_dim=32),
    "BF16": tiny_models.gemma3(n_layers=6, type="BF16", separate_output=True),
    "Q4_0": tiny_models.llama(type="Q4_0", **NARROW),
    "Q4_1": tiny_models.gemma3(type="Q4_1", **NARROW),
    "Q8_0": tiny_models.llama(type="Q8_0", **NARROW),
    "NVFP4": tiny_models.llama(type="NVFP4", **WIDE),
    "Q4_K": tiny_models.gemma3(type="Q4_K", **WIDE),
    "Q6_K": tiny_models.llama(type="Q6_K", **WIDE),
    "IQ1_S": tiny_models.llama(type="IQ1_S", **WIDE),
    "IQ2_XXS": tiny_models.llama(type="IQ2_XXS", **WIDE),
    "IQ3_S": tiny_models.llama(type="IQ3_S", **WIDE),
    "IQ4_XS": tiny_models.llama(type="IQ4_XS", **WIDE),
    "TQ1_0": tiny_models.llama(type="TQ1_0", **WIDE),
    "mixed": tiny_models.llama(
        type="Q4_K", types={"attn_v": "Q6_K", "ffn_down": "F16", "token_embd": "Q8_0"}, **WIDE
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, folder: Path) -> Path:
    path = folder / f"{request.param}.gguf"
    return path if path.exists() else TINY[request.param].write(path)


def in_steps(model: mmrt.Model, ids: list[int], size: int) -> Logits:
    with model.sequence() as sequence:
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        return np.concatenate([sequence.extend(part, outputs="all") for part in parts])


def last_rows(model: mmrt.Model, ids: list[int], size: int) -> Logits:
    """As prompts are read: of each step the logits of its last token alone."""
    with model.sequence() as sequence:
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        return np.stack([sequence.extend(part) for part in parts])


def assert_steps_change_nothing(path: Path, sizes: Iterable[int], **options: Any) -> None:
    ids = IDS[:41]
    with mmrt.Model(path, exact=True, threads=2, **options) as model:
        expected = in_steps(model, ids, 1)
        for size in sizes:
            assert np.array_equal(expected, in_steps(model, ids, size)), size
        for size in (3, 9, 41):
            ends = np.minimum(np.arange(size, len(ids) + size, size), len(ids)) - 1
            assert np.array_equal(expected[ends], last_rows(model, ids, size)), size


# ---- steps ----


@pytest.mark.slow
def test_steps_of_any_size(tiny: Path, isa: str) -> None:
    sizes = (2, 8, 41) if isa == "ref" else (2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 15, 22, 41)
    assert_steps_change_nothing(tiny, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("kv", [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0")])
@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_every_size_with_keys_and_values_in_int8(
    kv: tuple[str, str], isa: str, folder: Path
) -> None:
    path = TINY["Q4_0"].write(folder / f"{isa}-{kv[0]}-{kv[1]}.gguf")
    assert_steps_change_nothing(path, range(2, 42), kv_k=kv[0], kv_v=kv[1])


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_steps_of_any_size_of_real_models(real_path: Path, isa: str) -> None:
    with mmrt.Model(real_path) as model:
        ids = model.tokenize("The lighthouse keeper climbed the stairs before dawn, as ever.")
    with mmrt.Model(real_path, exact=True) as model:
        expected = in_steps(model, ids, 1)
        for size in (5, len(ids)):
            assert np.array_equal(expected, in_steps(model, ids, size)), size


# The keys of one token are cut into sections from 257 on, and into longer ones from 4097 on; those
# that a window hides move where they begin.
LONG = {
    "llama": tiny_models.llama(n_heads=6, n_kv_heads=2, head_dim=48, context=4400),
    "gemma3": tiny_models.gemma3(n_layers=6, n_heads=4, n_kv_heads=1, window=600, context=4400),
}


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("threads", [1, 3])
def test_long_texts(name: str, threads: int, isa: str, tmp_path: Path) -> None:
    ids = IDS * 15
    path = LONG[name].write(tmp_path / "long.gguf")
    with mmrt.Model(path, exact=True, threads=threads) as model, model.sequence() as sequence:
        for n in (240, 500, 850, 1380, 4085):
            sequence.extend(ids[len(sequence) : n])
            expected = np.stack([sequence.extend([token]) for token in ids[n : n + 40]])
            for size in (40, 33, 7):
                sequence.truncate(n)
                rows = [
                    sequence.extend(ids[i : min(i + size, n + 40)], outputs="all")
                    for i in range(n, n + 40, size)
                ]
                assert np.array_equal(expected, np.concatenate(rows)), (n, size)


@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_more_query_heads_than_a_tile_has_rows(isa: str, tmp_path: Path) -> None:
    heads = tiny_models.llama(n_heads=66, n_kv_heads=1, head_dim=16, n_embd=32)
    path = heads.write(tmp_path / "heads.gguf")
    for threads in (1, 4):
        with mmrt.Model(path, exact=True, threads=threads) as model:
            ids = IDS[:290]
            assert np.array_equal(in_steps(model, ids, 1), in_steps(model, ids, 290))


# ---- other texts, threads, budgets ----


@pytest.fixture(scope="module")
def streamed(folder: Path) -> Path:
    """45 MB, of which steps read 42 MB: more than any room below, whatever the process frees."""
    shape = {"n_layers": 10, "n_embd": 512, "n_ff": 2048, "head_dim": 64, "n_heads": 8}
    model = tiny_models.llama(
        type="Q8_0", separate_output=True, n_vocab=4000, context=2048, n_kv_heads=8, **shape
    )
    return model.write(folder / "streamed.gguf")


@pytest.mark.slow
def test_other_texts_in_a_step(tiny: Path) -> None:
    texts = [IDS[7 * i : 7 * i + n] for i, n in enumerate([1, 40, 33, 7, 260, 2, 1, 12])]
    with mmrt.Model(tiny, exact=True) as model:
        alone = [in_steps(model, [*ids, 9], 1)[-2:] for ids in texts]
        sequences = [model.sequence() for _ in texts]
        together = extend_together(list(zip(sequences, texts, strict=True)))
        after = extend_together([(sequence, [9]) for sequence in sequences])
        assert np.array_equal(np.stack([together, after], axis=1), np.stack(alone))


@pytest.mark.slow
def test_generate_all_writes_what_generate_does(smollm2_path: Path) -> None:
    subjects = ["cats sat on", "reasons to learn", "kings of old", "bridges over", "ways to cook"]
    prompts = [f"{i} {subject}" for i in range(4) for subject in subjects]
    with mmrt.Model(smollm2_path, exact=True) as model:
        expected = [model.generate(prompt, max_tokens=8) for prompt in prompts]
        assert model.generate_all(prompts, max_tokens=8) == expected


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_budgets_and_readers(reader: str, streamed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [5 + 3 * i % 3000 for i in range(300)]
    found = []
    with mmrt.Model(streamed, exact=True) as model:
        found += [in_steps(model, ids, 300), in_steps(model, ids, 1)]
    assert np.array_equal(found[0], found[1])
    used = mmrt.counters.resident()  # held: other tests leave memory that comes and goes
    monkeypatch.setattr(mmrt.counters, "resident", lambda: used)
    for room in (22, 28):
        budget = Budget(sum(used) + (room << 20))
        with mmrt.Model(streamed, exact=True, memory=budget, reader=reader, threads=3) as model:
            assert model.streaming is not None and model.streaming.reader == reader
            assert np.array_equal(found[0], in_steps(model, ids, 300)), room
            assert model.streaming.read > 0
