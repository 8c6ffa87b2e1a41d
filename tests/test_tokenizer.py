"""Tokenizers: ids equal to llama.cpp's, round trips, streaming, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import (
    BYTE,
    CONTROL,
    MERGES,
    NORMAL,
    PIECES,
    UNKNOWN,
    USER_DEFINED,
    Metadata,
    byte_level,
    sentence_piece,
)

from mmrt.errors import ArgumentError, FormatError, UnsupportedError
from mmrt.text.tokenizer import StreamDecoder, Tokenizer

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("tokens.json").read_text())
TEXTS: list[str] = GOLDEN["texts"]
MODELS = ("smollm2", "gemma3")
assert len(TEXTS) >= 60


def read_metadata(path: Path) -> Metadata:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name[:10] == "tokenizer."}


@pytest.fixture(scope="module")
def metadata(smollm2_path: Path, gemma3_path: Path) -> dict[str, Metadata]:
    """The metadata of each model, read once."""
    return {"smollm2": read_metadata(smollm2_path), "gemma3": read_metadata(gemma3_path)}


@pytest.fixture(scope="module")
def tokenizers(metadata: dict[str, Metadata]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_metadata(metadata[name], name) for name in MODELS}


def differing(tokenizer: Tokenizer, expected: list[list[int]], **options: Any) -> list[str]:
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
    same = variant["special"]
    ids = GOLDEN["variants"][same]["special"] if isinstance(same, str) else same
    assert differing(tokenizer, ids, add_bos=False) == []


def test_ids_of_a_coder_equal_llama_cpp(coder_path: Path) -> None:
    """Where </s> is spelled they differ: llama.cpp takes it for the end of a text, and to Qwen it
    is a word."""
    tokenizer = Tokenizer.from_metadata(read_metadata(coder_path), "coder")
    expected = GOLDEN["models"]["coder"]
    assert differing(tokenizer, expected["plain"], add_bos=False, parse_special=False) == []
    for name, add_bos in ("special", False), ("bos", True):
        assert all(
            "]</s>" in text for text in differing(tokenizer, expected[name], add_bos=add_bos)
        )


def test_every_word_rule_is_recorded() -> None:
    from mmrt.text.words import WORD_RULES

    recorded = {name.removeprefix("pre ") for name in GOLDEN["variants"]}
    assert recorded | {"smollm", "whitespace"} >= WORD_RULES.keys()


CUTS: dict[str, tuple[str, list[str]]] = {
    "gpt-4o": (
        "HelloWorld café'S IT'S don't 1234567 a/b//\n\n  x ÉCOLE École हिन्दी 漢字かな",
        [
            *("Hello", "World", " café'S", " IT'S", " don't", " ", "123", "456", "7", " a", "/b"),
            *("//\n\n", " ", " x", " ÉCOLE", " École", " हिन्दी", " 漢字かな"),
        ],
    ),
    "tekken": (
        "HelloWorld don't 1234 ÀB c\u0301d",
        [*("Hello", "World", " don", "'t", " "), *"1234", *(" ÀB", " c\u0301d")],
    ),
    "qwen35": (
        "we're c\u0301d हिन्दी 12 !!\n\nx",
        ["we", "'re", " c\u0301d", " हिन्दी", " ", "1", "2", " !!\n\n", "x"],
    ),
    "seed-coder": ("It'S 12 !!\n\nx Да", ["It", "'S", " ", "1", "2", " !!", "\n\n", "x", " Да"]),
    "glm4": ("it's 12345 ok!!\n\nx", ["it", "'s", " ", "123", "45", " ok", "!!\n\n", "x"]),
    "exaone4": ("it's 12345 ok!!\n\nx", ["it", "'s", " 12345", " ok", "!!", "\n", "\n", "x"]),
    "kimi-k2": (
        "It's漢字HelloWorld IT'S 12345 é漢ab //\nかな漢",
        [
            *("It's", "漢字", "HelloWorld", " IT'S", " ", "123", "45", " é", "漢", "ab"),
            *(" //\n", "かな", "漢"),
        ],
    ),
    "youtu": (
        "한글 漢字かなAB、、ㄅ12 don't\n",
        ["한글", " ", "漢字かな", "AB", "、、", "ㄅ", "1", "2", " don't", "\n"],
    ),
    "tiny_aya": (
        "1234567 don't 12345a École",
        ["1", "234", "567", " don't", " ", "12", "345", "a", " École"],
    ),
    "granite-embed-multi-97m": ("c\u0301dE 1234", ["c\u0301d", "E", " ", "123", "4"]),
    "jais-2": (
        "it's" + " " * 7 + "x" + " " * 6 + "\n1234",
        ["it", "'s", " " * 4, " " * 2, " x", " " * 6 + "\n", "123", "4"],
    ),
    "chameleon": (
        "IMGIMGACZa    b  12, (c)",
        ["IMGIMGACZ", "a", "    ", "b", "  ", "1", "2", ",", " ", "(", "c", ")"],
    ),
    "whitespace": (" it's  12\n", [" ", "it's", "  ", "12", "\n"]),
    "deepseek-llm": (
        "it's 1234, ½ 漢字かな  \nхорошо  ",
        ["it", "'", "s", " ", "1234", ",", " ", "½", " ", "漢字かな", "  ", "\n", "хорошо", "  "],
    ),
    "command-r": ("it's 123 x", ["it", "'s", " ", "1", "2", "3", " x"]),
}


@pytest.mark.parametrize("pre", CUTS)
def test_how_words_are_cut(pre: str) -> None:
    """Each alone, as the patterns of the models' makers cut them: a vocabulary with tokens for all
    of these words gives one for each, and none that goes over a cut."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Sequence, Split

    from mmrt.text.words import WORD_RULES

    text, expected = CUTS[pre]
    rule = Sequence([Split(Regex(pattern), "isolated") for pattern in WORD_RULES[pre].patterns])
    assert [word for word, _ in rule.pre_tokenize_str(text)] == expected


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


def test_characters_without_tokens_are_unknown_or_left_out() -> None:
    metadata: Metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a", "?", b"\xc3".decode("utf-8", "surrogateescape"), "<0xA9>"],
        "tokenizer.ggml.token_type": [NORMAL, UNKNOWN, BYTE, BYTE],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = Tokenizer.from_metadata(metadata, "tiny")
    assert tokenizer.encode("a日a") == [0, 1, 0]
    assert tokenizer.encode("aéa") == [0, 2, 3, 0]  # of a bare byte and one spelled out
    assert tokenizer.decode([2, 3]) == "é"
    metadata["tokenizer.ggml.token_type"][1] = NORMAL
    assert Tokenizer.from_metadata(metadata, "tiny").encode("a日a") == [0, 0]


def test_scores_that_are_missing_are_all_alike() -> None:
    metadata = sentence_piece([("ab", -1.0), ("bc", -0.5), *[(c, 0.0) for c in "abc"]])
    del metadata["tokenizer.ggml.scores"]
    tokenizer = Tokenizer.from_metadata(metadata, "tiny")
    ids = tokenizer.encode("abc", add_bos=False)
    assert [tokenizer.token_bytes(token) for token in ids] == [b"ab", b"c"]


@pytest.mark.parametrize("value", [-1, 2**32 - 1, 99999])
@pytest.mark.parametrize("field", ["bos", "eos", "eot", "eom", "unknown", "padding", "fim_pad"])
def test_ids_that_name_no_token_count_as_missing(field: str, value: int) -> None:
    made = sentence_piece(PIECES), byte_level(MERGES)
    for metadata in made:
        usual = Tokenizer.from_metadata(metadata, "tiny")
        metadata[f"tokenizer.ggml.{field}_token_id"] = value
        tokenizer = Tokenizer.from_metadata(metadata, "tiny")
        assert tokenizer.encode("ab") == usual.encode("ab")
        assert (tokenizer.bos_id, tokenizer.eos_id) == (usual.bos_id, usual.eos_id)
        assert tokenizer.stop_ids == usual.stop_ids


def test_flags_may_be_numbers() -> None:
    metadata = byte_level([], bos_token_id=1, add_bos_token=1)
    assert Tokenizer.from_metadata(metadata, "tiny").encode("a") == [1, 97]


@pytest.mark.parametrize("name", ["Phi-3 mini", "Phi 3.5 Mini Instruct", "phi3"])
def test_white_space_behind_special_tokens_of_phi3_is_theirs(name: str) -> None:
    extra = [("<|user|>", CONTROL), ("<|endoftext|>", CONTROL), ("<|end|>", CONTROL)]
    metadata = sentence_piece(PIECES, extra, add_space_prefix=True)
    text = "<|user|>\n ab <|end|>\n<|endoftext|> <s> a"

    def pieces() -> bytes:
        tokenizer = Tokenizer.from_metadata(metadata, "tiny")
        return b"|".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_bos=False)))

    assert pieces() == b"<|user|>| |\n| ab| |<|end|>| |\n|<|endoftext|>|  |<s>| | a"
    metadata["general.name"] = name
    assert pieces() == b"<|user|>| ab| |<|end|>|<|endoftext|>|  |<s>| | a"


def test_a_continuation_gets_no_space_before_it() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece(PIECES, add_space_prefix=True), "tiny")
    a = tokenizer.encode("a", add_bos=False)
    assert tokenizer.decode([*a, *tokenizer.encode("b", False, after=a[-1])]) == "ab"
    # After a special token it is as within one text.
    assert tokenizer.encode("b", False, after=1) == tokenizer.encode("<s>b", False)[1:]
    assert tokenizer.encode("</s>b", False, after=a[-1]) == tokenizer.encode("</s>b", False)


def test_merging_never_makes_a_control_token() -> None:
    pieces = [*PIECES, *[(c, -9.0) for c in "<s>/x"], ("<s", -1.0), ("</", -1.0), ("s>", -1.0)]
    tokenizer = Tokenizer.from_metadata(sentence_piece([*pieces, ("<0x", -1.0)]), "tiny")
    for text in ("<s>", "</s>", "<unk>", "<0x41>"):
        ids = tokenizer.encode(text, add_bos=False, parse_special=False)
        assert not any(map(tokenizer.is_special, ids))
        assert tokenizer.decode(ids) == text
    for rule in ("gpt-2", "llama-bpe"):  # merged, or taken whole
        metadata = byte_level(["a b", "c d"], [("cc", CONTROL)], pre=rule)
        metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.tokens"].index("ab")] = 3
        tokenizer = Tokenizer.from_metadata(metadata, "tiny")
        for text in ("ab", "cc", "cd"):
            ids = tokenizer.encode(text, parse_special=False)
            assert [tokenizer.token_bytes(token) for token in ids] == (
                [b"cd"] if text == "cd" else [c.encode() for c in text]
            )
        assert len(tokenizer.encode("ab")) == len(tokenizer.encode("cc")) == 1
        assert tokenizer.decode(tokenizer.encode("abcc")) == "abcc"


# Special tokens

SPECIALS = [
    ("<|im_end|>", NORMAL),  # a converter's mistake: it ends a turn all the same
    ("<|im_start|>", CONTROL),
    ("\n\n", USER_DEFINED),
    ("xyz", USER_DEFINED),
    ("zzxyzz", USER_DEFINED),
    ("wzzx", USER_DEFINED),
]


def special_texts(text: str, **options: Any) -> list[bytes]:
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


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize(
    "text", ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<turn|>", "<|endoftext|>", "<eos>"]
)
def test_ends_are_known_by_their_text(text: str, kind: int) -> None:
    for metadata, first in (
        (byte_level([], [(text, kind)]), 256),
        (sentence_piece([], [(text, kind)]), 259),
    ):
        assert first in Tokenizer.from_metadata(metadata, "tiny").stop_ids


def test_ends_of_a_part_do_not_end_the_text() -> None:
    def stops(*texts: str) -> set[str]:
        extra = [(text, CONTROL) for text in texts]
        tokenizer = Tokenizer.from_metadata(byte_level([], extra), "tiny")
        return {tokenizer.token_bytes(token).decode() for token in tokenizer.stop_ids}

    assert stops("<|end|>", "<|return|>") == {"<|end|>", "<|return|>"}
    assert stops("<|end|>", "<|return|>", "<|call|>") == {"<|return|>", "<|call|>"}
    assert stops("<|end|>", "<|flush|>", "<|calls|>") == {"<|flush|>", "<|calls|>"}


def test_an_end_that_is_a_tag_elsewhere_counts_where_it_is_a_control_token() -> None:
    chatml = [("<|im_end|>", CONTROL)]
    metadata = sentence_piece([], chatml, eos_token_id=259)
    assert Tokenizer.from_metadata(metadata, "tiny").stop_ids == {2, 259}
    metadata["tokenizer.ggml.token_type"][2] = USER_DEFINED  # as in Gemma's vocabulary
    assert Tokenizer.from_metadata(metadata, "tiny").stop_ids == {259}


def test_a_way_of_cutting_words_in_place_of_the_files() -> None:
    merges = ["1 2", "3 4"]
    for said in ("of-tomorrow", "gpt-2", 7):
        metadata = byte_level(merges, pre=said)
        for pre, expected in ("gpt-2", [b"12", b"34"]), ("qwen2", [b"1", b"2", b"3", b"4"]):
            tokenizer = Tokenizer.from_metadata(metadata, "tiny", pre)
            assert [tokenizer.token_bytes(token) for token in tokenizer.encode("1234")] == expected
    unknown = r"^tiny: tokenizer\.ggml\.pre: unknown .* 'of-tomorrow'; Model\(pre=\.\.\.\) or --pre"
    with pytest.raises(UnsupportedError, match=unknown + " .*, gpt-2, .*, qwen2, "):
        Tokenizer.from_metadata(byte_level(merges, pre="of-tomorrow"), "tiny")
    for wrong in ("of-tomorrow", "", 7):
        with pytest.raises(ArgumentError, match=r"^pre: there is no .*; there are .*, qwen2, "):
            Tokenizer.from_metadata(metadata, "tiny", wrong)  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentError, match=r"^pre: tiny has a vocabulary for which a text is not cut into words"
    ):
        Tokenizer.from_metadata(sentence_piece(PIECES), "tiny", "qwen2")


def test_tokens_that_are_spelled_as_they_are_written() -> None:
    texts = ["a", "b", "é", "ab", "abé", "日"]
    metadata = byte_level([], pre="whitespace")
    metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"] = texts, ["a b", "ab é"]
    metadata["tokenizer.ggml.token_type"] = [NORMAL] * len(texts)
    tokenizer = Tokenizer.from_metadata(metadata, "tiny")
    assert tokenizer.encode(" abé\n日ü b") == [4, 5, 1]
    assert tokenizer.decode([4, 5, 2]) == "abé日é"


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
    with pytest.raises(ArgumentError, match=f"token: {token} is not a whole number from 0 to "):
        BYTE_LEVEL.token_bytes(token)
    with pytest.raises(ArgumentError):
        BYTE_LEVEL.decode([0, token])
    with pytest.raises(ArgumentError):
        StreamDecoder(BYTE_LEVEL).feed(token)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ArgumentError, match="character 1"):
        BYTE_LEVEL.encode("a\ud800")
    with pytest.raises(ArgumentError, match=r"the text is not UTF-8: byte 0xfe at character 2"):
        BYTE_LEVEL.encode("ab\udcfe")


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
        ("eos_token_id", True),
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
        ("scores", [0.0]),
        ("scores", ["x"] * (259 + len(PIECES))),
        ("scores", [float("nan")] * (259 + len(PIECES))),
        ("unknown_token_id", 1.5),
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
    check = "import sys, mmrt.text.tokenizer; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=command.HOME).returncode == 0
