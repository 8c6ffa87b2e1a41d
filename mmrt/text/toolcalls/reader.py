"""Reading a text that comes in pieces, a character at a time.

What reads is a coroutine, written like a parser of a whole text; so where the text was cut makes no
difference.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

_T = TypeVar("_T")

Steps = Generator[None, str, _T]
"""Is sent a character whenever it asks for one, "" at the end, and returns what it read."""

Write = Callable[[str], object]

_DEEPEST = 64
_LONGEST_WORD = 4096

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_IN_WORDS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.")
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


class Malformed(Exception):
    """The text is not what was to be read."""


class Reader:
    """Reads what it is sent, and some of it again."""

    def __init__(self) -> None:
        self._ahead: deque[str] = deque()  # to be read before what comes
        self._read: list[str] = []  # what was read of late; owners clear it
        self._over = False  # nothing comes any more

    # ---- characters ----

    def next(self) -> Steps[str]:
        """The next character; "" at the end."""
        if self._ahead:
            character = self._ahead.popleft()
        elif self._over:
            return ""
        else:
            character = (yield) or ""
        if character:
            self._read.append(character)
        return character

    def back(self, text: str) -> None:
        """`text`, the last that was read, is to be read again."""
        if text:
            del self._read[-len(text) :]
            self._ahead.extendleft(reversed(text))

    def peek(self) -> Steps[str]:
        """The next character, which stays to be read."""
        character = yield from self.next()
        self.back(character)
        return character

    def space(self) -> Steps[None]:
        """Reads white space."""
        while (character := (yield from self.next())).isspace():
            pass
        self.back(character)

    def choice(self, *texts: str) -> Steps[str]:
        """Reads the one of `texts` that comes next; if none does, nothing, and gives ""."""
        found = ""
        while any(text.startswith(found) for text in texts):
            character = yield from self.next()
            found += character
            if found in texts:
                return found
            if not character:
                break
        self.back(found)
        return ""

    def expect(self, text: str) -> Steps[None]:
        """Goes over `text`, which has to come next."""
        if text and not (yield from self.choice(text)):
            raise Malformed

    def until(self, *ends: str, most: int | None = None) -> Steps[tuple[str, str]]:
        """Reads up to one of `ends` and beyond it: what stands before it, of `most` characters at
        most, and the end."""
        text = ""
        while character := (yield from self.next()):
            text += character
            for end in ends:
                if text.endswith(end):
                    return text[: -len(end)], end
            if most is not None and len(text) > most + max(map(len, ends)):
                raise Malformed
        raise Malformed

    # ---- JSON ----

    def value(self, write: Write, depth: int = 0) -> Steps[None]:
        """A JSON value, written on as it is read, without the space around it."""
        yield from self.space()
        character = yield from self.next()
        if character == '"':
            yield from self._string(write)
        elif character in ("{", "["):
            if depth == _DEEPEST:
                raise Malformed
            yield from self._items(character, write, depth + 1)
        else:
            self.back(character)
            yield from self._word(write)

    def text(self) -> Steps[str]:
        """A JSON string, decoded."""
        yield from self.space()
        yield from self.expect('"')
        parts: list[str] = []
        yield from self._string(parts.append)
        return str(json.loads("".join(parts)))

    def key(self, first: bool) -> Steps[str | None]:
        """The next key of an object and the colon behind it; None: its end. first: none of its
        keys was read before."""
        yield from self.space()
        if (yield from self.choice("}")):
            return None
        if not first:
            yield from self.expect(",")
        key = yield from self.text()
        yield from self.space()
        yield from self.expect(":")
        return key

    def arguments(self, write: Write) -> Steps[None]:
        """An object; also one that is spelled in a string, or null in its place."""
        yield from self.space()
        character = yield from self.peek()
        if character == "{":
            yield from self.value(write)
            return
        parts: list[str] = []
        yield from self.value(parts.append)
        value = loaded("".join(parts))
        if isinstance(value, str):
            value = loaded(value)
        if value is not None and not isinstance(value, dict):
            raise Malformed
        write(json.dumps(value or {}, ensure_ascii=False))

    def _items(self, opening: str, write: Write, depth: int) -> Steps[None]:
        closing = "}" if opening == "{" else "]"
        write(opening)
        yield from self.space()
        if (yield from self.choice(closing)):
            write(closing)
            return
        while True:
            if opening == "{":
                yield from self.space()
                yield from self.expect('"')
                yield from self._string(write)
                yield from self.space()
                yield from self.expect(":")
                write(": ")
            yield from self.value(write, depth)
            yield from self.space()
            if (yield from self.choice(closing)):
                write(closing)
                return
            yield from self.expect(",")
            write(", ")

    def _string(self, write: Write) -> Steps[None]:
        """The rest of a string. Control characters, which models write now and then, are
        escaped."""
        write('"')
        while (character := (yield from self.next())) != '"':
            if not character:
                raise Malformed
            if character == "\\":
                character += yield from self._escape()
            write(character if character >= " " else json.dumps(character)[1:-1])
        write('"')

    def _escape(self) -> Steps[str]:
        kind = yield from self.next()
        if kind == "u":
            for _ in range(4):
                digit = yield from self.next()
                if digit not in _HEXADECIMAL:
                    raise Malformed
                kind += digit
        elif not kind or kind not in '"\\/bfnrt':
            raise Malformed
        return kind

    def _word(self, write: Write) -> Steps[None]:
        """A number, true, false or null."""
        word = ""
        while (character := (yield from self.next())) in _IN_WORDS and len(word) < _LONGEST_WORD:
            word += character
        self.back(character)
        if word not in ("true", "false", "null") and not _NUMBER.fullmatch(word):
            raise Malformed
        write(word)


def loaded(text: str) -> Any:
    """The value of a JSON text; raises Malformed."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Malformed from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
