"""Holding what a model writes to a grammar, by llguidance: which tokens may come next."""

import json
import re
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.text.grammar import Grammar, Json, Many, OneOf, Until, Without
from mmrt.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

_LONGEST_REASON = 300


class Constraint:
    """How far a text has come in a grammar.

    mask: uint32 (ceil(vocabulary / 32),), whose bit i % 32 of word i // 32 says whether token i may
    come next. over: the text is whole, and nothing can be added to it.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar, name: str = "grammar") -> None:
        """Raises ArgumentError, which calls it `name`, for what cannot be held, UnsupportedError
        without the package, or where the vocabulary has no tokens for single characters."""
        guidance = _package()
        self._name = name
        lark = _Lark(tokenizer).text(grammar)
        self._matcher = guidance.LLMatcher(
            vocabulary(tokenizer),
            guidance.LLMatcher.grammar_from_lark(lark),
            log_level=0,
            limits=guidance.LLParserLimits(verbose_errors=False),
        )
        self._suppressed = tokenizer.suppressed_ids
        self.mask: NDArray[np.uint32] = np.empty(-(-tokenizer.vocab_size // 32), np.uint32)
        self.over = False
        self._advance()

    def take(self, token: int) -> None:
        """`token`, one of those in the mask, has come. Raises ArgumentError where the grammar turns
        out to be too much to be held."""
        self._matcher.consume_token(token)
        self._advance()

    def _advance(self) -> None:
        self._check()
        self.over = self._matcher.is_stopped()
        if not self.over:
            self._matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
            self._check()
            for token in self._suppressed:
                self.mask[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << token % 32))
            if not self.mask.any():
                raise ArgumentError(f"{self._name}: no token of the model can come next")

    def _check(self) -> None:
        error = self._matcher.get_error()
        if error:
            raise ArgumentError(f"{self._name}: {_brief(error):.{_LONGEST_REASON}}")


def _brief(error: str) -> str:
    """What the compiler says, on a line, without the place in our grammar."""
    said = [line for line in error.splitlines() if not re.match(r"\s*(\d+ \||\^)", line)]
    return re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", " ".join(said)).strip()


def vocabulary(tokenizer: Tokenizer) -> "llguidance.LLTokenizer":
    """The tokens as llguidance knows them; made once for each tokenizer, in up to a second for a
    hundred thousand tokens. Raises UnsupportedError without the package."""
    made = _MADE.get(tokenizer)
    if made is None:
        made = _MADE[tokenizer] = _made(tokenizer)
    return made


_MADE: "weakref.WeakKeyDictionary[Tokenizer, llguidance.LLTokenizer]" = weakref.WeakKeyDictionary()


def _made(tokenizer: Tokenizer) -> "llguidance.LLTokenizer":
    guidance = _package()
    described = _Described(tokenizer)
    lacking = [c for c in map(chr, range(32, 127)) if c.encode() not in described.tokens]
    if lacking:
        raise UnsupportedError(f"the model has no token for {lacking[0]!r}, to write JSON with")
    wrapper = guidance.TokenizerWrapper(described)
    made: llguidance.LLTokenizer = guidance.LLTokenizer(wrapper, eos_token=described.ends)
    described.tokens = wrapper.tokens = []  # it has its own
    return made


class _Described:
    """A tokenizer as llguidance asks for it. It is held by what is made of it, and holds the
    tokenizer weakly, so that both can go."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        special = {token for token in range(size) if tokenizer.is_special(token)}
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        self.ends = sorted(tokenizer.stop_ids)
        if not self.ends:  # one that no model writes
            self.tokens.append(b"")
            self.ends.append(size)
        self.special_token_ids = sorted(special.union(self.ends))
        self.eos_token_id, self.bos_token_id = self.ends[0], tokenizer.bos_id
        self._tokenizer = weakref.ref(tokenizer)
        self._within = next(token for token in range(size) if token not in special)

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that goes on; nothing if they do not spell it."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None
        ids = tokenizer.encode(text, add_bos=False, parse_special=False, after=self._within)
        return ids if b"".join(map(tokenizer.token_bytes, ids)) == text.encode() else []


def _package() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UnsupportedError(
            "holding a text to a schema takes llguidance: pip install llguidance"
        ) from None
    return llguidance


class _Lark:
    """Writes a grammar in llguidance's dialect of Lark."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rules: list[str] = []

    def text(self, grammar: Grammar) -> str:
        start = self._sequence(grammar)
        return "\n".join([f"start: {start}", *self._rules])

    def _sequence(self, grammar: Grammar) -> str:
        return " ".join(map(self._part, grammar)) or '""'

    def _part(self, part: Any) -> str:
        if isinstance(part, str):
            return self._literal(part)
        if isinstance(part, Json):
            return self._rule("", f"%json {part.schema}")
        if isinstance(part, Until):
            end = self._literal(part.end)
            if end.startswith("<["):
                return f"{self._rule('', '/(?s:.*)/')} {end}"
            return self._rule(f"[suffix={end}]", "/(?s:.*)/")
        if isinstance(part, Without):
            plain = [text for text in part.texts if not self._literal(text).startswith("<[")]
            but = "".join(f" & ~/(?s:.*){_escaped(text)}(?s:.*)/" for text in plain)
            but += "".join(f" & ~/\\s*{_escaped(text)}(?s:.*)/" for text in part.begins)
            return self._rule("", self._rule("", f"/(?s:.*)/{but}", "TEXT"))
        if isinstance(part, Many):
            return f"({self._sequence(part.way)})*"
        if not isinstance(part, OneOf):
            raise ArgumentError(f"grammar: {part!r:.60} is no part of one")
        ways = " | ".join(self._sequence(way) for way in part.ways if way)
        return f"({ways}){'' if all(part.ways) else '?'}"

    def _literal(self, text: str) -> str:
        parts = self._tokenizer.at_controls(text)
        return " ".join(
            f"<[{part}]>" if isinstance(part, int) else json.dumps(part, ensure_ascii=False)
            for part in parts
        )

    def _rule(self, attributes: str, body: str, kind: str = "part") -> str:
        name = f"{kind}_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name


def _escaped(text: str) -> str:
    """`text` as a regular expression between slashes."""
    return re.sub(r"([][.\\+*?()|{}^$/])", r"\\\1", text)
