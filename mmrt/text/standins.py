"""Text from strangers that cannot become control tokens, whatever a template does with it.

In the strings of a conversation characters are exchanged for private ones, of which each stands for
one. Templates join, cut and trim such strings as any others; in the prompt, what is not private
came from the template, and only there is a control token looked for. Then the stand-ins are what
they stood for again.

A few characters are enough to keep a stranger from spelling a whole token: each of these has a "<"
or a "[", for example. To complete what a template begins ("<|", a message, "|>") a stranger needs
none of them. So all characters of control tokens are exchanged too, but in names that a program
gives: in roles, which are a part of control tokens in some templates, and in keys.
"""

from collections.abc import Iterable
from typing import Any

_FIRST, _LAST = 0x100000, 0x10FFFD  # a plane for private use


class StandIns:
    """A stand-in for each of `characters`, and for those of `others` outside names; none of the
    stand-ins is in `texts` already."""

    def __init__(
        self, characters: Iterable[str], texts: Iterable[str], others: Iterable[str] = ()
    ) -> None:
        used = set().union(*(text for text in texts if not text.isascii()))
        few, all_of_them = set(characters), _cased(set(others), used) | set(characters)
        free = (chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in used)
        stands_for = dict(zip(free, sorted(all_of_them), strict=False))
        self._plain = str.maketrans(stands_for)
        self._marked = str.maketrans({c: stand_in for stand_in, c in stands_for.items()})
        self._marked_names = {code: s for code, s in self._marked.items() if chr(code) in few}

    def mark(self, text: str) -> str:
        """`text`, of a stranger, with stand-ins."""
        return text.translate(self._marked) if self._marked else text

    def mark_name(self, text: str) -> str:
        """`text`, of a program, with stand-ins for the few characters."""
        return text.translate(self._marked_names) if self._marked_names else text

    def plain(self, text: str) -> str:
        """`text` as it reads; as long as it was."""
        return text if text.isascii() else text.translate(self._plain)

    def mark_tree(self, value: Any) -> Any:
        """`value`, of lists, dicts and strings, with mark() applied to all of its strings, and
        mark_name() to the keys of dicts."""
        return _map_strings(self.mark, self.mark_name, value)

    def plain_tree(self, value: Any) -> Any:
        """As plain(), for all strings in a value."""
        return _map_strings(self.plain, self.plain, value)


def significant(tokens: Iterable[str]) -> frozenset[str]:
    """Few characters of which each of `tokens` has one, so that none is spelled without them;
    punctuation where there is any, for it stays as it is when a text is trimmed or capitalised."""
    chosen: set[str] = set()
    for token in sorted(tokens, key=len):
        if token and chosen.isdisjoint(token):
            chosen.add(min(token, key=_preference))
    return frozenset(chosen)


def _preference(character: str) -> int:
    """Low for characters that are seldom in texts, and that JSON spells as they are."""
    if character.isspace() or not character.isprintable() or character in "\"\\'":
        return 3
    return 2 if character.isalnum() else 0 if character in "<[｜|" else 1


def spelling(tokens: Iterable[str]) -> frozenset[str]:
    """The characters of `tokens`, but for those that texts are cut at and JSON escapes."""
    return frozenset(c for c in set().union(*tokens) if _preference(c) < 3)


def _cased(characters: set[str], used: set[str]) -> set[str]:
    """`characters`, and those that become one of them in capitals, or without."""
    cased = {c for x in characters for c in (x, x.upper(), x.lower()) if len(c) == 1}
    return cased | {
        c for c in used if not cased.isdisjoint((*c.upper(), *c.lower(), *c.title(), *c.casefold()))
    }


def _map_strings(of_value: Any, of_key: Any, value: Any) -> Any:
    if isinstance(value, str):
        return of_value(value)
    if isinstance(value, dict):
        return {
            _map_strings(of_key, of_key, k): _map_strings(of_value, of_key, v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        items = (_map_strings(of_value, of_key, item) for item in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value
