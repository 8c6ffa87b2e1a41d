"""Guesses at how a text goes on, from what it has said before."""

import itertools
from collections.abc import Iterable, Iterator

from mmrt.run.drafts import Guess

# Tokens that have to be the same before a text is taken to repeat itself.
_LEAST = 3

# From so many on, more that are the same make a guess no better.
_MOST = 8


class Ngrams:
    """An index of a text by its runs of three tokens: where it says what it has said before, it is
    guessed to go on as it did then. Each token costs the same, however long the text is."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # of each run: where it last ended
        self._at = 0  # what is repeated went on here; 0: nothing is

    def read(self, tokens: Iterable[int]) -> None:
        """The text goes on with these."""
        read, ends = self._tokens, self._ends
        for token in tokens:
            goes_on = self._at > 0 and read[self._at] == token
            read.append(token)
            run = tuple(read[-_LEAST:])
            self._at = self._at + 1 if goes_on else ends.get(run, 0)
            ends[run] = len(read)

    def guesses(self) -> Iterator[Guess]:
        """The tokens that come next if the text goes on repeating itself, without end. Their sort
        is how many tokens before them were the same, up to a bound."""
        if not self._at:
            return
        period, same = len(self._tokens) - self._at, self._same()
        for i in itertools.count():
            yield Guess(self._tokens[self._at + i % period], min(same + i, _MOST))

    def _same(self) -> int:
        """How many tokens before the repeated ones are those before now, up to a bound."""
        read, at, n = self._tokens, self._at, 0
        while n < min(_MOST, at) and read[-1 - n] == read[at - 1 - n]:
            n += 1
        return n
