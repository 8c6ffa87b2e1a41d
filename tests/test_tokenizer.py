"""Tokenizers: ids equal to llama.cpp's, round trips, streaming, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import (
    CONTROL,
    MERGES,
    NORMAL,
    PIECES,
    USER_DEFINED,
    Metadata,
    byte_level,
    sentence_piece,
)

from mmrt.errors import ArgumentError, FormatError, UnsupportedError
from mmrt.tokenizer import StreamDecoder, Tokenizer

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("tokens.json").read_text())
TEXTS: list[str] = GOLDEN["texts"]
MODELS = ("smollm2", "gemma3")


def read_metadata(path: Path) -> Metadata:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name[:10] == "tokenizer."}


@pytest.fixture(scope="module")
def metadata(request: pytest.FixtureRequest) -> dict[str, Metadata]:
    """The metadata of each model at hand, read once."""
    return {name: read_metadata(request.getfixturevalue(f"{name}_path")) for name in MODELS}


@pytest.fixture(scope="module")
def tokenizers(metadata: dict[str, Metadata]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_metadata(metadata[name], name) for name in MODELS}


def differing(tokenizer: Tokenizer, expected: list[list[int]], **options: bool) -> list[str]:
    return [
        text
        for text, ids in zip(TEXTS, expected, strict=True)
        if tokenizer.encode(text, **options) != ids
    ]


# Against llama.cpp


@pytest.mark.parametrize("name", MODELS)
def test_ids_equal_llama_cpp(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer, expected = tokenizers[name], GOLDEN["models"][name]
    assert differing(tokenizer, expected["special"], add_bos=False) == []
    assert differing(tokenizer, expected["plain"], add_bos=False, parse_special=False) == []
    assert differing(tokenizer, expected["bos"]) == []


@pytest.mark.parametrize("name", GOLDEN["variants"])
def test_ids_of_variants_equal_llama_cpp(name: str, metadata: dict[str, Metadata]) -> None:
    variant = GOLDEN["variants"][name]
    fields = {**metadata[variant["model"]], **variant["changes"]}
    tokenizer = Tokenizer.from_metadata(fields, name)
    assert differing(tokenizer, variant["special"], add_bos=False) == []


def test_every_word_rule_is_recorded() -> None:
    from mmrt.words import WORD_RULES

    recorded = {name.removeprefix("pre ") for name in GOLDEN["variants"]} | {"smollm"}
    assert recorded >= WORD_RULES.keys()


def test_attributes_of_real_models(tokenizers: dict[str, Tokenizer]) -> None:
    smollm2, gemma3 = (tokenizers[name] for name in MODELS)
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_id) == (49152, 1, 2)
    assert (gemma3.vocab_size, gemma3.bos_id, gemma3.eos_id) == (262144, 2, 1)
    assert smollm2.stop_ids == {0, 2}  # <|endoftext|>, <|im_end|>
    assert gemma3.stop_ids == {1, 106}  # <eos>, <end_of_turn>
    assert not smollm2.add_bos and gemma3.add_bos


def test_smollm2_round_trips(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["smollm2"]
    single = {tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    for text in TEXTS:
        known = bytes(byte for byte in text.encode() if bytes([byte]) in single)  # not all are
        assert tokenizer.decode(tokenizer.encode(text)) == known.decode("utf-8", "replace")


def test_gemma3_round_trips(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["gemma3"]
    for text in TEXTS:
        # SentencePiece cannot tell a U+2581 from a space.
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text.replace("▁", " ")


# Small vocabularies

BYTE_LEVEL = Tokenizer.from_metadata(byte_level(MERGES), "tiny")
SENTENCE_PIECE = Tokenizer.from_metadata(sentence_piece(PIECES), "tiny")


@given(st.text())
def test_byte_level_round_trips_any_text(text: str) -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


@given(st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_sentence_piece_round_trips_any_text(text: str) -> None:
    assert SENTENCE_PIECE.decode(SENTENCE_PIECE.encode(text, add_bos=False)) == text


def test_space_prefix_comes_after_each_special_and_goes_at_the_start() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece(PIECES, add_space_prefix=True), "tiny")
    ids = tokenizer.encode("ab</s>c")
    assert b"|".join(map(tokenizer.token_bytes, ids)) == b"<s>| ab|</s>| |c"
    assert tokenizer.decode(ids, skip_special=True) == "ab c"
    assert tokenizer.decode(tokenizer.encode("  ab"), skip_special=True) == "  ab"
    assert tokenizer.encode("") == [tokenizer.bos_id]


def test_missing_bytes_are_unknown() -> None:
    metadata = sentence_piece(PIECES)
    metadata["tokenizer.ggml.tokens"][3 + 0xE6] = "gone"  # the first byte of 日
    tokenizer = Tokenizer.from_metadata(metadata, "tiny")
    assert tokenizer.encode("日", add_bos=False)[0] == 0


# Special tokens

SPECIALS = [
    ("<|im_end|>", NORMAL),  # a converter's mistake: it ends a turn all the same
    ("<|im_start|>", CONTROL),
    ("\n\n", USER_DEFINED),
    ("xyz", USER_DEFINED),
    ("zzxyzz", USER_DEFINED),
    ("wzzx", USER_DEFINED),
]


def special_texts(text: str, **options: bool) -> list[bytes]:
    tokenizer = Tokenizer.from_metadata(byte_level([], SPECIALS), "tiny")
    ids = tokenizer.encode(text, **options)
    return [tokenizer.token_bytes(token) for token in ids if token >= 256]


def test_control_tokens_are_parsed_on_demand_only() -> None:
    text = "<|im_start|>a\n\n<|im_end|>"
    assert special_texts(text) == [b"<|im_start|>", b"\n\n", b"<|im_end|>"]
    assert special_texts(text, parse_special=False) == [b"\n\n"]


def test_the_longest_special_takes_its_place_first() -> None:
    assert special_texts("xyzz") == [b"xyz"]
    assert special_texts("wzzxyzz") == [b"zzxyzz"]  # leftmost would be wzzx


def test_skip_special_hides_control_tokens_only() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level([], SPECIALS), "tiny")
    ids = tokenizer.encode("<|im_start|>a\n\nb<|im_end|>")
    assert tokenizer.decode(ids, skip_special=True) == "a\n\nb"
    assert tokenizer.decode(ids) == "<|im_start|>a\n\nb<|im_end|>"


def test_bos_and_eos_are_added_as_the_model_says() -> None:
    ids: Metadata = {"bos_token_id": 1, "eos_token_id": 2}
    both = byte_level([], **ids, add_bos_token=True, add_eos_token=True)
    assert Tokenizer.from_metadata(both, "tiny").encode("a") == [1, 97, 2]
    assert Tokenizer.from_metadata(both, "tiny").encode("a", add_bos=False) == [97]
    assert Tokenizer.from_metadata(byte_level([], **ids), "tiny").encode("a") == [97]
    llama3 = byte_level([], **ids, pre="llama-bpe")
    assert Tokenizer.from_metadata(llama3, "tiny").encode("a") == [1, 97]
    nowhere = byte_level([], add_bos_token=True)
    assert Tokenizer.from_metadata(nowhere, "tiny").encode("a") == [97]


def test_stop_ids_come_from_fields_and_from_well_known_texts() -> None:
    metadata = byte_level([], SPECIALS, eos_token_id=5, eot_token_id=6, eom_token_id=7)
    assert Tokenizer.from_metadata(metadata, "tiny").stop_ids == {5, 6, 7, 256}


def test_whole_words_come_first_where_the_rule_says() -> None:
    merges = ["a b", "c d"]  # nothing makes "abcd" of these
    for pre, expected in ("llama-bpe", [b"abcd"]), ("qwen2", [b"ab", b"cd"]):
        metadata = byte_level(merges, [("abcd", NORMAL)], pre=pre)
        tokenizer = Tokenizer.from_metadata(metadata, "tiny")
        assert [tokenizer.token_bytes(token) for token in tokenizer.encode("abcd")] == expected


# Streaming


@given(st.lists(st.integers(0, 255)))
def test_stream_equals_whole_decode(ids: list[int]) -> None:
    decoder = StreamDecoder(BYTE_LEVEL)
    pieces = [decoder.feed(token) for token in ids]
    assert "".join([*pieces, decoder.finish()]) == BYTE_LEVEL.decode(ids)


@given(st.text())
def test_stream_gives_whole_characters_only(text: str) -> None:
    decoder = StreamDecoder(BYTE_LEVEL)
    pieces = [decoder.feed(token) for token in BYTE_LEVEL.encode(text)]
    assert "".join(pieces) == text
    assert decoder.finish() == ""


def test_stream_finish_flushes_and_starts_anew() -> None:
    decoder = StreamDecoder(BYTE_LEVEL)
    assert [decoder.feed(token) for token in BYTE_LEVEL.encode("日")[:-1]] == ["", ""]
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(BYTE_LEVEL.encode("b")[0]) == "b"


def test_stream_shows_no_control_tokens() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level([], SPECIALS), "tiny")
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("<|im_start|>a\n\n<|im_end|>")
    assert "".join(decoder.feed(token) for token in ids) == "a\n\n"


# What is refused


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_out_of_range_are_refused(token: int) -> None:
    with pytest.raises(ArgumentError, match=f"token {token}"):
        BYTE_LEVEL.token_bytes(token)
    with pytest.raises(ArgumentError):
        BYTE_LEVEL.decode([0, token])
    with pytest.raises(ArgumentError):
        StreamDecoder(BYTE_LEVEL).feed(token)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ArgumentError, match="character 1"):
        BYTE_LEVEL.encode("a\ud800")


MISSING = object()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", MISSING),
        ("model", 3),
        ("tokens", MISSING),
        ("tokens", []),
        ("tokens", "abc"),
        ("tokens", ["a", 1, "b"]),
        ("token_type", [NORMAL]),
        ("token_type", ["x"] * 257),
        ("token_type", [99] * 257),
        ("token_type", [-1] * 257),
        ("merges", MISSING),
        ("merges", ["a b", "ab"]),
        ("merges", ["ab "]),
        ("merges", [" ab"]),
        ("merges", ["a c"]),
        ("merges", ["a b c"]),
        ("merges", [7]),
        ("pre", 1),
        ("bos_token_id", 257),
        ("eos_token_id", -1),
        ("eot_token_id", "2"),
        ("add_bos_token", "yes"),
        ("add_eos_token", 1.5),
    ],
)
def test_malformed_byte_level_metadata(field: str, value: object) -> None:
    check_malformed(byte_level(["a b"]), field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scores", MISSING),
        ("scores", [0.0]),
        ("scores", ["x"] * (259 + len(PIECES))),
        ("scores", [float("nan")] * (259 + len(PIECES))),
        ("unknown_token_id", 10**9),
        ("add_space_prefix", 2),
    ],
)
def test_malformed_sentence_piece_metadata(field: str, value: object) -> None:
    check_malformed(sentence_piece(PIECES), field, value)


def check_malformed(metadata: Metadata, field: str, value: object) -> None:
    name = f"tokenizer.ggml.{field}"
    if value is MISSING:
        del metadata[name]
    else:
        metadata[name] = value
    with pytest.raises(FormatError, match=f"broken.gguf: {name}: "):
        Tokenizer.from_metadata(metadata, "broken.gguf")


@pytest.mark.parametrize(("field", "value"), [("model", "rwkv"), ("pre", "no-such-thing")])
def test_unknown_kinds_are_named(field: str, value: str) -> None:
    metadata = {**byte_level([]), f"tokenizer.ggml.{field}": value}
    with pytest.raises(UnsupportedError, match=f"tiny: tokenizer.ggml.{field}: .*{value}"):
        Tokenizer.from_metadata(metadata, "tiny")


def test_importing_does_not_import_the_tokenizers_library() -> None:
    check = "import sys, mmrt.tokenizer; sys.exit('tokenizers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[1]).returncode == 0
    )
