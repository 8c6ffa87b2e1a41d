"""From text to token ids and back, with the vocabulary that a GGUF file carries.

The ids equal llama.cpp's, which is what models converted to GGUF are tested with; the tests hold
this on recorded strings. Three kinds of vocabulary are known, by tokenizer.ggml.model: `gpt2`
(byte-level BPE; the text is first cut into words as tokenizer.ggml.pre says), `llama`
(SentencePiece BPE) and `gemma4` (merges by rank of tokens as SentencePiece spells them). The
algorithms are in bpe.py.
"""

import codecs
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any

from mmrt.core.arguments import choice, flag, instance, token_ids, whole
from mmrt.errors import ArgumentError, FormatError, UnsupportedError
from mmrt.text.bpe import (
    LETTER_BYTES,
    WORD_SEPARATOR,
    ByteLevelModel,
    Merge,
    SentencePieceModel,
    Vocabulary,
    load_library,
)
from mmrt.text.standins import significant, spelling
from mmrt.text.words import GEMMA4, WORD_RULES, WordRule

__all__ = ["StreamDecoder", "Tokenizer", "require_pre", "require_utf8"]


class _Kind(IntEnum):
    """tokenizer.ggml.token_type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Ends of a turn or of the text, whatever token_type says of them.
_STOP_TEXTS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_sentence|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|tool_response>",
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
)

# Beside both tokens of a pair, <|end|> ends a part of the answer (the thoughts), not the answer.
_PARTED = (("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>"))

# The end of a text in most SentencePiece vocabularies, and in Gemma's an HTML tag: a stop by its
# text only where it is a control token, but nothing that plain text may spell in either.
_END_OR_TAG = "</s>"

_STOP_FIELDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_STEERING = frozenset((_Kind.CONTROL, _Kind.UNKNOWN))
_MATCHED_FIRST = _STEERING | {_Kind.USER_DEFINED}
_WHITE_SPACE = " \t\n\v\f\r"  # as C has it


class Tokenizer:
    """A model's vocabulary. Build it with `Tokenizer.from_metadata`; safe to use from any thread.

    Attributes: `vocab_size`; `bos_id` and `eos_id` (None where the model has none); `add_bos` and
    `add_eos` (whether the model wants them); `stop_ids` (tokens after which a text has ended);
    `suppressed_ids` (those that the model is never to write, such as the ends of pictures).
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    add_eos: bool
    stop_ids: frozenset[int]
    suppressed_ids: tuple[int, ...]

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], source: str, pre: str | None = None
    ) -> "Tokenizer":
        """The tokenizer described by a GGUF file's `metadata`; nothing of it is kept alive.

        `source` names the file in error messages; `pre` stands in place of its tokenizer.ggml.pre,
        which says how words are cut. Raises FormatError when a field is missing or makes no sense,
        UnsupportedError for a kind of vocabulary or way of cutting words that mmrt does not know,
        ArgumentError for such a `pre`, or one where the vocabulary needs none.
        """
        return cls(_Fields(metadata, source, require_pre(pre)))

    def __init__(self, fields: "_Fields") -> None:
        kind = fields.text("model")
        if kind not in ("gpt2", "llama", "gemma4"):
            raise UnsupportedError(fields.complaint("model", f"unknown vocabulary {kind!r}"))
        sentence_piece = kind == "llama"
        if kind != "gpt2":
            fields.refuse_pre()
        if not sentence_piece:
            load_library()
        texts = fields.strings("tokens")
        if not texts:
            raise FormatError(fields.complaint("tokens", "the list is empty"))
        self.vocab_size = len(texts)
        self._kinds = fields.kinds("token_type", self.vocab_size)
        self._found_specials: list[tuple[str, int]] | None = None
        self.bos_id = fields.token("bos_token_id", self.vocab_size, 1 if sentence_piece else None)
        self.eos_id = fields.token("eos_token_id", self.vocab_size, 2 if sentence_piece else None)
        self._space_prefix = sentence_piece and fields.flag("add_space_prefix", True)
        self._model: SentencePieceModel | ByteLevelModel
        self._vocabulary: Vocabulary | ByteLevelModel
        if sentence_piece:
            add_bos = True
            self._vocabulary = vocabulary = Vocabulary(texts)
            self.stop_ids = self._find_stops(fields, lambda text: vocabulary.find(text.encode()))
            self._model = SentencePieceModel(
                vocabulary,
                fields.scores("scores", self.vocab_size),
                fields.token("unknown_token_id", self.vocab_size, self._first_unknown()),
                bytearray(k in _STEERING or k == _Kind.BYTE for k in self._kinds),
            )
        else:
            rule = GEMMA4 if kind == "gemma4" else fields.word_rule("pre")
            add_bos = rule.add_bos
            ids = {text: token for token, text in enumerate(texts)}
            self.stop_ids = self._find_stops(fields, ids.get)
            merges = fields.merges("merges", ids)
            steering = bytearray(kind in _STEERING for kind in self._kinds)
            self._vocabulary = self._model = ByteLevelModel(texts, ids, merges, rule, steering)
        self.add_bos = fields.flag("add_bos_token", add_bos) and self.bos_id is not None
        self.add_eos = fields.flag("add_eos_token", False) and self.eos_id is not None
        self.suppressed_ids = fields.ids("suppress_tokens", self.vocab_size)
        self._swallowing = fields.is_of_phi3()

    def _first_unknown(self) -> int | None:
        """The unknown token, where no field names it."""
        return next((t for t, kind in enumerate(self._kinds) if kind == _Kind.UNKNOWN), None)

    def __repr__(self) -> str:
        return f"<Tokenizer of {self.vocab_size} tokens>"

    def _find_stops(self, fields: "_Fields", find: Callable[[str], int | None]) -> frozenset[int]:
        """The tokens that end a text, by fields and by text; `find` gives the id of a text."""
        named = {fields.token(f"{name}_token_id", self.vocab_size, None) for name in _STOP_FIELDS}
        stops = {self.eos_id} | named
        for text in _STOP_TEXTS:
            token = find(text)
            if token is not None:
                # Some converters leave such tokens `normal`: then no prompt could name them.
                self._kinds[token] = _Kind.CONTROL
                stops.add(token)
        if any(find(one) is not None and find(other) is not None for one, other in _PARTED):
            stops.discard(find("<|end|>"))
        end = find(_END_OR_TAG)
        if end is not None and self._kinds[end] == _Kind.CONTROL:
            stops.add(end)
        return frozenset(token for token in stops if token is not None)

    @property
    def _specials(self) -> list[tuple[str, int]]:
        """(text, id) of the tokens that are matched before any merging, the longest first.

        Made when first used, of new strings: each one kept of the vocabulary's list would keep a
        page of memory around it from being given back. No cached_property: before Python 3.12 it
        has a lock, which a forked child might inherit locked.
        """
        if self._found_specials is None:
            self._found_specials = self._find_specials()
        return self._found_specials

    def _find_specials(self) -> list[tuple[str, int]]:
        specials = [
            (self._vocabulary.text(token).decode("utf-8", "surrogateescape"), token)
            for token, kind in enumerate(self._kinds)
            if kind in _MATCHED_FIRST
        ]
        # By length in bytes; those that are equal stay in the order of their ids.
        specials.sort(key=lambda special: -len(special[0].encode("utf-8", "surrogateescape")))
        return [(text, token) for text, token in specials if text]

    @cached_property
    def steering_characters(self) -> frozenset[str]:
        """A few characters without which no control token can be spelled."""
        return significant(self._control_tokens())

    @cached_property
    def spelling_characters(self) -> frozenset[str]:
        """The characters that control tokens are spelled with, but for white space and quotes."""
        return spelling(self._control_tokens())

    def _control_tokens(self) -> list[str]:
        return [text for text, token in self._specials if self._steers(text, token)]

    def _steers(self, text: str, token: int) -> bool:
        return self.is_special(token) or text == _END_OR_TAG

    def encode(
        self,
        text: str,
        add_bos: bool = True,
        parse_special: bool = True,
        *,
        after: int | None = None,
        guarded: str | None = None,
    ) -> list[int]:
        """The token ids of `text`.

        With `add_bos`, the tokens that the model wants at the start and the end are put there.
        Without `parse_special`, control tokens spelled in the text (`<|im_end|>`) are plain text,
        as text from strangers should be; tokens that the model's makers added as mere vocabulary
        ("user-defined": Gemma's runs of newlines, for example) are matched in either case.
        after: the token that the text goes on from, if it does not begin a text: a vocabulary that
        puts a space before a text puts none before its continuation. guarded: `text` again, as
        long, with other characters wherever no control token is to be found in it.
        Raises ArgumentError when `text` holds a lone surrogate, which UTF-8 cannot spell.
        """
        flag("add_bos", add_bos)
        flag("parse_special", parse_special)
        require_utf8(text)
        tokens: list[int] = []
        if add_bos and self.add_bos and self.bos_id is not None:
            tokens.append(self.bos_id)
        starts = after is None or self.is_special(after)
        for fragment in self._split_at_specials(text, guarded or text, parse_special):
            if isinstance(fragment, int):
                tokens.append(fragment)
            else:
                prefix = " " if starts and self._space_prefix else ""
                tokens += self._model.encode(prefix + fragment)
            starts = True
        if add_bos and self.add_eos and self.eos_id is not None:
            tokens.append(self.eos_id)
        return tokens

    def at_controls(self, text: str) -> list[str | int]:
        """`text` in stretches, and the ids of the control tokens that are spelled in it."""
        parts: list[str | int] = []
        for part in self._split_at_specials(text, text, parse_special=True):
            if isinstance(part, int) and not self.is_special(part):
                part = self.token_bytes(part).decode()
            if parts and isinstance(part, str) and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return parts

    def _split_at_specials(
        self, text: str, guarded: str, parse_special: bool
    ) -> Iterator[str | int]:
        """`text` as plain stretches and special ids. The longest token takes its places first,
        wherever they are: a leftmost match would differ where two tokens overlap.
        """
        fragments: list[tuple[str, str] | int] = [(text, guarded)]
        for special, token in self._specials:
            steers = self._steers(special, token)
            if special not in (guarded if steers else text) or (steers and not parse_special):
                continue
            swallows = self._swallows(token, special)
            pieces: list[tuple[str, str] | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    pieces.append(fragment)
                    continue
                start = 0
                for stretch in fragment[steers].split(special):
                    if start:
                        pieces.append(token)
                    end = start + len(stretch)
                    if start and swallows:
                        start = end - len(stretch.lstrip(_WHITE_SPACE))
                    pieces.append((fragment[0][start:end], fragment[1][start:end]))
                    start = end + len(special)
            fragments = pieces
        for fragment in fragments:
            if isinstance(fragment, int):
                yield fragment
            elif fragment[0]:
                yield fragment[0]

    def _swallows(self, token: int, text: str) -> bool:
        """Whether white space behind the token belongs to it: so Phi-3 was trained, whose files do
        not say it."""
        kept = ("<unk>", "<s>", "<|endoftext|>")
        return self._swallowing and text not in kept and (self.is_special(token) or text == "</s>")

    def is_special(self, token: int) -> bool:
        """Whether `token` steers the model instead of standing for text.

        Raises ArgumentError when there is no such token.
        """
        if type(token) is not int or not 0 <= token < self.vocab_size:
            token = whole("token", token, 0, self.vocab_size - 1)
        return self._kinds[token] in _STEERING

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for: perhaps a part of a character only.

        Raises ArgumentError when there is no such token.
        """
        special = self.is_special(token)
        kind = self._kinds[token]
        text = self._vocabulary.text(token)
        if kind == _Kind.BYTE and (spelled := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(spelled[1].decode())
        if special or kind == _Kind.USER_DEFINED:
            return text
        if isinstance(self._model, ByteLevelModel) and not self._model.separated:
            if self._model.as_written:
                return text
            letters = text.decode("utf-8", "surrogateescape")
            try:
                return bytes(LETTER_BYTES[letter] for letter in letters)
            except KeyError:
                return text  # padding and the like, not spelled in byte letters
        return text.replace(WORD_SEPARATOR.encode(), b" ")

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`, with U+FFFD for bytes that are not UTF-8.

        The space that a SentencePiece model puts before every text is taken off again. With
        `skip_special`, control tokens leave no text. Raises ArgumentError for an id out of range.
        """
        flag("skip_special", skip_special)
        text = bytearray()
        at_start = self._space_prefix
        for token in token_ids("ids", ids):
            piece = self.token_bytes(token)
            special = self.is_special(token)
            if at_start and not special:
                piece = piece.removeprefix(b" ")
                at_start = False
            if not (special and skip_special):
                text += piece
        return text.decode("utf-8", "replace")


def require_utf8(text: str, what: str = "the text") -> str:
    """`text`, unless it holds a lone surrogate: a byte that was not UTF-8, as Python reads files
    and arguments, or half of a character. Then raises ArgumentError, which says `what` it is."""
    try:
        instance(what, text, str, "a str").encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        byte = ord(character) - 0xDC00
        found = f"byte 0x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(character)
        raise ArgumentError(f"{what} is not UTF-8: {found} at character {error.start}") from None
    return text


def require_pre(pre: str | None) -> str | None:
    """`pre`, if it names a way of cutting words or is None. Raises ArgumentError."""
    return None if pre is None else choice("pre", pre, sorted(WORD_RULES))


class StreamDecoder:
    """Turns tokens into text as they come, holding back characters that are not whole yet.

    It shows nothing for control tokens, and keeps a leading space, since a generated text goes on
    from its prompt.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The characters that `token` completes; often one word, sometimes nothing.

        Raises ArgumentError when there is no such token.
        """
        piece = self._tokenizer.token_bytes(token)
        return self._decoder.decode(b"" if self._tokenizer.is_special(token) else piece)

    def finish(self) -> str:
        """What was held back, as U+FFFD; the decoder is then ready for another text."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class _Fields:
    """The tokenizer.ggml.* fields of a file, checked as they are read.

    Readers without a default raise FormatError when their field is missing; all of them do when
    its value is of the wrong kind, length or range.
    """

    def __init__(self, metadata: Mapping[str, Any], source: str, pre: str | None) -> None:
        self._metadata = metadata
        self._source = source
        self._pre = pre  # in place of the file's

    def complaint(self, name: str, what: str) -> str:
        """An error message about the field `name`."""
        return f"{self._source}: tokenizer.ggml.{name}: {what}"

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise FormatError(self.complaint(name, f"expected a string, found {value!r:.60}"))
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if value not in (0, 1) or not isinstance(value, int):
            raise FormatError(self.complaint(name, f"expected true or false, found {value!r:.60}"))
        return bool(value)

    def token(self, name: str, vocab_size: int, default: int | None) -> int | None:
        """A token id. An id that names no token (-1, or that of a larger vocabulary) counts as
        missing; None when there is no field and no default, or a default out of range."""
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise FormatError(self.complaint(name, f"expected a token id, found {value!r:.60}"))
        found = (i for i in (value, default) if i is not None and 0 <= i < vocab_size)
        return next(found, None)

    def ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """Token ids; none when there is no field."""
        if f"tokenizer.ggml.{name}" not in self._metadata:
            return ()
        for index, value in enumerate(values := self._list(name)):
            if isinstance(value, bool) or not isinstance(value, int) or not -1 < value < vocab_size:
                what = f"expected ids of {vocab_size} tokens, found {value!r:.60} at {index}"
                raise FormatError(self.complaint(name, what))
        return tuple(values)

    def is_of_phi3(self) -> bool:
        """Whether the vocabulary is Phi-3's, by the names in the file."""
        names = (self._metadata.get(f"general.{field}") for field in ("name", "basename"))
        return any("phi3" in re.sub(r"[\W_]", "", str(name)).lower() for name in names)

    def strings(self, name: str) -> Sequence[str]:
        values = self._list(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise FormatError(
                    self.complaint(name, f"expected strings, found {value!r:.60} at {index}")
                )
        return values

    def scores(self, name: str, length: int) -> "array[float]":
        """One score a token; all are zero where the file does not say."""
        if f"tokenizer.ggml.{name}" not in self._metadata:
            return array("f", bytes(4 * length))
        values = self._list(name, length)
        try:
            scores = array("f", values)
        except (TypeError, OverflowError) as error:
            raise FormatError(self.complaint(name, f"expected numbers: {error}")) from None
        for index, score in enumerate(scores):
            if math.isnan(score):
                raise FormatError(self.complaint(name, f"not a number at {index}"))
        return scores

    def kinds(self, name: str, length: int) -> bytearray:
        """One _Kind a token; all are normal when the file does not say."""
        if f"tokenizer.ggml.{name}" not in self._metadata:
            return bytearray([_Kind.NORMAL]) * length
        try:
            kinds = bytearray(self._list(name, length))
        except (TypeError, ValueError) as error:
            raise FormatError(self.complaint(name, f"expected token types: {error}")) from None
        if max(kinds) > max(_Kind):
            raise FormatError(self.complaint(name, f"unknown token type {max(kinds)}"))
        return kinds

    def merges(self, name: str, vocabulary: Mapping[str, int]) -> list[Merge]:
        merges = []
        for index, merge in enumerate(self.strings(name)):
            left, _, right = merge.partition(" ")
            for text in (left, right, left + right):
                if not text or text not in vocabulary:
                    what = f"{merge!r:.60} at {index} is not two tokens that make a third"
                    raise FormatError(self.complaint(name, what))
            merges.append(Merge(left, right))
        return merges

    def word_rule(self, name: str) -> WordRule:
        rule = self._pre or self.text(name, "default")
        if rule not in WORD_RULES:
            what = f"unknown way of cutting words {rule!r:.60}; Model(pre=...) or --pre names one"
            known = ", ".join(sorted(WORD_RULES))
            raise UnsupportedError(self.complaint(name, f"{what} to use instead, of {known}"))
        return WORD_RULES[rule]

    def refuse_pre(self) -> None:
        if self._pre is not None:
            raise ArgumentError(
                f"pre: {self._source} has a vocabulary for which a text is not cut into words"
            )

    def _get(self, name: str, default: Any = None) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise FormatError(self.complaint(name, "missing"))
        return value

    def _list(self, name: str, length: int | None = None) -> Sequence[Any]:
        values = self._get(name)
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            raise FormatError(self.complaint(name, f"expected a list, found {values!r:.60}"))
        if length is not None and len(values) != length:
            raise FormatError(
                self.complaint(name, f"expected one value a token ({length}), found {len(values)}")
            )
        return values
