"""Several sequences in one step, by the lowest call there is: what engines are tested against."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmrt.core.program import Part
from mmrt.run.sequence import Runner
from mmrt.run.sequence import Sequence as Text


def extend_together(given: Iterable[tuple[Text, Iterable[int]]]) -> NDArray[np.float32]:
    """Reads more tokens into each of several sequences, in steps of as many as there may be;
    returns the logits after the last token of each, float32 (sequences, vocabulary)."""
    pairs = list(given)
    model: Runner = pairs[0][0]._model
    to_read = [(text._cache, np.array(list(ids), np.int32)) for text, ids in pairs]
    logits = np.empty((len(to_read), model.vocab_size), np.float32)
    written = 0
    while to_read:
        step: list[Part] = []
        room = model.step_tokens(sum(len(tokens) for _, tokens in to_read))
        while to_read and room:
            cache, tokens = to_read[0]
            n = min(len(tokens), room)
            step.append(Part(cache, tokens[:n], int(n == len(tokens))))
            room -= n
            to_read[:1] = [(cache, tokens[n:])] if n < len(tokens) else []
        outputs = sum(part.outputs for part in step)
        model.run(step, logits[written : written + outputs] if outputs else None)
        written += outputs
    return logits


def greedy_together(
    texts: Sequence[Text], prompts: Sequence[list[int]], n: int
) -> NDArray[np.float32]:
    """The logits after each prompt and after each of n - 1 more tokens, the likeliest ones: float32
    (n, texts, vocabulary)."""
    rows = [extend_together(zip(texts, prompts, strict=True))]
    for _ in range(n - 1):
        chosen = rows[-1].argmax(axis=1)
        rows.append(
            extend_together((text, [int(id)]) for text, id in zip(texts, chosen, strict=True))
        )
    return np.array(rows)
