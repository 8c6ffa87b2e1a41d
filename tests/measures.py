"""How far apart two sets of logits are, one row a position.

What may differ between two ways of computing the same logits (threads, steps, instruction sets):

- The number of threads changes nothing: each sum is one thread's, in an order that does not depend
  on who else works. So are steps of eight tokens or more, and steps of two to four: they may be cut
  anywhere. Equal bits. (From five to seven it depends on the type of weights: `few` of its kernel;
  with experts, what counts is how many tokens each gets, which changes with a step's length.)
- One-token steps, and other instruction sets, add the same float32 numbers in another order: sums
  differ by about 1e-6 of their size. Models with float weights show that much, and what it does to
  keys and values near a rounding boundary of float16: ROUNDING bounds it.
- Before a quantised matrix, activations are rounded to int8. One that lies near a boundary then
  becomes its neighbour: a difference of 1e-6 turns into one of 1/127 of the largest of its group.
  Every later layer reads it, and flips more. After 20 layers the two results are about as far from
  one another as either is from the exact one; but no further, as rounding is all that there is, and
  both round equally well. FLIPS bounds that.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]


def log_softmax(row: Rows) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def kl_divergence(reference_logits: Rows, logits: Rows) -> NDArray[np.float64]:
    """KL(reference || other) of each position, in nats."""
    result = np.empty(len(reference_logits))
    for i, (row, other) in enumerate(zip(reference_logits, logits, strict=True)):
        log_p = log_softmax(row)
        result[i] = np.exp(log_p) @ (log_p - log_softmax(other))
    return result


def perplexity(logits: Rows, ids: Sequence[int]) -> float:
    """exp of the mean surprise at ids[1:], each under the row before it."""
    if len(logits) != len(ids) or len(ids) < 2:
        raise ValueError(f"{len(logits)} rows of logits for {len(ids)} ids")
    surprise = [-log_softmax(row)[token] for row, token in zip(logits, ids[1:], strict=False)]
    return float(np.exp(np.mean(surprise)))


def distances(reference_logits: Rows, logits: Rows) -> NDArray[np.float64]:
    """The largest difference of each position, in standard deviations of the reference's row."""
    largest = np.abs(reference_logits - logits).max(axis=1)
    return np.asarray(largest / reference_logits.std(axis=1), np.float64)


class Bound(NamedTuple):
    mean_kl: float
    distance: float  # of any position

    def assert_holds(self, reference_logits: Rows, logits: Rows) -> None:
        mean_kl = kl_divergence(reference_logits, logits).mean()
        distance = distances(reference_logits, logits).max()
        assert mean_kl <= self.mean_kl and distance <= self.distance, (mean_kl, distance)


# About three times what was seen, on SmolLM2 135M (1039 positions) and Gemma 3 270M (892): between
# AVX2, AVX-512 VNNI and ref up to 4.2e-3 and 0.55, between one-token steps and one prefill up to
# 3.5e-3 and 0.34. For comparison: SmolLM2 is 3.3e-3 and 0.87 from the exact result.
FLIPS = Bound(mean_kl=1.2e-2, distance=1.7)

# The same for small models with float weights: up to 2e-8 and 3.5e-4 were seen.
ROUNDING = Bound(mean_kl=6e-8, distance=1e-3)

# And with BF16 weights where AVX-512 multiplies bfloat16: in steps of five tokens or more
# activations are rounded to it. Up to 8.4e-5 and 0.027 were seen.
BFLOATS = Bound(mean_kl=3e-4, distance=0.1)


def argmax_agreement(reference_logits: Rows, logits: Rows) -> float:
    """The share of positions at which both prefer the same token."""
    return float(np.mean(reference_logits.argmax(axis=1) == logits.argmax(axis=1)))
