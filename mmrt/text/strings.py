"""The methods and operators of strings that templates may use, within an allowance.

Whatever compares or searches sees through stand-ins (standins.py), and whatever cuts or joins keeps
them: lengths and places are the same with and without.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any, TypeVar

from mmrt.text.allowance import Allowance, LimitError, length, text_bytes
from mmrt.text.standins import StandIns

# A width or precision of four digits or more, or one that is an argument.
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[^%a-zA-Z(]*?(\*|\d{4})")
_WIDE = re.compile(r"\d{4}")

_GROWTH = 10  # of a character by repr(), at most

_T = TypeVar("_T")
GetField = Callable[[str, Sequence[Any], Mapping[str, Any]], Any]


class Strings:
    """Each method as of str, with the string as the first argument."""

    def __init__(self, allowance: Allowance, stand_ins: StandIns) -> None:
        self._allowance = allowance
        self._stand_ins = stand_ins
        self._plain = stand_ins.plain

    def text(self, value: Any) -> str:
        """`value` as a template prints it."""
        if isinstance(value, str):
            return value
        if isinstance(value, list | tuple | dict):
            self._allowance.require(_GROWTH * self._allowance.measure(value).bytes)
            printed = str(self._stand_ins.plain_tree(value))
            return str(self._allowance.made(self._stand_ins.mark(printed)))
        printed = str(value)
        return printed if " at 0x" not in printed else f"<{type(value).__name__}>"

    # ---- looking ----

    def startswith(self, text: str, affix: Any, *bounds: Any) -> bool:
        return self._look(text, affix).startswith(self._affixes(affix), *bounds)

    def endswith(self, text: str, affix: Any, *bounds: Any) -> bool:
        return self._look(text, affix).endswith(self._affixes(affix), *bounds)

    def find(self, text: str, part: str, *bounds: Any) -> int:
        return self._look(text, part).find(self._plain(part), *bounds)

    def index(self, text: str, part: str, *bounds: Any) -> int:
        return self._look(text, part).index(self._plain(part), *bounds)

    def count(self, text: str, part: str, *bounds: Any) -> int:
        return self._look(text, part).count(self._plain(part), *bounds)

    def rfind(self, text: str, part: str, *bounds: Any) -> int:
        return self._look_back(text, part).rfind(self._plain(part), *bounds)

    def rindex(self, text: str, part: str, *bounds: Any) -> int:
        return self._look_back(text, part).rindex(self._plain(part), *bounds)

    def contains(self, text: str, part: Any) -> bool:
        """part in text"""
        return (self._plain(part) if isinstance(part, str) else part) in self._look(text, part)

    def _look(self, text: str, part: Any) -> str:
        self._allowance.step(length(text) + length(part))
        return self._plain(text)

    def _look_back(self, text: str, part: Any) -> str:
        """Searching from the end takes the product of the lengths at worst."""
        if isinstance(part, str):
            self._allowance.step(len(text) * len(part) // 1024)
        return self._look(text, part)

    def _affixes(self, affix: Any) -> Any:
        if isinstance(affix, tuple):
            self._allowance.measure(affix)
            return tuple(self._plain(a) if isinstance(a, str) else a for a in affix)
        return self._plain(affix) if isinstance(affix, str) else affix

    # ---- cutting ----

    def split(self, text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._split(str.split, text, sep, maxsplit)

    def rsplit(self, text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._split(str.rsplit, text, sep, maxsplit)

    def splitlines(self, text: str, keepends: bool = False) -> list[str]:
        self._require_pieces(text)
        return self._made(text.splitlines(keepends))

    def partition(self, text: str, sep: str) -> tuple[str, ...]:
        return tuple(self._cut(text, self._look(text, sep).partition(self._plain(sep))))

    def rpartition(self, text: str, sep: str) -> tuple[str, ...]:
        return tuple(self._cut(text, self._look_back(text, sep).rpartition(self._plain(sep))))

    def strip(self, text: str, characters: str | None = None) -> str:
        return self.rstrip(self.lstrip(text, characters), characters)

    def lstrip(self, text: str, characters: str | None = None) -> str:
        left = self._look_back(text, characters).lstrip(self._affixes(characters))
        return self._made(text[len(text) - len(left) :])

    def rstrip(self, text: str, characters: str | None = None) -> str:
        left = self._look_back(text, characters).rstrip(self._affixes(characters))
        return self._made(text[: len(left)])

    def removeprefix(self, text: str, affix: str) -> str:
        return self._made(text[len(affix) :] if affix and self.startswith(text, affix) else text)

    def removesuffix(self, text: str, affix: str) -> str:
        return self._made(text[: -len(affix)] if affix and self.endswith(text, affix) else text)

    def _split(self, how: Any, text: str, sep: str | None, maxsplit: int) -> list[str]:
        if sep is None:
            self._require_pieces(text)
            return self._made(list(how(text, None, maxsplit)))
        back = how is str.rsplit
        plain = self._look_back(text, sep) if back else self._look(text, sep)
        count = maxsplit if maxsplit >= 0 else plain.count(self._plain(sep) or " ")
        self._allowance.require(64 * min(count, len(text)))
        return self._made(self._cut(text, how(plain, self._plain(sep), maxsplit), len(sep)))

    def _require_pieces(self, text: str) -> None:
        """Asks for what the pieces between white space take."""
        self._allowance.step(length(text))
        cuts = sum(map(text.count, " \t\n\r\v\f\x1c\x1d\x1e")) if text.isascii() else len(text) // 2
        self._allowance.require(64 * cuts)

    def _cut(self, text: str, pieces: Sequence[str], gap: int = 0) -> list[str]:
        """`text` cut as long as `pieces` are; each of them ends `gap` before the next."""
        if self._plain(text) is text:
            return list(pieces)
        cut, start = [], 0
        for piece in pieces:
            cut.append(text[start : start + len(piece)])
            start += len(piece) + gap
        return cut

    # ---- making ----

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = self.count(text, old)
        times = found if count < 0 else min(found, count)
        self._allowance.require(text_bytes(text) + times * text_bytes(new))
        if not old or self._plain(text) is text:
            return self._made(text.replace(self._plain(old), new, count))
        return self.join(new, self.split(text, old, count))

    def join(self, sep: str, items: Any) -> str:
        texts = list(items)
        self._allowance.step(len(texts))
        joins = max(len(texts) - 1, 0)
        size = sum(text_bytes(text) for text in texts if isinstance(text, str))
        self._allowance.require(size + joins * text_bytes(sep))
        return self._made(sep.join(texts))

    def concat(self, *values: Any) -> str:
        """What the operator ~ does."""
        return self.join("", map(self.text, values))

    def times(self, value: Any, count: int) -> Any:
        """value * count, of a string, list or tuple."""
        size = text_bytes(value) if isinstance(value, str) else self._allowance.measure(value).bytes
        self._allowance.require(max(count, 0) * size)
        return self._made(value * count)

    def recased(self, how: Callable[[str], str], text: str) -> str:
        """how(text), with stand-ins where `text` has them; all over it if its length changes."""
        plain = self._plain(text)
        made = str(how(plain))
        if plain == text:
            return made
        mark = self._stand_ins.mark
        if len(made) != len(text):
            return mark(made)
        characters = zip(text, plain, made, strict=True)
        return "".join(new if old == was else mark(new) for old, was, new in characters)

    def center(self, text: str, width: int, fill: str = " ") -> str:
        return self._padded(text.center, width, fill)

    def ljust(self, text: str, width: int, fill: str = " ") -> str:
        return self._padded(text.ljust, width, fill)

    def rjust(self, text: str, width: int, fill: str = " ") -> str:
        return self._padded(text.rjust, width, fill)

    def zfill(self, text: str, width: int) -> str:
        return self._padded(text.zfill, width)

    def _padded(self, how: Callable[..., str], width: int, *fill: str) -> str:
        self._allowance.require(4 * width)
        return self._made(how(width, *fill))

    def percent(self, form: str, values: Any) -> str:
        """form % values"""
        if _WIDE_PERCENT.search(form.replace("%%", "")):
            raise LimitError("it formats with a width that is over the limit of 999")
        self._require_formatted(form.count("%"), form, values)
        if isinstance(values, tuple):
            values = tuple(map(self._printed, values))
        elif isinstance(values, dict):
            values = {key: self._printed(value) for key, value in values.items()}
        else:
            values = self._printed(values)
        return str(self._made(form % values))

    def _printed(self, value: Any) -> Any:
        return value if isinstance(value, int | float) else self.text(value)

    def format(self, form: str, get_field: GetField, values: Any, named: Any) -> str:
        """form.format(*values, **named); get_field finds what a field names, as Formatter's."""
        self._require_formatted(form.count("{"), form, (values, named))
        formatter = _Formatter(get_field, self.text)
        return self._made(formatter.vformat(form, values, named))

    def _require_formatted(self, fields: int, form: str, values: Any) -> None:
        size = text_bytes(form) + fields * (_GROWTH * self._allowance.measure(values).bytes)
        self._allowance.step(length(form))
        self._allowance.require(size)

    def _made(self, value: _T) -> _T:
        return self._allowance.made(value)


class _Formatter(Formatter):
    def __init__(self, get_field: GetField, text: Callable[[Any], str]) -> None:
        self._get_field, self._text = get_field, text

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return self._get_field(field_name, args, kwargs), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if _WIDE.search(format_spec):
            raise LimitError("it formats with a width that is over the limit of 999")
        return format(value if isinstance(value, int | float) else self._text(value), format_spec)


def _changed(name: str) -> Callable[[Strings, str], str]:
    """A method without arguments that makes a string."""

    def method(self: Strings, text: str) -> str:
        return self._made(self.recased(getattr(str, name), text))

    return method


def _asked(name: str) -> Callable[[Strings, str], bool]:
    """A method without arguments that tells something of a string."""

    def method(self: Strings, text: str) -> bool:
        return bool(getattr(self._look(text, None), name)())

    return method


_CHANGES = ("capitalize", "casefold", "lower", "swapcase", "title", "upper")
_QUESTIONS = tuple(name for name in dir(str) if name.startswith("is"))
for _name in _CHANGES:
    setattr(Strings, _name, _changed(_name))
for _name in _QUESTIONS:
    setattr(Strings, _name, _asked(_name))

METHODS = frozenset(_CHANGES + _QUESTIONS) | {
    *("startswith", "endswith", "find", "index", "count", "rfind", "rindex", "split", "rsplit"),
    *("splitlines", "partition", "rpartition", "strip", "lstrip", "rstrip", "removeprefix"),
    *("removesuffix", "replace", "join", "center", "ljust", "rjust", "zfill"),
}
"""Those of str that a template may call; format and format_map beside them."""
