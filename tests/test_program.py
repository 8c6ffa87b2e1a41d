"""The same logits however they are computed: on any number of threads, in steps of any size, by any
instruction set. How equal they are is said, with the reasons, in measures.py."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
from instruction_sets import ISAS
from measures import BFLOATS, FLIPS, ROUNDING, Bound
from numpy.typing import NDArray

import mmrt
from mmrt.core.kernels import Pool
from mmrt.core.program import Part, Program
from mmrt.core.state import PAGE_TOKENS, Cache, KeyValues, StateStore
from mmrt.errors import ArgumentError, FormatError, UnsupportedError
from mmrt.models.parts.weights import Weights

Logits = NDArray[np.float32]
VARIANTS = [isa for isa in ISAS if isa != "ref"]
FAST = VARIANTS or ISAS
IDS = np.random.default_rng(1).integers(0, 300, 300).tolist()  # tiny models have 300 tokens

WIDE: dict[str, int] = {"n_embd": 256, "n_ff": 256, "head_dim": 64}  # whole blocks of 256

# Tiny models that between them take every path: both architectures, float and quantised weights,
# heads that are whole groups of 32 and heads that are not, windows.
TINY: dict[str, tuple[tiny_models.TinyModel, Bound]] = {
    "llama F32": (tiny_models.llama(n_heads=6, n_kv_heads=2, head_dim=48), ROUNDING),
    "llama F16": (tiny_models.llama(type="F16", n_heads=5, n_kv_heads=1, head_dim=32), ROUNDING),
    "gemma3 BF16": (
        tiny_models.gemma3(n_layers=6, type="BF16", separate_output=True),
        BFLOATS,
    ),
    "llama Q4_1": (tiny_models.llama(type="Q4_1", n_ff=352, head_dim=80), FLIPS),
    "llama F32, heads of 100": (tiny_models.llama(head_dim=100), ROUNDING),
    "llama Q8_0": (tiny_models.llama(type="Q8_0", n_embd=288, head_dim=64), FLIPS),
    "gemma3 Q4_K": (tiny_models.gemma3(n_layers=6, type="Q4_K", **WIDE), FLIPS),
    "qwen3moe F32": (tiny_models.qwen3moe(), ROUNDING),
    "qwen3moe Q8_0": (
        tiny_models.qwen3moe(n_embd=128, type="Q8_0", experts={"type": "Q8_0", "width": 96}),
        FLIPS,
    ),
    "gemma3 Q6_K": (tiny_models.gemma3(n_layers=3, type="Q6_K", **WIDE), FLIPS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Bound]:
    """A tiny model, and what other instruction sets and one-token steps may do to its logits."""
    path = folder / f"{request.param}.gguf"
    model, bound = TINY[request.param]
    return path if path.exists() else model.write(path), bound


def passage(model: mmrt.Model, n: int) -> list[int]:
    text = Path(__file__).with_name("golden").joinpath("passage.txt").read_text()
    return model.tokenize(text)[:n]


def in_steps(model: mmrt.Model, ids: list[int], sizes: Iterable[int]) -> Logits:
    """Logits after each of `ids`, read in steps of these sizes; the last size goes on."""
    with model.sequence() as sequence:
        return np.concatenate([sequence.extend(p, outputs="all") for p in parts(ids, sizes)])


def parts(ids: list[int], sizes: Iterable[int]) -> Iterator[list[int]]:
    rest, size, start = iter(sizes), 0, 0
    while start < len(ids):
        size = next(rest, size)
        yield ids[start : start + size]
        start += size


# ---- threads ----


def assert_threads_change_nothing(path: Path, n_threads: list[int], n_prompt: int) -> None:
    """In a prompt, longer than one step where n_prompt is, and then in tokens one by one."""
    found = []
    for threads in n_threads:
        with mmrt.Model(path, threads=threads) as model, model.sequence() as sequence:
            assert model.threads == threads
            ids = IDS if model.vocab_size == 300 else passage(model, n_prompt + 9)
            rows = [sequence.extend(ids[: n_prompt // 8], outputs="all")[-16:]]
            rows.append(sequence.extend(ids[n_prompt // 8 : n_prompt])[None])
            rows += [sequence.extend([token])[None] for token in ids[n_prompt : n_prompt + 9]]
            found.append(np.concatenate(rows))
    for other in found[1:]:
        assert np.array_equal(found[0], other)


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_threads_change_nothing_on_real_models(real_path: Path, isa: str) -> None:
    assert_threads_change_nothing(real_path, [1, 2, 3], 300)


@pytest.mark.slow
def test_threads_change_nothing(tiny: tuple[Path, Bound], isa: str) -> None:
    assert_threads_change_nothing(tiny[0], [1, 2, 3], 90)


def test_more_threads_than_there_is_work(tiny: tuple[Path, Bound]) -> None:
    assert_threads_change_nothing(tiny[0], [1, 40], 9)


# ---- steps ----


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_one_token_steps_of_real_models(real_path: Path, isa: str) -> None:
    with mmrt.Model(real_path) as model:
        ids = passage(model, 64)
        FLIPS.assert_holds(model.logits(ids), in_steps(model, ids, [1]))


@pytest.mark.slow
def test_one_token_steps(tiny: tuple[Path, Bound], isa: str) -> None:
    path, bound = tiny
    with mmrt.Model(path) as model:
        bound.assert_holds(model.logits(IDS[:80]), in_steps(model, IDS[:80], [1]))


@pytest.mark.parametrize("isa", FAST, indirect=True)
@pytest.mark.parametrize(("kv_k", "kv_v"), [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0")])
@pytest.mark.parametrize("head_dim", [48, 100, 6])
def test_keys_and_values_in_int8_of_heads_of_any_width(
    head_dim: int, kv_k: str, kv_v: str, isa: str, tmp_path: Path
) -> None:
    path = tiny_models.llama(n_heads=6, n_kv_heads=2, head_dim=head_dim).write(tmp_path / "a.gguf")
    with mmrt.Model(path) as model:
        exact = model.logits(IDS)
    with mmrt.Model(path, kv_k=kv_k, kv_v=kv_v) as model:
        found = model.logits(IDS)
        FLIPS.assert_holds(exact, found)
        FLIPS.assert_holds(found, in_steps(model, IDS, [270, 1]))


@pytest.mark.parametrize("isa", FAST, indirect=True)
@pytest.mark.parametrize(("kv_k", "kv_v"), [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0")])
def test_keys_and_values_in_int8(kv_k: str, kv_v: str, isa: str, tmp_path: Path) -> None:
    """The same on any number of threads, nearly so in one-token steps, and near f16; in a smaller
    cache."""
    path = tiny_models.llama(n_heads=6, n_kv_heads=2, head_dim=64).write(tmp_path / "int8.gguf")
    with mmrt.Model(path) as model:
        exact, page = model.logits(IDS), model.memory.kv_page
    found = []
    for threads in (1, 3):
        with mmrt.Model(path, threads=threads, kv_k=kv_k, kv_v=kv_v) as model:
            share = 1 - (page - model.memory.kv_page) / page
            assert share == (9 / 16 if kv_k == kv_v else 25 / 32)
            found.append(model.logits(IDS))
            FLIPS.assert_holds(found[-1], in_steps(model, IDS, [270, 1]))
    assert np.array_equal(found[0], found[1])
    FLIPS.assert_holds(exact, found[0])


def test_unknown_types_of_keys_and_values_are_refused(tmp_path: Path) -> None:
    path = tiny_models.llama().write(tmp_path / "model.gguf")
    with pytest.raises(ArgumentError, match=r"'q4_0'.*f16, q8_0"):
        mmrt.Model(path, kv_v="q4_0")


LONG = {
    "llama": tiny_models.llama(n_heads=6, n_kv_heads=2, head_dim=48, context=4000),
    "gemma3": tiny_models.gemma3(n_layers=6, n_heads=4, n_kv_heads=1, window=600, context=4000),
}


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
@pytest.mark.parametrize("name", LONG)
def test_one_token_steps_of_long_texts(name: str, isa: str, tmp_path: Path) -> None:
    """The keys that one token sees are then cut into parts: no matter by how many threads."""
    path = LONG[name].write(tmp_path / "long.gguf")
    ids = IDS * 10
    found = []
    for threads in (1, 2, 5):
        with mmrt.Model(path, threads=threads) as model:
            for n in (300, 1400, 2990):
                with model.sequence() as sequence:
                    expected = sequence.extend(ids[: n + 10], outputs="all")[n:]
                    sequence.truncate(n)
                    rows = [sequence.extend([token]) for token in ids[n : n + 10]]
                ROUNDING.assert_holds(expected, np.array(rows))
                found.append(np.array(rows))
    for i in range(3, 9):
        assert np.array_equal(found[i % 3], found[i])


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_larger_steps_of_real_models_may_be_cut_anywhere(real_path: Path, isa: str) -> None:
    found = []
    with mmrt.Model(real_path) as model:
        ids = passage(model, 300)
        for sizes in ([290], [100, 90], [8, 31, 33, 64]):
            with model.sequence() as sequence:
                for part in parts(ids[:290], sizes):
                    sequence.extend(part)
                found.append(sequence.extend(ids[290:], outputs="all"))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
@pytest.mark.parametrize(
    "sizes", [[10], [14, 11], [31, 33, 33, 203], [32], [255, 45], [8, 292]], ids=str
)
def test_larger_steps_may_be_cut_anywhere(
    tiny: tuple[Path, Bound], sizes: list[int], isa: str
) -> None:
    with mmrt.Model(tiny[0]) as model:
        assert_cuts_change_nothing(tiny, model.logits(IDS), in_steps(model, IDS, sizes))


def assert_cuts_change_nothing(tiny: tuple[Path, Bound], one: Logits, other: Logits) -> None:
    """To the bit; but with experts, of which a step's length says how many tokens each gets."""
    path, bound = tiny
    if "moe" in path.name:
        bound.assert_holds(one, other)
    else:
        assert np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_steps_of_few_tokens_may_be_cut_anywhere(tiny: tuple[Path, Bound], isa: str) -> None:
    path, bound = tiny
    with mmrt.Model(path) as model:
        found = [in_steps(model, IDS[:96], sizes) for sizes in ([2], [3], [4, 2])]
        bound.assert_holds(model.logits(IDS[:96]), found[0])
    for other in found[1:]:
        assert_cuts_change_nothing(tiny, found[0], other)


@pytest.mark.parametrize("isa", FAST, indirect=True)
def test_the_last_row_is_that_of_all_rows(tiny: tuple[Path, Bound], isa: str) -> None:
    """Without the others, the last layer works on one token: on its own as in a step of one."""
    path, bound = tiny
    for n in (2, 50, 256, 300):
        with mmrt.Model(path) as model, model.sequence() as sequence:
            last = sequence.extend(IDS[:n])
            bound.assert_holds(model.logits(IDS[:n])[-1:], last[None])


# ---- instruction sets ----


def logits_and_steps(path: Path, ids: list[int], n_prompt: int) -> Logits:
    with mmrt.Model(path) as model:
        return in_steps(model, ids, [n_prompt, 1])


@pytest.mark.slow
def test_instruction_sets_agree_on_real_models(
    real_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mmrt.Model(real_path) as model:
        ids = passage(model, 20)
    monkeypatch.setenv("MMRT_ISA", "ref")
    expected = logits_and_steps(real_path, ids, 14)
    for isa in VARIANTS:
        monkeypatch.setenv("MMRT_ISA", isa)
        FLIPS.assert_holds(expected, logits_and_steps(real_path, ids, 14))


@pytest.mark.slow
@pytest.mark.parametrize("isa", VARIANTS, indirect=True)
def test_instruction_sets_agree(
    tiny: tuple[Path, Bound], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bound = tiny
    found = logits_and_steps(path, IDS[:80], 60)
    monkeypatch.setenv("MMRT_ISA", "ref")
    bound.assert_holds(logits_and_steps(path, IDS[:80], 60), found)


@pytest.mark.parametrize("isa", ["mmx", "AVX2", " "])
def test_an_unknown_instruction_set_is_refused(
    tiny: tuple[Path, Bound], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMRT_ISA", isa)
    with pytest.raises(ArgumentError, match="MMRT_ISA"):
        mmrt.Model(tiny[0])


# ---- programs made by hand ----


@pytest.fixture
def weights(folder: Path) -> Iterator[Weights]:
    with mmrt.open(TINY["llama F32"][0].write(folder / "weights.gguf")) as file:
        yield Weights(file)


def a_store(n_layers: int = 2, n_heads: int = 2, head_dim: int = 48) -> StateStore:
    return StateStore([KeyValues(n_heads, head_dim)] * n_layers)


def a_program(weights: Weights) -> Program:
    """token_embd, a norm, and token_embd again: 300 tokens, a stream of 64."""
    program = Program(Pool(1), 8, a_store())
    stream, normed = program.buffer(64), program.buffer(64)
    program.embed(weights["token_embd.weight"], stream)
    program.norm(stream, weights["output_norm.weight"], normed, 1e-5)
    program.logits(normed, weights["token_embd.weight"])
    return program


def test_a_program_lists_its_operations(tiny: tuple[Path, Bound]) -> None:
    with mmrt.Model(tiny[0]) as model:
        head, *lines = str(model.program).splitlines()
        assert head.split() == ["#", "operation", "bytes", "read", "tensors"]
        assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
        assert "embed" in lines[0] and "logits" in lines[-1]
        for tensor in model.program.weights:
            assert any(tensor.name in line for line in lines), tensor.name
        read = [tensor for tensor in model.file.values() if tensor.name in str(model.program)]
        assert {t.name for t in read} == {t.name for t in model.program.weights} == set(model.file)


def test_a_program_made_by_hand(weights: Weights) -> None:
    program = a_program(weights)
    cache, logits = Cache(program.store), np.empty((3, 300), np.float32)
    with pytest.raises(ArgumentError, match="scratch"):
        program.run([Part(cache, np.array([1, 2, 3], np.int32), 3)], logits)
    program.finish()
    program.run([Part(cache, np.array([1, 2, 3], np.int32), 3)], logits)
    assert cache.length == 3
    embedding = weights["token_embd.weight"].dequantize().astype(np.float64)
    rows = embedding[[1, 2, 3]]
    normed = rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + 1e-5)
    expected = normed * weights["output_norm.weight"].dequantize() @ embedding.T
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    program.close()


def test_wrong_steps_are_refused_and_change_nothing(weights: Weights) -> None:
    program = a_program(weights)
    program.finish()
    cache, room = Cache(program.store), np.empty((9, 300), np.float32)

    def ids(*values: int) -> NDArray[np.int32]:
        return np.array(values, np.int32)

    for tokens, logits, words in [
        (ids(1), room[:2], "logits: no room"),
        (ids(1), room[:0], "logits: no room"),
        (ids(1), np.empty((1, 299), np.float32), "logits: no room"),
        (ids(), room[:1], "without tokens"),
        (ids(*[1] * 9), room[:1], "1 to 8 tokens, not 9"),
        (ids(5, 300), room[:1], "token 1: id 300 is not from 0 to 299"),
        (ids(-1), room[:1], "token 0: id -1"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            program.run([Part(cache, tokens, 1)], logits)
        assert (cache.length, cache.nbytes) == (0, 0)
    other = Cache(a_store())
    with pytest.raises(ArgumentError, match="belongs to another model"):
        program.run([Part(other, ids(1), 1)], room[:1])
    program.close()
    with pytest.raises(ArgumentError, match="closed"):
        program.run([Part(cache, ids(1), 1)], room[:1])


def test_caches_grow_and_shrink_by_pages(weights: Weights) -> None:
    program = a_program(weights)
    program.finish()
    cache, logits = Cache(program.store), np.empty((1, 300), np.float32)
    page = program.store.page_bytes
    assert page == PAGE_TOKENS * 2 * 2 * 2 * 48 * 2  # layers, heads, keys and values, f16
    assert [cache.growth(length) for length in (0, 1, 32, 33)] == [0, page, page, 2 * page]
    for length in range(1, 70):
        program.run([Part(cache, np.array([7], np.int32), 1)], logits)
        assert cache.length == length
        assert cache.nbytes == -(-length // PAGE_TOKENS) * page
    for length in (64, 33, 32, 1, 0):
        assert cache.truncate(length) == cache.length == length
        assert cache.growth(length) == 0
        assert cache.nbytes == -(-length // PAGE_TOKENS) * page
    for length in (1, -1):
        with pytest.raises(ArgumentError, match=f"cannot cut 0 tokens to {length}"):
            cache.truncate(length)
    program.close()


def test_wrong_operations_are_refused(weights: Weights) -> None:
    embedding, norm = weights["token_embd.weight"], weights["output_norm.weight"]
    query = weights["blk.0.attn_q.weight"]
    program = Program(Pool(1), 8, a_store())
    narrow, wide = program.buffer(32), program.buffer(64)
    qkv = program.buffer(480)  # of 6 query heads, and 2 of keys and of values
    table = program.rope_table(np.ones(24))

    refusals: list[tuple[type[Exception], str, Any]] = [
        (ArgumentError, "no such buffer", lambda: program.embed(embedding, 9)),
        (ArgumentError, "no such buffer", lambda: program.linear(-2, [query], wide)),
        (FormatError, "token_embd.weight", lambda: program.embed(embedding, narrow)),
        (FormatError, "output_norm.weight", lambda: program.norm(narrow, norm, narrow, 1e-5)),
        (ArgumentError, "widths differ", lambda: program.norm(wide, norm, narrow, 1e-5)),
        (FormatError, "blk.0.attn_q.weight", lambda: program.linear(wide, [query], wide)),
        (FormatError, "blk.0.attn_q.weight", lambda: program.linear(narrow, [query], qkv)),
        (ArgumentError, "1 to 3", lambda: program.linear(wide, [query] * 4, qkv)),
        (ArgumentError, "1 to 3", lambda: program.linear(wide, [], qkv)),
        (FormatError, "layer 2", lambda: program.rope(qkv, table, 2, 6, False)),
        (FormatError, "layer 0", lambda: program.rope(qkv, table, 0, 5, False)),
        (FormatError, "layer 0", lambda: program.rope(wide, table, 0, 6, False)),
        (FormatError, "layer 0", lambda: program.rope(qkv, table + 1, 0, 6, False)),
        (FormatError, "layer 1", lambda: program.attend(qkv, wide, 1, 0, 1.0)),
        (ArgumentError, "layer 1", lambda: program.attend(qkv, wide, 1, 6, 1.0)),
        (
            ArgumentError,
            "a weight is missing",
            lambda: program.linear(wide, [cast(Any, None)], wide),
        ),
        (ArgumentError, "'swish'", lambda: program.glu(wide, query, query, wide, "swish")),
        (ArgumentError, "'swish'", lambda: program.unit(wide, query, wide, "swish")),
        (FormatError, "blk.0.attn_q.weight", lambda: program.unit(wide, query, wide, "relu2")),
        (ArgumentError, "no such buffer", lambda: program.unit(wide, query, 9, "relu2")),
        (ArgumentError, "none before it has written", lambda: program.add(wide)),
        (ArgumentError, "no such buffer", lambda: program.add(wide, 9)),
        (ArgumentError, "widths differ", lambda: program.add(wide, narrow)),
        (FormatError, "layer 2", lambda: program.wide_norm(qkv, 2, 6, norm, norm, 1e-5)),
        (ArgumentError, "widths differ", lambda: program.wide_norm(qkv, 0, 5, norm, norm, 1e-5)),
        (FormatError, "output_norm", lambda: program.wide_norm(qkv, 0, 6, norm, norm, 1e-5)),
        (ArgumentError, "a period", lambda: program.rope(qkv, -1, 0, 6, True, temperature=0.1)),
        (ArgumentError, "no pairs", lambda: program.rope_table([])),
        (ArgumentError, "buffers of 0 values", lambda: program.buffer(0)),
        (ArgumentError, "buffers of 4294967295", lambda: program.buffer(2**32 - 1)),
        (ArgumentError, "begins with EMBED or TAKE", program.finish),
    ]
    for kind, words, refused in refusals:
        with pytest.raises(kind, match=words):
            refused()
    program.close()
    with pytest.raises(ArgumentError, match="layer 0: 1 key-value heads with keys of 0 elements"):
        a_store(1, 1, 0)
    with pytest.raises(UnsupportedError, match="layer 0: 2147483647 key-value heads"):
        a_store(2**10, 2**31 - 1, 64)
    with pytest.raises(ArgumentError, match="steps of 2147483647 tokens"):
        Program(Pool(1), 2**31 - 1, a_store())


# Operations on buffers 0 and 1 of the embedding's width, 2 and 3 of 480 (6 query heads, and 2 of
# keys and of values, of 48) and 4 of 288, that each are fine, but not in this order.
FLOWS: dict[str, tuple[str, str]] = {
    "begins with a norm": ("N", "operation 0 reads buffer 0, which none before it has written"),
    "has no logits": ("E N", "begins with EMBED or TAKE and ends with LOGITS or GIVE"),
    "goes on after its logits": ("E N L N", "operation 3: LOGITS or GIVE is the last one"),
    "has logits twice": ("E N L L", "operation 3: LOGITS or GIVE is the last one"),
    "goes on after giving": ("T G N", "operation 2: LOGITS or GIVE is the last one"),
    "takes twice": ("T T G", "operation 1: TAKE is the first one"),
    "takes after embedding": ("E T G", "operation 1: TAKE is the first one"),
    "gives what nothing wrote": ("G", "operation 0 reads buffer 0, which none before it has"),
    "gives a part of it": ("T N O g", "operation 3 reads buffer 1, .* written for all tokens"),
    "takes without a buffer": ("t G", "no such buffer"),
    "reads what nothing wrote": ("E L", "operation 1 reads buffer 1, which none before it has w"),
    "reads a part of it": ("E O M N L", "operation 2 reads buffer 1, .* written for all tokens"),
    "attends to no keys": ("E N M A L", "operation 3 attends to layer 0, .* from buffer 2"),
    "attends to another's": ("E N M r A L", "operation 4 attends to layer 0, .* from buffer 2"),
    "attends after a change": ("E N M R M A L", "operation 5 attends to layer 0, .* buffer 2"),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_programs_that_read_what_is_not_there(weights: Weights, flow: str) -> None:
    embedding, norm = weights["token_embd.weight"], weights["output_norm.weight"]
    q, k, v = (weights[f"blk.0.attn_{x}.weight"] for x in "qkv")
    order, words = FLOWS[flow]
    program = Program(Pool(1), 8, a_store())
    for width in (64, 64, 480, 480, 288):
        program.buffer(width)
    add: dict[str, Callable[[], None]] = {
        "E": lambda: program.embed(embedding, 0),
        "N": lambda: program.norm(0, norm, 1, 1e-5),
        "O": lambda: program.norm(0, norm, 1, 1e-5, outputs_only=True),
        "M": lambda: program.linear(1, [q, k, v], 2),
        "R": lambda: program.rope(2, -1, 0, 6, False),
        "r": lambda: program.rope(2, -1, 1, 6, False),
        "A": lambda: program.attend(2, 4, 0, 6, 1.0),
        "L": lambda: program.logits(1, embedding),
        "T": lambda: program.take(0),
        "t": lambda: program.append("take", "take", out=9),
        "G": lambda: program.append("give", "give", in_=0),
        "g": lambda: program.append("give", "give", in_=1),
    }
    with pytest.raises(ArgumentError, match=words):
        for letter in order.split():
            add[letter]()
        program.finish()
    program.close()


def test_a_program_that_is_finished_keeps_its_bounds(folder: Path) -> None:
    """What is refused afterwards, such as larger embeddings, does not change them."""
    model = tiny_models.llama()
    random = np.random.default_rng(1)
    model.tensors["larger"] = tiny_models.random_blocks(random, "F32", 5000, 64, 0.1)
    model.tensors["square"] = tiny_models.random_blocks(random, "F32", 64, 64, 0.1)
    with mmrt.open(model.write(folder / "larger.gguf")) as file:
        program = a_program(Weights(file))
        program.finish()
        with pytest.raises(ArgumentError, match="finished"):
            program.embed(file["larger"], 0)
        logits = np.zeros((1, 300), np.float32)
        with pytest.raises(ArgumentError, match="id 300 is not from 0 to 299"):
            program.run([Part(Cache(program.store), np.array([300], np.int32), 1)], logits)
        program.close()
        program = a_program(Weights(file))
        with pytest.raises(ArgumentError, match="operation 3: LOGITS or GIVE is the last one"):
            program.embed(file["larger"], 0)
        with pytest.raises(ArgumentError, match="operation 3: LOGITS or GIVE is the last one"):
            program.logits(1, file["larger"])
        program.close()
        program = Program(Pool(2), 8, a_store())
        program.buffer(64)
        program.embed(file["token_embd.weight"], 0)
        with pytest.raises(FormatError, match="larger"):
            program.embed(file["larger"], 0)
        with pytest.raises(FormatError, match="larger"):
            program.logits(0, file["larger"])
        program.close()
        program = Program(Pool(2), 8, a_store())
        program.buffer(64)
        program.embed(file["token_embd.weight"], 0)
        with pytest.raises(ArgumentError, match="operation 1 both reads and writes buffer 0"):
            program.linear(0, [file["square"]], 0)
        program.close()


def test_a_finished_or_closed_program_takes_no_more(weights: Weights) -> None:
    embedding = weights["token_embd.weight"]
    program = a_program(weights)
    program.finish()
    for state in ("finished", "closed"):
        for refused in (
            lambda: program.buffer(64),
            lambda: program.rope_table([1.0]),
            lambda: program.embed(embedding, 0),
            lambda: program.linear(0, [weights["blk.0.attn_q.weight"]], 1),
            program.finish,
        ):
            with pytest.raises(ArgumentError, match=state):
                refused()
        program.close()
