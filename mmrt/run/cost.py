"""How long a step takes, learned from those that have run."""

from collections.abc import Sequence

import numpy as np

# Older steps count less: after 50 steps a third.
_FORGETTING = 0.98

# What bounds a factor from above grows by so much with each step, as machines become slower too.
_RELAXING = 1.01

# What is not known yet may be anything.
_UNSURE = 1e6


def _tokens(parts: Sequence[tuple[int, int]]) -> int:
    return sum(n for n, _ in parts)


class StepCost:
    """The seconds of a step as those of its weights, of each token, and of each key that a token
    attends to:

        T = w + sum over parts of n * (a + c * (l + (n + 1) / 2))

    of n tokens after l others. w, a and c are found by recursive least squares with forgetting
    (Haykin, Adaptive Filter Theory, chapter 10), and never taken for less than 0, nor for more
    than each would be if it alone made the time of some step. Where all steps are alike, as when
    texts only write, nothing else keeps a factor from being anything.
    """

    def __init__(self) -> None:
        self._factors = np.zeros(3)
        self._covariance = np.eye(3) * _UNSURE
        self._most = np.full(3, np.inf)
        self._quickest = 0.0, 0  # of the steps observed: seconds, tokens
        self.steps = 0  # observed

    @staticmethod
    def _features(
        parts: Sequence[tuple[int, int]],
    ) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        tokens = _tokens(parts)
        keys = sum(n * (length + (n + 1) / 2) for n, length in parts)
        return np.array([1.0, tokens / 64, keys / 65536])  # of like size

    def observe(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """A step of parts, each (tokens, tokens before them), took so long."""
        x = self._features(parts)
        gain = self._covariance @ x / (_FORGETTING + x @ self._covariance @ x)
        self._factors += gain * (seconds - x @ self._factors)
        self._covariance = (self._covariance - np.outer(gain, x @ self._covariance)) / _FORGETTING
        np.clip(self._covariance, -_UNSURE, _UNSURE, out=self._covariance)
        self._most = np.minimum(self._most * _RELAXING, seconds / x)
        this = seconds, _tokens(parts)
        self._quickest = min(self._quickest, this) if self.steps else this
        self.steps += 1

    @property
    def weights(self) -> float:
        """Seconds that the weights take, w."""
        return float(self._bounded[0])

    def predict(self, parts: Sequence[tuple[int, int]]) -> float:
        """Seconds that a step of these parts will take; 0 before the first step. No less than the
        quickest step so far took for fewer tokens, whatever noise makes of what was seen."""
        if not parts:
            return 0.0
        seconds, tokens = self._quickest
        fitted = self._fitted(parts)
        return max(fitted, seconds) if not fitted or tokens <= _tokens(parts) else fitted

    def _fitted(self, parts: Sequence[tuple[int, int]]) -> float:
        return float(self._bounded @ self._features(parts))

    @property
    def _bounded(self) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        bounded: np.ndarray[tuple[int], np.dtype[np.float64]]
        bounded = np.minimum(np.maximum(self._factors, 0.0), self._most)
        return bounded

    def chunk(self, parts: Sequence[tuple[int, int]], length: int, most: int, within: float) -> int:
        """How many tokens, `most` at most, a text of `length` can read in a step beside `parts`,
        for the step to take no longer than `within` seconds."""
        low, high = 0, most
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
        each = [max(self._fitted([part]) - self.weights, 0.0) for part in parts]
        total = sum(each)
        if total <= 0:
            return [seconds / len(parts)] * len(parts)
        return [w / len(parts) + (seconds - w) * one / total for one in each]
