"""Byte-pair encoding: the same tokens as naive merging gives on small vocabularies."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import MERGES, PIECES, byte_level, sentence_piece

from mmrt.errors import ArgumentError
from mmrt.text.bpe import BYTE_LETTERS, Vocabulary
from mmrt.text.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer.from_metadata(byte_level(MERGES), "tiny")
SENTENCE_PIECE = Tokenizer.from_metadata(sentence_piece(PIECES), "tiny")


@pytest.mark.slow
@given(st.lists(st.text(max_size=3)), st.text(max_size=3))
def test_vocabulary_finds_what_a_dict_finds(texts: list[str], other: str) -> None:
    vocabulary = Vocabulary(texts)
    expected = {text: token for token, text in enumerate(texts)}
    assert len(vocabulary) == len(texts)
    assert [vocabulary.text(token).decode() for token in range(len(texts))] == texts
    for text in [*texts, other]:
        assert vocabulary.find(text.encode()) == expected.get(text)


small_texts = st.text(alphabet="abc é▁日", max_size=40)


def naive_sentence_piece(text: str) -> list[bytes]:
    scores = dict(PIECES)
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [a + b for a, b in itertools.pairwise(parts)]
        known = [(-scores[pair], place) for place, pair in enumerate(pairs) if pair in scores]
        if not known:
            break
        _, place = min(known)
        parts[place : place + 2] = [pairs[place]]
    return [
        token
        for part in parts
        for token in (
            [part.replace("▁", " ").encode()]
            if part in scores
            else [bytes([byte]) for byte in part.encode()]
        )
    ]


def naive_byte_level(word: str) -> list[bytes]:
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    parts = [BYTE_LETTERS[byte] for byte in word.encode()]
    while True:
        pairs = list(itertools.pairwise(parts))
        known = [(ranks[pair], place) for place, pair in enumerate(pairs) if pair in ranks]
        if not known:
            break
        _, place = min(known)
        parts[place : place + 2] = ["".join(pairs[place])]
    return [bytes(BYTE_LETTERS.index(letter) for letter in part) for part in parts]


@given(small_texts)
def test_sentence_piece_merges_like_the_naive_way(text: str) -> None:
    ids = SENTENCE_PIECE.encode(text, add_bos=False)
    assert [SENTENCE_PIECE.token_bytes(token) for token in ids] == naive_sentence_piece(text)


@given(st.text(alphabet="abcé", max_size=60))
def test_byte_level_merges_like_the_naive_way(letters: str) -> None:
    word = " " + letters  # one word to GPT-2's expression
    ids = BYTE_LEVEL.encode(word)
    expected = naive_byte_level(word if letters else " ")
    assert [BYTE_LEVEL.token_bytes(token) for token in ids] == expected


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gpt-2", "llama-bpe"])
def test_a_text_that_is_all_but_blank(rule: str) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(MERGES, pre=rule), "tiny")
    longest = "a" + " " * 1_000_000 + "a"
    assert tokenizer.decode(tokenizer.encode(longest)) == longest
    with pytest.raises(ArgumentError, match=r"more than 1000000 white-space .* character 1 of"):
        tokenizer.encode("a" + " " * 11_000_000 + "a")


@pytest.mark.parametrize(("pre", "run"), [("deepseek-llm", " "), ("afmoe", "1"), ("superbpe", "1")])
def test_long_runs_are_gone_through_once(pre: str, run: str) -> None:
    """Not once for each of their characters, which would take minutes."""
    tokenizer = Tokenizer.from_metadata(byte_level(MERGES, pre=pre), "tiny")
    text = run * 200_000 + "1"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_panic_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("retry-limit-in-match over")

    tokenizer = Tokenizer.from_metadata(byte_level(MERGES), "tiny")
    monkeypatch.setattr(tokenizer._model, "_tokenizer", SimpleNamespace(encode=panic))
    with pytest.raises(ArgumentError, match="cannot be cut into words: retry-limit"):
        tokenizer.encode("a")
