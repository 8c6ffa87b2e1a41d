"""How far apart two sets of logits are, one row a position."""

from collections.abc import Sequence
from typing import Any

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


def argmax_agreement(reference_logits: Rows, logits: Rows) -> float:
    """The share of positions at which both prefer the same token."""
    return float(np.mean(reference_logits.argmax(axis=1) == logits.argmax(axis=1)))
