"""The formulae of mmrt.core.sampling in NumPy, in float64 and by sorting all tokens: what the
core's sampler is compared with."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mmrt.core.sampling import Sampling

Ids = NDArray[np.intp]
Row = NDArray[np.float32]
Odds = NDArray[np.float64]

# The core adds up float32: its sums may be larger or smaller by so much of themselves.
ROUNDING = 1e-5


def log_softmax(logits: Row) -> Odds:
    shifted: Odds = logits.astype(np.float64) - logits.max()
    found: Odds = shifted - np.log(np.exp(shifted).sum())
    return found


def penalised(sampling: Sampling, logits: Row, recent: Sequence[int]) -> Row:
    changed = logits.astype(np.float64)
    for token, bias in (sampling.logit_bias or {}).items():
        changed[token] += np.float32(bias)
    for token, times in Counter(recent).items():
        x = changed[token]
        x = x / sampling.repeat_penalty if x > 0 else x * sampling.repeat_penalty
        changed[token] = x - (sampling.presence_penalty + sampling.frequency_penalty * times)
    most = np.finfo(np.float32).max
    return np.where(np.isfinite(logits), changed.clip(-most, most), logits).astype(np.float32)


def distribution(
    sampling: Sampling,
    logits: Row,
    recent: Sequence[int] = (),
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[Ids, Odds]:
    """The tokens that a draw is made from, in rising order, and the probability of each."""
    x = penalised(sampling, logits, recent)
    if allowed is not None:
        x[~allowed] = -np.inf
    ids = np.argsort(-x, kind="stable")  # the likeliest first, of equal ones the lowest
    ids = ids[x[ids] > -np.inf]
    if sampling.temperature == 0:
        return ids[:1], np.ones(1)
    weights = np.exp(x[ids].astype(np.float64) - x[ids[0]])
    if sampling.top_k:
        ids, weights = ids[: sampling.top_k], weights[: sampling.top_k]
    if sampling.top_p < 1:
        enough = np.cumsum(weights) >= sampling.top_p * weights.sum()
        kept = int(enough.argmax()) + 1 if enough.any() else len(ids)
        ids, weights = ids[:kept], weights[:kept]
    ids = np.sort(ids[weights >= sampling.min_p])
    with np.errstate(over="ignore"):
        weights = np.exp((x[ids].astype(np.float64) - x[ids].max()) / sampling.temperature)
    return ids, weights / weights.sum()


def roundings(sampling: Sampling) -> Iterator[Sampling]:
    """These settings, and those that rounding may make of them."""
    factors = (1, 1 - ROUNDING, 1 + ROUNDING)
    for top_p, min_p in product(factors, factors):
        yield replace(
            sampling,
            top_p=min(sampling.top_p * top_p, 1.0) if sampling.top_p < 1 else 1.0,
            min_p=min(sampling.min_p * min_p, 1.0),
        )


def choices(ids: Ids, odds: Odds, uniform: float) -> list[int]:
    """The token that a number in [0, 1) picks, between those that rounding may make of it."""
    sums = np.cumsum(odds)
    near = np.array([uniform - ROUNDING, uniform + ROUNDING]).clip(0)
    first, last = np.searchsorted(sums, near * sums[-1], side="right")
    return [int(token) for token in ids[min(first, len(ids) - 1) : last + 1]]
