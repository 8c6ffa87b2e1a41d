"""Choosing the next tokens of texts, each by its own settings and draws."""

from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import instance, known, whole
from mmrt.core.draw import Drawn, distribution, draw
from mmrt.core.kernels import Pool
from mmrt.core.sampling import Filters, Sampling
from mmrt.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Sampler", "mask_without", "sample_together"]

Mask = NDArray[np.uint32]


class Sampler:
    """Chooses the tokens of a text, one after another: `sampler(logits, history)` gives an id.

    Arguments and errors are those of Sampling. Give each text a sampler of its own: how far its
    draws have come is its state.
    """

    def __init__(self, temperature: float = 0.0, **filters: "Unpack[Filters]") -> None:
        known(filters, Sampling.__annotations__)
        self._begin(Sampling(temperature, **filters))

    @classmethod
    def of(cls, sampling: Sampling) -> "Sampler":
        """A new one with these settings."""
        made = cls.__new__(cls)
        made._begin(sampling)
        return made

    def _begin(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def __repr__(self) -> str:
        return repr(self.sampling).replace("Sampling", "Sampler", 1)

    def __call__(self, logits: NDArray[np.floating[Any]], history: Sequence[int] = ()) -> int:
        """The next token's id: see sample()."""
        return self.sample(logits, history).token

    def sample(
        self,
        logits: NDArray[np.floating[Any]],
        history: Sequence[int] = (),
        mask: Mask | None = None,
        logprobs: int | None = None,
    ) -> Drawn:
        """The next token, for `logits` (vocabulary,), left unchanged, after those in `history`.

        mask: uint32 (ceil(vocabulary / 32),), whose bit i % 32 of word i // 32 says whether token i
        may be chosen. logprobs: the number of likeliest tokens to list as `alternatives`, each with
        its log-probability; the chosen token's own is `logprob`. They are the model's: no setting
        or mask changes them.

        Raises ArgumentError for logits that are not one row of floats, or have a NaN or a highest
        that is not finite; for a mask that leaves no token; for ids in `history` without a logit.
        """
        row = _floats(logits, "one row", 1)
        masks = None if mask is None else [mask]
        return sample_together([self], row[None], [history], masks, logprobs)[0]

    def distribution(
        self,
        logits: NDArray[np.floating[Any]],
        history: Sequence[int] = (),
        mask: Mask | None = None,
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """What a draw is made from: the token ids that pass the filters, in rising order, and the
        probability of each. At temperature 0 that is one token. Arguments and errors as for
        sample().
        """
        row = _floats(logits, "one row", 1)
        recent = self._recent(history, len(row))
        ids, odds = distribution(row, self.sampling, recent, _checked_mask(mask, len(row)))
        return ids.astype(np.intp), odds / odds.sum(dtype=np.float64)

    def _recent(self, history: Sequence[int], vocabulary: int) -> NDArray[np.int32]:
        """The tokens that penalties apply to."""
        instance("history", history, Sized, "token ids")
        if not self.sampling.penalises or not len(history):
            return np.empty(0, np.int32)
        last = self.sampling.repeat_last_n
        ids = np.asarray(history if last == -1 else history[-last:])
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocabulary:
            raise ArgumentError(f"history: token ids must be whole numbers below {vocabulary}")
        return ids.astype(np.int32)

    def _uniform(self) -> float:
        return self._random.random() if self.sampling.temperature > 0 else 0.0


def sample_together(
    samplers: Sequence[Sampler],
    logits: NDArray[np.floating[Any]],
    histories: Sequence[Sequence[int]],
    masks: Sequence[Mask | None] | None = None,
    logprobs: int | None = None,
    pool: Pool | None = None,
) -> list[Drawn]:
    """The next token of each of several texts, for their logits (texts, vocabulary): what each
    sampler's sample() gives. pool: the threads that share the texts; None: the caller's alone."""
    rows = _floats(logits, "rows", 2)
    vocabulary = rows.shape[1]
    if logprobs is not None:
        logprobs = whole("logprobs", logprobs, 0)
    return draw(
        rows,
        [sampler.sampling for sampler in samplers],
        [s._recent(history, vocabulary) for s, history in zip(samplers, histories, strict=True)],
        [sampler._uniform() for sampler in samplers],
        masks and [_checked_mask(mask, vocabulary) for mask in masks],
        logprobs,
        pool,
    )


def mask_without(tokens: Sequence[int], vocabulary: int) -> Mask:
    """The mask that allows all tokens but these."""
    mask = np.full(-(-vocabulary // 32), 0xFFFFFFFF, np.uint32)
    for token in tokens:
        mask[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << token % 32))
    return mask


def _floats(logits: Any, what: str, dimensions: int) -> NDArray[np.float32]:
    given = np.asarray(logits)
    if given.ndim != dimensions or not np.issubdtype(given.dtype, np.floating):
        raise ArgumentError(
            f"logits: expected {what} of floats, found {given.dtype} of {given.shape}"
        )
    with np.errstate(over="ignore"):  # infinity is refused
        return np.ascontiguousarray(given, np.float32)


def _checked_mask(mask: Mask | None, vocabulary: int) -> Mask | None:
    if mask is None:
        return None
    words = -(-vocabulary // 32)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint32 or mask.shape != (words,):
        raise ArgumentError(f"mask: expected uint32 of ({words},), found {mask!r:.60}")
    return np.ascontiguousarray(mask)
