"""Vocabularies of Gemma 4: merges by rank of tokens that SentencePiece would spell."""

from typing import Any

import pytest
from vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

from mmrt.errors import ArgumentError, FormatError
from mmrt.text.tokenizer import StreamDecoder, Tokenizer

LETTERS = "abc▁é\n"
MERGES = ["b c", "a b", "ab c", "a bc", "▁ a", "▁ ▁", "▁▁ ▁▁", "a a", "▁a b", "\n \n"]
EXTRA = [("<|turn>", CONTROL), ("<turn|>", CONTROL), ("<h1>", USER_DEFINED), ("\n\n\n", NORMAL)]


def metadata(**fields: Any) -> dict[str, Any]:
    tokens = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += [(letter, NORMAL) for letter in LETTERS]
    made = dict.fromkeys(merge.replace(" ", "") for merge in MERGES)
    tokens += [(text, NORMAL) for text in made] + EXTRA
    texts, types = (list(column) for column in zip(*tokens, strict=True))
    named: dict[str, Any] = {
        "model": "gemma4",
        "tokens": texts,
        "token_type": types,
        "merges": MERGES,
    }
    named |= {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, **fields}
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(metadata(), "tiny")


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    names = metadata()["tokenizer.ggml.tokens"]
    return [names[token] for token in tokenizer.encode(text, add_bos=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", ["abc"]),  # "b c" ranks before "a b", and then comes "a bc"
        ("ab", ["ab"]),
        ("a ab", ["a", "▁", "ab"]),  # words are not cut: only ranks decide
        ("aa bc", ["aa", "▁", "bc"]),
        ("     a", ["▁▁▁▁", "▁a"]),
        ("é", ["é"]),
        ("\u20ac", ["<0xE2>", "<0x82>", "<0xAC>"]),
        ("a\nb", ["a", "\n", "b"]),
        ("\n\n", ["\n\n"]),
        ("\n\n\n", ["\n\n\n"]),  # whole, though no merges make it
        ("\n\n\n\n", ["\n\n", "\n\n"]),
        ("a<h1>b", ["a", "<h1>", "b"]),
        ("", []),
    ],
)
def test_tokens(text: str, expected: list[str], tokenizer: Tokenizer) -> None:
    assert spelled(tokenizer, text) == expected
    assert tokenizer.decode(tokenizer.encode(text)[1:]) == text


def test_ends_and_beginnings(tokenizer: Tokenizer) -> None:
    names = metadata()["tokenizer.ggml.tokens"]
    assert tokenizer.add_bos and tokenizer.encode("a")[0] == 2
    assert tokenizer.stop_ids == {1, names.index("<turn|>")}
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("<|turn>\u20ac a")
    assert "".join(decoder.feed(token) for token in ids) == "\u20ac a"


def test_no_way_of_cutting_words_is_asked_for() -> None:
    with pytest.raises(ArgumentError, match=r"^pre: tiny has a vocabulary"):
        Tokenizer.from_metadata(metadata(), "tiny", pre="gpt-2")


def test_tokens_that_are_never_to_be_written() -> None:
    named = Tokenizer.from_metadata(metadata(suppress_tokens=[4, 9]), "tiny")
    assert named.suppressed_ids == (4, 9)
    assert Tokenizer.from_metadata(metadata(), "tiny").suppressed_ids == ()
    for wrong in (-1, 10**6, 1.5, "4"):
        with pytest.raises(FormatError, match=r"tiny: tokenizer\.ggml\.suppress_tokens: .* at 1"):
            Tokenizer.from_metadata(metadata(suppress_tokens=[4, wrong]), "tiny")
