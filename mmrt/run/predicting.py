"""Predictors of neurons, trained on what a model does with a text: logistic regression of low rank,
of what a layer reads on which of its neurons are not zero."""

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import whole
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.files import formats
from mmrt.files.predictor import Scores, write_predictor
from mmrt.run.activations import activations
from mmrt.run.model import Model

TEXT_TOKENS = 256  # the text is read in pieces of so many, each on its own
_LEAST_TEXTS = 4
_PART = 8  # one part of the pieces is for choosing thresholds, and one is held out

_BATCH = 128  # tokens
_STEPS = 4000  # at most, of training
_RATE, _DECAYS = 2e-3, (0.9, 0.999)  # of Adam (Kingma and Ba 2014, arXiv:1412.6980)
_SEED = 0

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


class Quality(NamedTuple):
    """Of the predictions for a layer, on the text held out. Parts of 1; NaN: of nothing."""

    name: str  # of the matrix `down`
    active: float  # of the neurons, on average over tokens
    predicted: float
    recall: float  # of those active, how many are predicted
    precision: float  # of those predicted, how many are active


class Trained(NamedTuple):
    layers: list[Quality]
    n_trained: int  # tokens
    n_held_out: int
    exact: float  # perplexity of the text held out
    lossy: float  # with the predictor
    n_bytes: int  # of the predictor


def train(
    path: str | os.PathLike[str],
    text: str,
    out: str | os.PathLike[str],
    *,
    rank: int = 128,
    recall: float = 0.97,
    tokens: int = 8192,
    epochs: int = 8,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains a predictor of the model at `path` on up to so many `tokens` of `text`, and writes it
    to `out` when it is whole. progress(done, total) is called with layers.

    rank: of the scores, at most the width of the model. recall: the part of the active neurons that
    each layer's threshold is to find. A part of the text is held out, on which the result is
    measured; perplexity is that of models which run with and without the predictor.

    Raises what Model does, UnsupportedError where no layer has ReLU or one of its family, and
    ArgumentError for a text that is too short.
    """
    if not (isinstance(recall, int | float) and 0 < recall < 1):
        raise ArgumentError(f"recall: expected a number between 0 and 1, found {recall!r:.40}")
    rank, epochs = whole("rank", rank, 1), whole("epochs", epochs, 1)
    with Model(path, threads=threads, policy="populate", draft="off") as model:
        texts = _cut(model, text, whole("tokens", tokens, 1))
        n_layers = model.config.n_layers
    n_part = max(len(texts) // _PART, 1)
    held_out = sum(map(len, texts[-n_part:]))
    chosen = sum(map(len, texts[-2 * n_part : -n_part]))
    layers: list[tuple[Tensor, Scores]] = []
    qualities = []
    with formats.open(path) as file:
        for down, read, active in activations(file, texts, threads):
            ends = -held_out - chosen, -held_out
            scores = _fit(read[: ends[0]], active[: ends[0]], min(rank, read.shape[1]), epochs)
            among = slice(*ends)
            scores = _with_threshold(scores, read[among], active[among], recall)
            layers.append((down, scores))
            qualities.append(_measured(down.name, scores, read[ends[1] :], active[ends[1] :]))
            if progress is not None:
                progress(len(layers), n_layers)
        if not layers:
            raise UnsupportedError(
                f"{file.path}: no layer of it has ReLU, so that all neurons count for each token"
            )
        n_bytes = write_predictor(out, file, layers)
        layers.clear()
    exact, lossy = (
        _perplexity(path, texts[-n_part:], threads, predictor) for predictor in (None, out)
    )
    trained = sum(map(len, texts)) - held_out - chosen
    return Trained(qualities, trained, held_out, exact, lossy, n_bytes)


def _cut(model: Model, text: str, n_tokens: int) -> list[list[int]]:
    first = model.tokenize("")[:1]  # what the model wants before a text
    ids = model.tokenize(text, add_bos=False, parse_special=False)[:n_tokens]
    size = min(TEXT_TOKENS, model.context)
    room = max(size - len(first), 1)
    texts = [first + ids[i : i + room] for i in range(0, len(ids) - 1, room)]
    if len(texts) < _LEAST_TEXTS:
        raise ArgumentError(
            f"text: {len(ids)} tokens, expected more than {room * (_LEAST_TEXTS - 1)} to train a "
            "predictor and measure it"
        )
    return texts


# ---- training ----


def _fit(read: Floats, active: NDArray[np.bool_], rank: int, epochs: int) -> Scores:
    """By Adam, from the directions of what is read that go along most with what is active."""
    random = np.random.default_rng(_SEED)
    mean, spread = read.mean(0), _not_small(read.std(0))
    x, n = (read - mean) / spread, len(read)
    rates = np.clip(active.mean(0), 0.5 / n, 1 - 0.5 / n).astype(np.float32)

    def along(directions: Floats) -> Floats:
        """(neurons, rank): how each neuron goes along with these directions (width, rank)."""
        between = x @ directions
        found: Floats = active.T.astype(np.float32) @ between - np.outer(rates, between.sum(0))
        return found

    directions = random.standard_normal((x.shape[1], rank), np.float32)
    for _ in range(2):
        back = along(np.linalg.qr(directions)[0])
        directions = x.T @ (active.astype(np.float32) @ back) - np.outer(x.sum(0), rates @ back)
    inner = np.linalg.qr(directions)[0].T
    inner /= _not_small((x @ inner.T).std(0))[:, None]
    outer = along(inner.T) / (2 * n * rates * (1 - rates))[:, None]
    bias = np.log(rates / (1 - rates))
    parts = [np.ascontiguousarray(part, np.float32) for part in (inner, outer, bias)]
    steps = min(epochs * -(-n // _BATCH), _STEPS)
    _descend(parts, x, active, steps, random)
    inner, outer, bias = parts
    inner /= spread
    bias -= outer @ (inner @ mean)
    largest = _not_small(np.abs(inner).max(1))  # so that both are well inside of F16
    return Scores(
        (inner / largest[:, None]).astype(np.float16), (outer * largest).astype(np.float16), bias
    )


def _not_small(x: Floats) -> Floats:
    """To divide by: what is next to nothing tells nothing."""
    return np.maximum(x, x.max() / 1000 or 1)


def _descend(
    parts: list[Floats],
    x: Floats,
    active: NDArray[np.bool_],
    steps: int,
    random: np.random.Generator,
) -> None:
    """Trains inner, outer and bias in place."""
    inner, outer, bias = parts
    means, squares = ([np.zeros_like(part) for part in parts] for _ in range(2))
    for step in range(steps):
        some = random.integers(0, len(x), min(_BATCH, len(x)))
        seen = x[some]
        between = seen @ inner.T
        wrong = between @ outer.T + bias
        wrong = 1 / (1 + np.exp(-np.clip(wrong, -30, 30))) - active[some]
        wrong /= len(some)
        slopes = ((wrong @ outer).T @ seen, wrong.T @ between, wrong.sum(0))
        rate = _RATE * (1 - step / steps)
        for part, mean, square, slope in zip(parts, means, squares, slopes, strict=True):
            mean += (1 - _DECAYS[0]) * (slope - mean)
            square += (1 - _DECAYS[1]) * (slope * slope - square)
            unbiased = mean / (1 - _DECAYS[0] ** (step + 1))
            part -= rate * unbiased / (np.sqrt(square / (1 - _DECAYS[1] ** (step + 1))) + 1e-8)


def _with_threshold(
    scores: Scores, read: Floats, active: NDArray[np.bool_], recall: float
) -> Scores:
    """Zero is where so many of the active neurons are above it."""
    found = scores.of(read)[active]
    if not found.size:
        return scores
    return scores._replace(bias=scores.bias - np.float32(np.quantile(found, 1 - recall)))


# ---- measuring ----


def _measured(name: str, scores: Scores, read: Floats, active: NDArray[np.bool_]) -> Quality:
    predicted = scores.of(read) > 0
    right = int((predicted & active).sum())
    return Quality(
        name,
        float(active.mean()),
        float(predicted.mean()),
        _part(right, int(active.sum())),
        _part(right, int(predicted.sum())),
    )


def _part(n: int, of: int) -> float:
    return n / of if of else math.nan


def _perplexity(
    path: str | os.PathLike[str],
    texts: Sequence[Sequence[int]],
    threads: int | None,
    predictor: str | os.PathLike[str] | None,
) -> float:
    total, n = 0.0, 0
    with Model(path, threads=threads, predictor=predictor, draft="off") as model:
        for ids in texts:
            logits = model.logits(ids)[:-1].astype(np.float64)
            largest = logits.max(1)
            sums = np.log(np.exp(logits - largest[:, None]).sum(1)) + largest
            total += float((sums - logits[np.arange(len(logits)), list(ids[1:])]).sum())
            n += len(logits)
    return math.exp(total / max(n, 1))
