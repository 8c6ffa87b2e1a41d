"""Choosing the next token from a model's logits.

With logits l, token by token, in this order (llama.cpp's, so that settings carry over):

1. repetition penalty r: each token seen lately gets l / r if l > 0, else l * r
   (Keskar et al. 2019, CTRL, arXiv:1909.05858);
2. top-k: the k highest logits stay (Fan et al. 2018, arXiv:1805.04833);
3. top-p: of p = softmax(l), the fewest tokens, most likely first, whose p add up to at least
   top_p (Holtzman et al. 2019, nucleus sampling, arXiv:1904.09751);
4. min-p: the tokens with p >= min_p * max(p) (Nguyen et al. 2024, arXiv:2407.01082);
5. temperature t: a draw from softmax(l / t) over what stayed.

Filters see the untempered p, so temperature changes the draw and not what it is made from. Among
equal logits the lower token id goes first.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import number, whole
from mmrt.errors import ArgumentError

__all__ = ["Sampler"]

Ids = NDArray[np.intp]
Floats = NDArray[np.floating[Any]]

_LARGEST = sys.float_info.max

_FIRST_SORTED = 512  # a nucleus is seldom larger: sorting more of 262144 tokens would be wasted


class Sampler:
    """A choice of the next token: `sampler(logits, history)` gives its id.

    `temperature` 0 takes the most likely token, and the filters do not matter; `top_k` 0, `top_p`
    1, `min_p` 0 and `repeat_penalty` 1 are off. `repeat_last_n` is the number of latest tokens
    that the penalty looks at (-1: all). The same `seed` gives the same draws in the same order;
    without one they differ from run to run. Give each sequence a sampler of its own: the draws
    are its state.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        seed: int | None = None,
    ) -> None:
        """Raises ArgumentError for a setting out of its range."""
        self.temperature = number("temperature", temperature, 0, _LARGEST)
        self.top_k = whole("top_k", top_k, 0)
        self.top_p = number("top_p", top_p, 0, 1, above=True)
        self.min_p = number("min_p", min_p, 0, 1)
        self.repeat_penalty = number("repeat_penalty", repeat_penalty, 1e-6, 1e6)
        self.repeat_last_n = whole("repeat_last_n", repeat_last_n, -1)
        self.seed = None if seed is None else whole("seed", seed, 0)
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{name}={value!r}" for name, value in vars(self).items() if name[0] != "_"
        )
        return f"Sampler({settings})"

    def __call__(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """The next token's id, for `logits` (one a token of the vocabulary; left unchanged) after
        the tokens in `history`.

        Raises ArgumentError when the logits are not one row of numbers, the highest of them
        finite, or when `history` has ids that they do not.
        """
        if self.temperature == 0:
            return int(np.argmax(self._penalised(logits, history)))
        ids, probabilities = self.distribution(logits, history)
        sums = np.cumsum(probabilities)
        drawn = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])  # past the end: the product was rounded up

    def distribution(
        self, logits: NDArray[np.float32], history: Sequence[int] = ()
    ) -> tuple[Ids, NDArray[np.float64]]:
        """What a draw is made from: the token ids that pass the filters, and the probability of
        each. At temperature 0 that is one token. Raises as a call does.
        """
        logits = self._penalised(logits, history)
        if self.temperature == 0:
            return np.array([np.argmax(logits)]), np.ones(1)
        ids = np.arange(len(logits))
        if 0 < self.top_k < len(ids):
            ids = _highest(logits, self.top_k)
        if self.top_p < 1:
            ids = ids[_nucleus(_softmax(logits[ids]), self.top_p)]
        if self.min_p > 0:
            likely = _softmax(logits[ids])
            ids = ids[likely >= self.min_p * likely.max()]
        return ids, _softmax(logits[ids], self.temperature)

    def _penalised(self, logits: NDArray[np.float32], history: Sequence[int]) -> Floats:
        """`logits` checked, and with the repetition penalty applied to a copy."""
        if logits.ndim != 1 or not len(logits) or not np.issubdtype(logits.dtype, np.floating):
            raise ArgumentError(
                f"logits: expected one row of floats, found {logits.dtype} of {logits.shape}"
            )
        highest = logits.max()  # NaN when any of them is
        if not np.isfinite(highest):
            raise ArgumentError(f"logits: the highest is {highest}")
        if self.repeat_penalty == 1 or self.repeat_last_n == 0:
            return logits
        window = history if self.repeat_last_n == -1 else history[-self.repeat_last_n :]
        seen = np.unique(np.asarray(window, dtype=np.intp))
        if len(seen) and not 0 <= seen[0] <= seen[-1] < len(logits):
            raise ArgumentError(f"history: token ids must be below {len(logits)}")
        penalised = logits.astype(np.float64)  # where no penalty overflows
        repeated = penalised[seen]
        penalised[seen] = np.where(
            repeated > 0, repeated / self.repeat_penalty, repeated * self.repeat_penalty
        )
        return penalised


def _softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    # The difference comes before the division: a tiny temperature would overflow the logits.
    with np.errstate(over="ignore"):
        powers = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    result: NDArray[np.float64] = powers / powers.sum()
    return result


def _highest(values: Floats, count: int) -> Ids:
    """Places of the `count` highest values, in rising order; of equal values the first ones."""
    edge = np.partition(values, -count)[-count]
    above = np.flatnonzero(values > edge)
    at_edge = np.flatnonzero(values == edge)[: count - len(above)]
    return np.sort(np.concatenate((above, at_edge)))


def _nucleus(probabilities: NDArray[np.float64], mass: float) -> Ids:
    """Places of the fewest probabilities, the highest first, that add up to `mass` or more."""
    tried = _FIRST_SORTED
    while True:
        tried = min(tried, len(probabilities))
        places = _highest(probabilities, tried)
        places = places[np.argsort(-probabilities[places], kind="stable")]
        sums = np.cumsum(probabilities[places])
        if sums[-1] >= mass or tried == len(probabilities):
            return np.sort(places[: np.searchsorted(sums, mass) + 1])
        tried *= 16
