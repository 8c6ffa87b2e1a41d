"""Drafts: guesses at the next tokens of a text, which one step of several tokens verifies.

The model draws every token itself, from the logits that the step leaves after the one before. A
guess that is another is forgotten, with all that follow it. So a text is the same with drafts as
without, and to the bit, as these steps are exact; only their number is smaller.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmrt.core.program import EXACT_TOKENS
from mmrt.errors import OutOfMemoryError
from mmrt.run.sequence import Sequence

# Tokens that a step verifies at most, beside the one that it reads anyway.
MOST_GUESSES = EXACT_TOKENS - 1

# What was seen counts so much less after each guess of its sort, or step of its kind.
_FORGETTING = 0.95

# What each token more costs is taken for less by so much where a guess is not worth it, so that it
# is measured again some day.
_RELAXING = 0.99


class Guess(NamedTuple):
    """A token that may come next. sort: guesses of one sort are right equally often."""

    token: int
    sort: int


class Guesser(Protocol):
    """What makes guesses for one text."""

    def read(self, tokens: Iterable[int]) -> None:
        """The text goes on with these."""

    def guesses(self) -> Iterator[Guess]:
        """Its next tokens, each as it would come after the one before."""


class Mean:
    """Of what was seen lately."""

    def __init__(self, value: float = 0.0, weight: float = 0.0) -> None:
        self.value, self._weight = value, weight

    def see(self, value: float) -> None:
        self._weight = _FORGETTING * self._weight + 1
        self.value += (value - self.value) / self._weight


class Record:
    """What has become of a model's drafts, and what they are worth by that.

    steps, drafted, accepted: of the steps that verified drafts, how many, and how many tokens of
    drafts they had and found right. by_depth: (tokens at this place of a draft, with only right
    ones before them; those of them that were right), from the first place on.
    """

    def __init__(self) -> None:
        self.steps = self.drafted = self.accepted = 0
        self.by_depth: list[tuple[int, int]] = []
        self._right: dict[int, Mean] = {}  # by sort of guess: 1 for each that was, else 0
        self._one = Mean()  # seconds of a step without drafts
        self._more = Mean()  # seconds that each token more takes

    def __str__(self) -> str:
        return f"{self.accepted} of {self.drafted} tokens right, in {self.steps} steps"

    def choose(
        self, guesses: Iterable[Guess], most: int, beside: int = 0
    ) -> tuple[list[Guess], int]:
        """(the first guesses, of which so many are worth a step): those that raise the tokens per
        second to be expected. One more is among them to be judged for nothing. beside: tokens that
        other texts get of the step."""
        made: list[Guess] = []
        chance, tokens, seconds = 1.0, 1.0 + beside, self._one.value
        for guess in itertools.islice(guesses, most):
            made.append(guess)
            chance *= self._rate(guess.sort).value
            if chance * seconds <= self._more.value * tokens:
                break
            tokens, seconds = tokens + chance, seconds + self._more.value
        else:
            return made, len(made)
        if len(made) == 1:
            self._more.value *= _RELAXING
        return made, len(made) - 1

    def _rate(self, sort: int) -> Mean:
        # Not known yet: as often as not.
        return self._right.setdefault(sort, Mean(0.5, 1.0))

    def count(self, drafted: int, accepted: int) -> None:
        """Of a draft of so many tokens, so many were right."""
        self.steps += 1
        self.drafted += drafted
        self.accepted += accepted
        self.by_depth += [(0, 0)] * (drafted - len(self.by_depth))
        for depth in range(min(drafted, accepted + 1)):
            tried, right = self.by_depth[depth]
            self.by_depth[depth] = tried + 1, right + (depth < accepted)

    def judge(self, guesses: Iterable[Guess], tokens: Iterable[int]) -> None:
        """These tokens have come where those were guessed."""
        for guess, token in zip(guesses, tokens, strict=False):
            self._rate(guess.sort).see(guess.token == token)
            if guess.token != token:
                return

    def time(self, drafted: int, seconds: float) -> None:
        """A step of so many tokens of drafts, beside those that it reads anyway, took so long."""
        if drafted:
            self._more.see(max(seconds - self._one.value, 0.0) / drafted)
        else:
            self._one.see(seconds)


class Drafting:
    """The drafts of one text. sure: of a sequence that has read a draft that is not verified yet,
    how many tokens the text surely has; else None."""

    def __init__(self, record: Record, guesser: Guesser) -> None:
        self._record, self._guesser = record, guesser
        self._known = 0  # tokens that the guesser has read
        self._made: list[Guess] = []
        self.sure: int | None = None

    def step(
        self, sequence: Sequence, token: int, most: int
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Reads `token` and a draft of what follows, of `most` tokens at most: (the logits after
        each, the draft)."""
        started = time.perf_counter()
        draft = self.propose(sequence.history, [token], min(most, MOST_GUESSES))
        started = started if draft else time.perf_counter()
        self.sure = len(sequence) + 1
        try:
            rows = sequence.extend_exactly([token, *draft])
        except OutOfMemoryError:
            if not draft:
                raise
            draft = []
            rows = sequence.extend_exactly([token])
        self._record.time(len(draft), time.perf_counter() - started)
        return rows, draft

    def forget(self, sequence: Sequence) -> None:
        """What was read and not verified, wherever an exception (KeyboardInterrupt) came from."""
        if self.sure is not None and self.sure < len(sequence):
            sequence.truncate(self.sure)
        self.sure = None

    def propose(
        self, tokens: List[int], last: Iterable[int], most: int, beside: int = 0
    ) -> list[int]:
        """A draft, of `most` tokens at most, of what follows the text of `tokens` and then `last`.
        beside: as for Record.choose()."""
        came = [*tokens[self._known :], *last]
        self._known += len(came)
        self._record.judge(self._made, came)
        self._guesser.read(came)
        self._made, n = self._record.choose(self._guesser.guesses(), most, beside)
        return [guess.token for guess in self._made[:n]]

    def verified(self, draft: List[int], accepted: int) -> None:
        """So many tokens of a draft were right."""
        self._record.count(len(draft), accepted)
