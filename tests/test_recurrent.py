"""Texts of models with layers that keep a block in place of keys and values: however they are
read, cut, forked and shared, they are what they are when they are read at once."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures
import tiny_models
from numpy.typing import NDArray
from test_chat import CHATML
from tiny_models import Blocks
from together import extend_together

import mmrt
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.errors import FormatError
from mmrt.run.prefixes import Prefixes
from mmrt.run.sequence import Sequence

IDS = np.random.default_rng(8).integers(0, 300, 200).tolist()
OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
RECURRENT = ["lfm2", "lfm2moe", "qwen35", "qwen3next", "granitehybrid", "nemotron_h"]


@pytest.fixture(scope="module", params=RECURRENT)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_architectures.tiny(request.param, True, type="Q8_0", n_embd=64)
    return made.write(tmp_path_factory.mktemp("recurrent") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[mmrt.Model]:
    """Exact, so that texts are the same to the bit whatever steps they are read in."""
    with mmrt.Model(path, exact=True, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(model: mmrt.Model) -> NDArray[np.float32]:
    """The logits after each of IDS."""
    return model.logits(IDS)


def read(model: mmrt.Model, ids: list[int]) -> Cache:
    cache = Cache(model.store)
    Sequence(model, cache).extend(ids)
    return cache


@pytest.mark.parametrize("steps", [[200], [1] * 60, [2] * 40, [3, 1, 7, 100, 1, 1]])
def test_steps_of_any_length(
    model: mmrt.Model, expected: NDArray[np.float32], steps: list[int]
) -> None:
    with model.sequence() as text:
        for begin, end in itertools.pairwise([0, *itertools.accumulate(steps)]):
            logits = text.extend(IDS[begin:end], outputs="all")
            assert np.array_equal(logits, expected[begin:end])


def test_several_texts_in_a_step(model: mmrt.Model, expected: NDArray[np.float32]) -> None:
    """Each in its own state; one comes in several parts, with outputs between the others."""
    texts = [Cache(model.store) for _ in range(3)]
    parts = [(0, 5, 2), (1, 3, 0), (0, 4, 1), (2, 1, 1), (1, 6, 6), (0, 2, 0), (0, 1, 1)]
    for _ in range(3):
        given: list[Part] = []
        rows: list[int] = []
        at = [text.length for text in texts]
        for text, n, outputs in parts:
            ids = np.array(IDS[at[text] : at[text] + n], np.int32)
            given.append(Part(texts[text], ids, outputs))
            at[text] += n
            rows += range(at[text] - outputs, at[text])
        logits = np.empty((len(rows), model.vocab_size), np.float32)
        model.program.run(given, logits)
        assert np.array_equal(logits, expected[rows])
    assert [text.length for text in texts] == [36, 27, 3]


@pytest.mark.parametrize("architecture", ["qwen35", "nemotron_h"])
def test_chunks(architecture: str, isa: str, tmp_path: Path) -> None:
    """Models that are not exact take eight tokens at a time where these begin at a multiple of
    eight: to rounding what single tokens give, and to the bit the same for all cuts there."""
    path = tiny_architectures.tiny(architecture, True, type="Q8_0", n_embd=64)
    with mmrt.Model(path.write(tmp_path / "m.gguf"), threads=2) as model:
        texts = []
        for cuts in ([200], [64, 200], [8, 16, 40, 200], [9, 64, 200], [100, 200]):
            with model.sequence() as text:
                steps = itertools.pairwise([0, *cuts])
                found = [text.extend(IDS[a:b], outputs="all") for a, b in steps]
                texts.append(np.concatenate(found))
        spread = np.ptp(texts[0])
    for logits in texts[1:3]:
        assert np.array_equal(texts[0], logits)
    for logits in texts[3:]:
        assert np.abs(texts[0] - logits).max() < 0.03 * spread


def test_texts_read_together(model: mmrt.Model, expected: NDArray[np.float32]) -> None:
    with model.sequence() as one, model.sequence() as other:
        for n in (1, 40, 2):
            pairs = [(one, IDS[len(one) : len(one) + n]), (other, IDS[len(other) : len(other) + 1])]
            logits = extend_together(pairs)
            assert np.array_equal(logits, expected[[len(one) - 1, len(other) - 1]])


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])
def test_forks_go_on_apart(model: mmrt.Model, expected: NDArray[np.float32], length: int) -> None:
    others = [3, 250, 17, 9]
    alone = model.logits([*IDS[:length], *others])[length:]
    with model.sequence() as text:
        text.extend(IDS[:length])
        with text.fork() as fork, fork.fork() as third:
            assert np.array_equal(fork.extend(others, outputs="all"), alone)
            found = text.extend(IDS[length : length + 9], outputs="all")
            assert np.array_equal(found, expected[length : length + 9])
            assert np.array_equal(third.extend(others, outputs="all"), alone)
            assert fork.tokens == [*IDS[:length], *others]


def test_a_text_goes_back_to_nothing_alone(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    assert model.store.is_recurrent
    with model.sequence() as text:
        for length in (0, 1, 49):
            text.extend(IDS[:50])
            assert text.truncate(50) == 50 and len(text) == 50
            assert text.truncate(length) == 0 and len(text) == 0 and text.tokens == []
        assert np.array_equal(text.extend(IDS[:5], outputs="all"), expected[:5])
        assert text.keep_prefix(IDS[:50]) == 5  # it is what the longer one begins with
        assert text.keep_prefix([*IDS[:4], 299, *IDS[:50]]) == 0
        text.extend(IDS[:5])
        assert text.nbytes > 0
    assert model.store.nbytes == 0


def test_a_step_that_fails_leaves_texts_as_they_were(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    cache = read(model, IDS[:40])
    wrong = np.array([5, 300], np.int32)
    for parts in ([Part(cache, wrong)], [Part(cache, wrong[:1]), Part(cache, wrong)]):
        with pytest.raises(mmrt.ArgumentError, match="id 300"):
            model.program.run(parts)
    assert cache.length == 40
    logits = Sequence(model, cache).extend(IDS[40:45], outputs="all")
    assert np.array_equal(logits, expected[40:45])


def test_a_step_that_ends_in_nan_leaves_a_text_as_it_was(tmp_path: Path) -> None:
    """All that it has written of the state does not count."""
    made = tiny_architectures.tiny("lfm2", True, n_embd=64)
    made.tensors["token_embd.weight"].data[299] = 0xFF
    with mmrt.Model(made.write(tmp_path / "nan.gguf"), exact=True) as model:
        expected = model.logits(IDS[:45])
        with model.sequence() as text:
            text.extend(IDS[:40])
            for ids in ([299], [3, 299, 4]):
                with pytest.raises(FormatError, match="NaN"):
                    text.extend(ids)
                assert text.tokens == IDS[:40]
            assert np.array_equal(text.extend(IDS[40:45], outputs="all"), expected[40:])


def test_within_a_budget(path: Path, expected: NDArray[np.float32]) -> None:
    with mmrt.Model(path, exact=True) as model:
        model.program.set_budget(model.program.plan(0).least)
        assert np.array_equal(model.logits(IDS), expected)
        with model.sequence() as text:
            found = np.stack([text.extend([token]) for token in IDS[:20]])
        assert np.array_equal(found, expected[:20])


# ---- beginnings that texts share ----


def test_a_beginning_is_reused_as_a_whole_or_not_at_all(
    model: mmrt.Model, expected: NDArray[np.float32]
) -> None:
    tree = Prefixes(model.store)
    for length in (40, 100, 3, 64):
        tree.release(tree.follow(read(model, IDS[:length])))
    for wanted, found in ((2, 0), (3, 3), (39, 3), (63, 40), (64, 64), (99, 64), (150, 100)):
        assert tree.shared(IDS[:wanted]) == found
        cache = tree.take(IDS[:wanted])
        assert cache.tokens == IDS[:found]
        logits = Sequence(model, cache).extend(IDS[found : found + 3], outputs="all")
        assert np.array_equal(logits, expected[found : found + 3])
    assert tree.take(IDS, most=70).length == 64
    assert tree.shared([*IDS[:99], 299, 3]) == 64
    assert tree.shared([299]) == 0 and tree.shared(IDS, salt="another") == 0
    assert tree.give_back(1 << 40) > 0
    assert len(tree) == 0
    del cache
    assert model.store.nbytes == 0


def test_engines_reuse_what_is_right(path: Path) -> None:
    """Prompts that share beginnings with others, before, at and after where these ended."""
    prompts = [IDS[:60], IDS[:90], [*IDS[:50], 7, 8, 9], IDS[:60], [*IDS[:60], *IDS[:40]]]
    with mmrt.Model(path, exact=True) as model:
        alone = [model.generate(prompt, **OPTIONS) for prompt in prompts]
        with model.engine() as engine:
            for _ in range(2):
                handles = [engine.submit(prompt, **OPTIONS) for prompt in prompts]
                assert [handle.text() for handle in handles] == alone


def test_the_next_turn_reads_only_what_is_new(path: Path) -> None:
    """Of a conversation whose earlier answers come back otherwise than they were written."""
    turns = [IDS[:100], IDS[:130], [*IDS[:130], 7, 8, 9, *IDS[:50]]]
    with mmrt.Model(path, exact=True) as model:
        alone = [model.generate(turn, **OPTIONS) for turn in turns]
        with model.engine() as engine:
            before = 0
            for turn, text, length in zip(turns, alone, (0, 100, 130), strict=True):
                handle = engine.submit(turn, **OPTIONS)
                assert handle.text() == text
                written = handle.tokens - 1  # the last is not read
                evaluated, before = engine.evaluated_tokens - before, engine.evaluated_tokens
                assert evaluated - written == len(turn) - max(length - 8, 0)
        assert model.store.nbytes == 0


def test_the_next_turn_of_a_chat_reads_only_what_is_new(tmp_path: Path) -> None:
    made = tiny_architectures.tiny("qwen35", True, type="Q8_0", n_embd=64)
    made.metadata["tokenizer.chat_template"] = CHATML
    path = made.write(tmp_path / "chat.gguf")
    messages: list[dict[str, str]] = []
    before = 8
    with mmrt.Model(path, exact=True) as model:
        for said in ("What is a page fault, and what does it cost?", "Why?", "Name a colour."):
            messages.append({"role": "user", "content": said})
            text = model.chat(messages, **OPTIONS)
            assert text.cached_tokens == before - 8
            with mmrt.Model(path, exact=True) as fresh:
                assert fresh.chat(messages, **OPTIONS) == text
            before = text.prompt_tokens
            messages.append({"role": "assistant", "content": "not what it had said"})


def test_texts_that_give_their_memory_up_are_read_again(path: Path) -> None:
    prompts = [IDS[:90], IDS[50:140], IDS[20:100]]
    with mmrt.Model(path, exact=True) as model:
        alone = [model.generate(prompt, **OPTIONS) for prompt in prompts]
        least = read(model, IDS[:100]).nbytes
        with model.engine(kv=2 * least) as engine:
            handles = [engine.submit(prompt, **OPTIONS) for prompt in prompts]
            assert [handle.text() for handle in handles] == alone


# ---- files ----


def test_states_must_be_possible(tmp_path: Path) -> None:
    """Fields that make no shape, or one that is too large, are refused by name."""
    wrong: dict[str, dict[str, tuple[object, str]]] = {
        "lfm2": {
            "attention.head_count_kv": ([0, 0, 0, 0], "0 in all layers"),
            "shortconv.l_cache": (1, "expected a whole number from 2"),
            "shortconv.l_cache ": ((1 << 31) - 1, "exceeds the supported maximum"),
        },
        "qwen35": {
            "ssm.inner_size": (65, "expected 2 heads of 32, found 65"),
            "ssm.group_count": (3, ""),
            "ssm.conv_kernel": ((1 << 31) - 1, ""),
            "attention.recurrent_layers": ([True], "expected an array of 4"),
        },
        "granitehybrid": {
            "ssm.inner_size": (130, "4 heads do not divide 130"),
            "ssm.inner_size ": (64, "4 heads of 16, but mmrt runs those of multiples of 32"),
            "ssm.inner_size  ": (1 << 30, "exceeds the supported maximum"),
            "ssm.group_count": (3, "3 does not divide 4 heads"),
            "ssm.conv_kernel": (1, "expected a whole number from 2"),
        },
    }
    for architecture, fields in wrong.items():
        for name, (value, message) in fields.items():
            model = tiny_architectures.tiny(architecture, False)
            model.metadata[f"{architecture}.{name.strip()}"] = value
            path = model.write(tmp_path / "m.gguf")
            with pytest.raises(mmrt.MmrtError, match=rf"m.gguf: {architecture}\..*: .*{message}"):
                mmrt.Model(path)


def test_taps_must_be_those_of_the_metadata(tmp_path: Path) -> None:
    model = tiny_architectures.tiny("lfm2", False)
    model.metadata["lfm2.shortconv.l_cache"] = 4
    expected = r"tensor blk.0.shortconv.conv.weight: shape \(64, 3\) where \(64, 4\) is expected"
    with pytest.raises(FormatError, match=expected):
        mmrt.Model(model.write(tmp_path / "m.gguf"))


def test_state_spaces_must_be_those_of_the_metadata(tmp_path: Path) -> None:
    """Counts that would make other tensors name the first of these that differs."""
    wrong = {
        "ssm.group_count": (2, r"ssm_conv1d.weight: shape \(160, 3\) where \(192, 3\)"),
        "ssm.state_size": (32, r"ssm_conv1d.weight: shape \(160, 3\) where \(192, 3\)"),
        "ssm.inner_size": (256, r"ssm_conv1d.weight: shape \(160, 3\) where \(288, 3\)"),
        "ssm.conv_kernel": (4, r"ssm_conv1d.weight: shape \(160, 3\) where \(160, 4\)"),
        "ssm.time_step_rank": (2, r"ssm_in.weight: shape \(292, 64\) where \(290, 64\)"),
    }
    for name, (value, message) in wrong.items():
        model = tiny_architectures.tiny("granitehybrid", False)
        tiny_models.with_fields(model, **{name: value})
        path = model.write(tmp_path / "m.gguf")
        with pytest.raises(FormatError, match=rf"m.gguf: tensor blk.1.{message} is expected"):
            mmrt.Model(path)
    for name in ("ssm_a", "ssm_d", "ssm_norm.weight"):
        model = tiny_architectures.tiny("granitehybrid", True)
        wanted = model.tensors[f"blk.0.{name}"]
        model.tensors[f"blk.0.{name}"] = Blocks(wanted.type, wanted.data[:-1])
        path = model.write(tmp_path / "m.gguf")
        with pytest.raises(FormatError, match=rf"m.gguf: tensor blk.0.{name}: shape .* expected"):
            mmrt.Model(path)


def test_layers_of_nemotron_have_one_part_each(tmp_path: Path) -> None:
    model = tiny_architectures.tiny("nemotron_h", False)
    widths = [160, *model.metadata["nemotron_h.feed_forward_length"][1:]]
    tiny_models.with_fields(model, feed_forward_length=widths)
    path = model.write(tmp_path / "m.gguf")
    expected = r"m.gguf: nemotron_h.feed_forward_length: layer 0 has attention, and a unit beside"
    with pytest.raises(FormatError, match=expected):
        mmrt.Model(path)


@pytest.mark.parametrize("architecture", ["granitehybrid", "nemotron_h_moe"])
def test_state_spaces_with_experts_on_demand(architecture: str, tmp_path: Path) -> None:
    made = tiny_architectures.tiny(architecture, True, type="Q8_0", n_embd=64)
    with mmrt.Model(made.write(tmp_path / "m.gguf"), exact=True) as model:
        expected = model.logits(IDS)
        model.program.set_budget(model.program.plan(0).least)
        assert np.array_equal(model.logits(IDS), expected)
        with model.sequence() as text:
            found = np.stack([text.extend([token]) for token in IDS[:20]])
        assert np.array_equal(found, expected[:20])
