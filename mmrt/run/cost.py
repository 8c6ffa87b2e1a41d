"""How long a step takes, learned from those that have run."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

# Of steps of one kind, each new one counts for so much.
_NEWEST = 0.2

# What a token takes is not known before many were read: a step reads at most so many times the
# tokens of the largest so far.
_GROWTH = 4

# What cannot be told apart yet does not grow without bound, and counts for tokens rather than for
# weights, by which max_gap may be measured.
_RIDGE = np.array([1e-3, 1e-6, 1e-6, 1e-6])

_Vector: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"


class StepCost:
    """The seconds of a step as those of its weights, of each token, and of each key that a token
    attends to:

        T = w + sum over parts of n * (a + c * (l + (n + 1) / 2))

    of n tokens after l others; c is one number for single tokens, another for several, which share
    what they read. The factors are the non-negative ones of the least squares of relative errors,
    where each kind of step that was seen counts once, with its mean. Steps are of one kind whose
    tokens and keys have the same powers of two: so what prompts take is known still after any
    number of steps that only write.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, ...], _Vector] = {}
        self._products = np.zeros((4, 4))  # sums over kinds, of products of features
        self._sums = np.zeros(4)  # and of features
        self._factors = np.zeros(4)
        self._most_tokens = 0  # of a step
        self.steps = 0  # observed

    @staticmethod
    def _features(parts: Sequence[tuple[int, int]]) -> list[float]:
        tokens = reading = writing = 0.0
        for n, length in parts:
            tokens += n
            if n == 1:
                writing += length + 1
            else:
                reading += n * (length + (n + 1) / 2)
        return [1.0, tokens / 64, reading / 65536, writing / 65536]  # of like size

    def observe(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """A step of parts, each (tokens, tokens before them), took so long."""
        features = self._features(parts)
        kind = tuple(int(x * 1024).bit_length() for x in features)
        new = np.array(features) / max(seconds, 1e-5)
        old = self._kinds.get(kind)
        if old is not None:
            new = old + _NEWEST * (new - old)
            self._products -= np.outer(old, old)
            self._sums -= old
        self._kinds[kind] = new
        self._products += np.outer(new, new)
        self._sums += new
        self._factors = self._fitted()
        self._most_tokens = max(self._most_tokens, sum(n for n, _ in parts))
        self.steps += 1

    def _fitted(self) -> "_Vector":
        """The factors by which the features of each second make a second."""
        products = self._products + np.diag(_RIDGE * self._products.diagonal() + 1e-12)
        found = np.zeros(4)
        free = list(range(4))
        while free:
            some = np.linalg.solve(products[np.ix_(free, free)], self._sums[free])
            least = int(some.argmin())
            if some[least] >= 0:
                found[free] = some
                break
            del free[least]
        return found

    @property
    def weights(self) -> float:
        """Seconds that the weights take, w."""
        return float(self._factors[0])

    def predict(self, parts: Sequence[tuple[int, int]]) -> float:
        """Seconds that a step of these parts will take; 0 before the first step."""
        return float(self._factors @ self._features(parts)) if parts else 0.0

    def chunk(self, parts: Sequence[tuple[int, int]], length: int, most: int, within: float) -> int:
        """How many tokens, `most` at most, a text of `length` can read in a step beside `parts`,
        for the step to take no longer than `within` seconds."""
        low, high = 0, min(most, _GROWTH * self._most_tokens)
        while low < high:
            middle = (low + high + 1) // 2
            if self.predict([*parts, (middle, length)]) <= within:
                low = middle
            else:
                high = middle - 1
        return low

    def shares(self, parts: Sequence[tuple[int, int]], seconds: float) -> list[float]:
        """The step's time shared out among its parts: what the weights took in equal shares, the
        rest by what each part's tokens cost. The sum is `seconds`."""
        w = min(self.weights, seconds)
        each = [max(self.predict([part]) - self.weights, 0.0) for part in parts]
        total = sum(each)
        if total <= 0:
            return [seconds / len(parts)] * len(parts)
        return [w / len(parts) + (seconds - w) * one / total for one in each]
