"""How likely a model finds the tokens of a prompt."""

import threading
from collections.abc import Sequence

import numpy as np

from mmrt.core.draw import Drawn
from mmrt.run.text_model import TextModel

# Tokens a step: their logits are in memory at once.
_STEP = 32


def score(
    model: TextModel, ids: Sequence[int], alternatives: int, given_up: threading.Event
) -> list[Drawn | None]:
    """For each of `ids` its log-probability after those before it, and so many of the likeliest
    tokens in its place; None for the first one, which nothing is before. Fewer where `given_up` is
    set meanwhile."""
    found: list[Drawn | None] = [None]
    with model.sequence() as sequence:
        for start in range(0, len(ids) - 1, _STEP):
            if given_up.is_set():
                break
            rows = sequence.extend(ids[start : min(start + _STEP, len(ids) - 1)], outputs="all")
            largest = rows.max(axis=1, keepdims=True)
            rows -= largest + np.log(np.exp(rows - largest).sum(axis=1, keepdims=True))
            for row, token in zip(rows, ids[start + 1 :], strict=False):
                best = np.argsort(-row, kind="stable")[:alternatives]
                listed = tuple((int(i), float(row[i])) for i in best)
                found.append(Drawn(token, float(row[token]), listed))
    return found
