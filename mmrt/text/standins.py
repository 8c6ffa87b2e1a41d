"""Text from strangers that cannot become control tokens, whatever a template does with it.

Each control token is spelled with a character such as "<" or "[". In the strings of a conversation
all of these characters are exchanged for private ones, of which each stands for one. Templates
join, cut and trim such strings as any others; in the prompt, what is still "<" came from the
template, and only there is a control token looked for. Then the stand-ins are what they stood for
again.
"""

from collections.abc import Iterable
from typing import Any

_FIRST, _LAST = 0x100000, 0x10FFFD  # a plane for private use


class StandIns:
    """A stand-in for each of `characters`, none of them in `texts` already."""

    def __init__(self, characters: Iterable[str], texts: Iterable[str]) -> None:
        taken = {c for text in texts if not text.isascii() for c in text if ord(c) >= _FIRST}
        free = (chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in taken)
        stands_for = dict(zip(free, sorted(characters), strict=False))
        self._plain = str.maketrans(stands_for)
        self._marked = str.maketrans({c: stand_in for stand_in, c in stands_for.items()})

    def mark(self, text: str) -> str:
        """`text`, of a stranger, with stand-ins."""
        return text.translate(self._marked) if self._marked else text

    def plain(self, text: str) -> str:
        """`text` as it reads; as long as it was."""
        return text if text.isascii() else text.translate(self._plain)

    def mark_tree(self, value: Any) -> Any:
        """`value`, of lists, dicts and strings, with mark() applied to all of its strings."""
        return _map_strings(self.mark, value)

    def plain_tree(self, value: Any) -> Any:
        """As plain(), for all strings in a value."""
        return _map_strings(self.plain, value)


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


def _map_strings(function: Any, value: Any) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {_map_strings(function, k): _map_strings(function, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = (_map_strings(function, item) for item in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value
