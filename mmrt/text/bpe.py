"""Byte-pair encoding: the two algorithms that GGUF vocabularies ask for.

The byte-level one is the `tokenizers` library's. SentencePiece's is our own: the library has it
only as ranked merges of pairs, which cannot say "leftmost of equal scores first", and which, worked
out for 262144 tokens, take 1.8 s to build and 72 MB to keep. Flat arrays take 7 MB and 0.35 s.
Merged words are cached, so the cost of merging in Python is paid once a distinct word.
"""

import importlib
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from typing import NamedTuple

from mmrt.errors import ArgumentError
from mmrt.text.words import WordRule

WORD_SEPARATOR = "\u2581"  # SentencePiece's visible stand-in for a space

_CACHED_WORDS = 4096
_LONGEST_CACHED_WORD = 48  # characters: longer "words" (CJK paragraphs) hardly ever come again

# The regular expressions go back once for each of them, and the library gives up, with a panic,
# when they have gone back ten million times.
_LONGEST_BLANK = 1_000_000


class Vocabulary:
    """Token texts packed end to end, with a hash table from text to id."""

    def __init__(self, texts: Sequence[str]) -> None:
        texts_joined = bytearray()
        self._ends = array("I", bytes(4 * (len(texts) + 1)))
        # Open addressing, half full at most; a slot holds id + 1, and 0 when it is empty.
        self._slots = array("I", bytes(4 << (2 * len(texts) - 1).bit_length()))
        self._mask = len(self._slots) - 1
        for token, text in enumerate(texts):
            texts_joined += text.encode("utf-8", "surrogateescape")
            self._ends[token + 1] = len(texts_joined)
        self._texts = bytes(texts_joined)
        for token in range(len(texts)):
            self._slots[self._slot(self.text(token))] = token + 1  # of twins, the last is found

    def __len__(self) -> int:
        return len(self._ends) - 1

    def text(self, token: int) -> bytes:
        """The text of a token as the file spells it, in UTF-8."""
        return self._texts[self._ends[token] : self._ends[token + 1]]

    def find(self, text: bytes) -> int | None:
        """The id of the token spelled `text`, or None."""
        found = self._slots[self._slot(text)]
        return found - 1 if found else None

    def _slot(self, text: bytes) -> int:
        """The slot that holds `text`, or the empty one where it belongs."""
        slot = hash(text) & self._mask
        while (held := self._slots[slot]) and self.text(held - 1) != text:
            slot = (slot + 1) & self._mask
        return slot


def merge(
    symbols: Iterable[bytes],
    join: Callable[[bytes, bytes], tuple[float, bytes] | None],
) -> list[bytes]:
    """Merge neighbours until none can be: lowest priority value first, leftmost among equals.

    `join(left, right)` gives (priority, merged symbol), or None when the two do not merge.
    """
    parts = list(symbols)
    count = len(parts)
    following = list(range(1, count + 1))  # -1 once a part is merged into the one before it
    preceding = list(range(-1, count - 1))
    queue: list[tuple[float, int, int, int, bytes]] = []

    def consider(left: int, right: int) -> None:
        if joined := join(parts[left], parts[right]):
            heappush(queue, (joined[0], left, right, following[right], joined[1]))

    for right in range(1, count):
        consider(right - 1, right)
    while queue:
        _, left, right, end, joined = heappop(queue)
        if following[left] != right or following[right] != end:
            continue  # one of the two has been merged elsewhere since
        parts[left] = joined
        following[left], following[right] = end, -1
        if end < count:
            preceding[end] = left
            consider(left, end)
        if preceding[left] >= 0:
            consider(preceding[left], left)

    merged = []
    part = 0
    while part < count:
        merged.append(parts[part])
        part = following[part]
    return merged


class SentencePieceModel:
    """BPE in the manner of SentencePiece: any two neighbours whose joint text is a token may
    merge, the token of the highest score first; what is left over is spelled in byte tokens.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: Iterable[float],
        unknown: int | None,
        unspelled: bytearray,
    ) -> None:
        """`unknown` stands for a character whose bytes have no tokens, or else nothing does;
        `unspelled` says of each token whether it is one that no text may become by merging."""
        self._vocabulary = vocabulary
        self._costs = array("f", (-score for score in scores))
        self._unspelled = unspelled
        self._unknown = unknown
        self._byte_tokens = [self._byte_token(byte) for byte in range(256)]
        self._word_start = _word_start(vocabulary)
        self._encode_cached = lru_cache(_CACHED_WORDS)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """The tokens of a stretch of plain text."""
        tokens: list[int] = []
        for word in self._word_start.split(text.replace(" ", WORD_SEPARATOR)):
            short = len(word) <= _LONGEST_CACHED_WORD
            tokens += self._encode_cached(word) if short else self._encode_word(word)
        return tokens

    def _encode_word(self, word: str) -> list[int]:
        tokens: list[int] = []
        for piece in merge([character.encode() for character in word], self._join):
            token = self._find(piece)
            tokens += [token] if token is not None else self._spell(piece)
        return tokens

    def _spell(self, piece: bytes) -> list[int]:
        """Byte tokens, or the unknown token if there are not all of them."""
        tokens = [token for byte in piece if (token := self._byte_tokens[byte]) is not None]
        if len(tokens) < len(piece) and self._unknown is not None:
            return [self._unknown]
        return tokens

    def _byte_token(self, byte: int) -> int | None:
        """The token of one byte, spelled out or bare."""
        found = (self._vocabulary.find(text) for text in (b"<0x%02X>" % byte, bytes([byte])))
        return next((token for token in found if token is not None), None)

    def _find(self, text: bytes) -> int | None:
        token = self._vocabulary.find(text)
        return None if token is None or self._unspelled[token] else token

    def _join(self, left: bytes, right: bytes) -> tuple[float, bytes] | None:
        joined = left + right
        token = self._find(joined)
        return None if token is None else (self._costs[token], joined)


def _word_start(vocabulary: Vocabulary) -> re.Pattern[str]:
    """Where a text may be cut without changing its tokens: before a separator, unless some token
    holds the separator after the same character (Gemma has one such token, `>▁</`).
    """
    separator = WORD_SEPARATOR
    crossed = {separator}
    for token in range(len(vocabulary)):
        text = vocabulary.text(token)
        if text.find(separator.encode(), 1) > 0:
            crossed.update(re.findall(f"(.)(?={separator})", text.decode("utf-8", "replace"), re.S))
    return re.compile(f"(?<=[^{re.escape(''.join(sorted(crossed)))}])(?={separator})")


def _byte_letters() -> str:
    """GPT-2's alphabet: a printable character for each byte, itself wherever that is printable."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(stand_ins)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def load_library() -> None:
    """Imports `tokenizers`. To be called before a vocabulary's lists are decoded: what an import
    allocates lasts, and among the lists it would keep their memory from being given back."""
    importlib.import_module("tokenizers")


class Merge(NamedTuple):
    """Two texts that become one. (Of plain tuples Python keeps thousands for reuse, scattered
    over two megabytes that it then cannot give back.)"""

    left: str
    right: str


class ByteLevelModel:
    """BPE in the manner of GPT-2, by the `tokenizers` library: a text is cut into words by regular
    expressions, and the bytes of each word are merged by rank; or its characters, if `as_written`.
    Those that the vocabulary lacks are left out, as elsewhere, unless bytes have tokens.
    """

    def __init__(
        self,
        texts: Sequence[str],
        vocabulary: dict[str, int],
        merges: Sequence[Merge],
        rule: WordRule,
        steering: bytearray,
    ) -> None:
        """`texts` by id, `vocabulary` the ids by text; `merges` with the most urgent first;
        `steering` says of each token whether it is one that no text may become by merging."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        # The library knows one id of each text, and none of the steering tokens; these are others.
        self._others: dict[int, str] = {}
        self._steering: dict[str, int] = {}
        for token, text in enumerate(texts):
            if vocabulary[text] != token:
                self._others[token] = text
            elif steering[token]:
                self._others[token] = text
                self._steering[text] = token
        for text in self._steering:
            del vocabulary[text]
        if gone := self._steering:
            merges = [
                merge
                for merge in merges
                if not (merge.left in gone or merge.right in gone)
                and merge.left + merge.right not in gone
            ]
        self.separated = rule.separated
        # Runs of newlines that are tokens, which no merge need make.
        blank = {text: token for text, token in vocabulary.items() if text and not text.strip("\n")}
        self._blank_lines = blank if rule.separated else {}
        bpe = models.BPE(
            vocabulary,
            merges,
            ignore_merges=rule.whole_words_first,
            byte_fallback=rule.separated,
        )
        cuts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns
        ]
        self.as_written = rule.as_written
        if not rule.as_written:
            cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._tokenizer = Tokenizer(bpe)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)

    def encode(self, text: str) -> list[int]:
        """The tokens of a stretch of plain text. Raises ArgumentError for one that the library
        cannot cut into words."""
        for blank in re.finditer(r"\s+", text) if len(text) > _LONGEST_BLANK else ():
            if blank.end() - blank.start() > _LONGEST_BLANK:
                raise ArgumentError(
                    f"more than {_LONGEST_BLANK} white-space characters in a row, from character "
                    f"{blank.start()} of the text"
                )
        if not self.separated:
            return self._merged(text)
        tokens: list[int] = []
        for piece in re.split(r"(\n+)", text.replace(" ", WORD_SEPARATOR)):
            whole = self._blank_lines.get(piece)
            tokens += self._merged(piece) if whole is None else [whole]
        return tokens

    def _merged(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # Rust's, and no Exception
                raise
            raise ArgumentError(f"the text cannot be cut into words: {error}") from None

    def text(self, token: int) -> bytes:
        """As Vocabulary.text."""
        return (self._others.get(token) or self._tokenizer.id_to_token(token) or "").encode()
