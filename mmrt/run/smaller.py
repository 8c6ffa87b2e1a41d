"""Guesses at how a text goes on, by a smaller model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mmrt.core.state import StateStore
from mmrt.errors import ArgumentError, OutOfMemoryError, UnsupportedError
from mmrt.files.tensor_file import TensorFile
from mmrt.memory.report import Memory
from mmrt.run.drafts import Guess
from mmrt.run.sequence import Sequence

# Guesses of nearly the same probability are of one sort: there are so many.
_SORTS = 10

# Steps for which nothing is guessed at most, after guesses that were not worth to be verified.
_LONGEST_PAUSE = 16

_UNUSED = 5  # of tokenizer.ggml.token_type


class SmallerModel(Protocol):
    """A Model that makes guesses for another."""

    path: str
    file: TensorFile
    context: int

    @property
    def vocab_size(self) -> int: ...

    @property
    def store(self) -> StateStore: ...

    @property
    def memory(self) -> Memory: ...

    def sequence(self) -> Sequence: ...


class Smaller:
    """Guesses for one text: the tokens that a smaller model finds likeliest, one after another. It
    reads the text beside the model that writes it.

    A guess that is not worth to be verified has cost a step of the smaller model. After such ones
    it makes none for a while.
    """

    def __init__(self, model: SmallerModel, vocab_size: int) -> None:
        """vocab_size: tokens that may be guessed."""
        self._sequence, self._context = model.sequence(), model.context
        self._most = model.vocab_size
        self._vocab_size = min(vocab_size, self._most)
        self._tokens: list[int] = []  # of the text
        self._read = 0  # of these, those that the sequence has for certain
        self._pause = self._rest = 0
        self._can_read = True

    def read(self, tokens: Iterable[int]) -> None:
        """The text goes on with these."""
        new = list(tokens)
        self._tokens += new
        # Tokens that are unused in the larger vocabulary may be missing in this one.
        self._can_read = self._can_read and max(new, default=0) < self._most

    def guesses(self) -> Iterator[Guess]:
        """The tokens that come next; their sort is a bound of their probability. It has an end
        where the smaller model's context has."""
        if not self._can_read:
            return
        if self._rest:
            self._rest -= 1
            return
        room = self._context - len(self._tokens)
        new = self._new_tokens() if room > 0 else []
        for i in range(room):
            try:
                logits = self._sequence.extend(new)[: self._vocab_size]
            except OutOfMemoryError:  # the text goes on without
                return
            token = int(logits.argmax())
            probability = 1 / np.exp(logits - logits[token]).sum(dtype=np.float64)
            if i == 0:  # unless another one is asked for, it was not worth it
                self._read = len(self._tokens)
                self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE)
                self._rest = self._pause
            yield Guess(token, min(int(_SORTS * probability), _SORTS - 1))
            self._pause = self._rest = 0
            new = [token]

    def _new_tokens(self) -> list[int]:
        """The tokens of the text that the sequence has not, the last one always; what it has of
        others is forgotten."""
        has, same = self._sequence.history, min(self._read, len(self._tokens) - 1)
        while same < min(len(has), len(self._tokens) - 1) and has[same] == self._tokens[same]:
            same += 1
        self._sequence.truncate(same)
        return self._tokens[same:]


def require_same_vocabulary(smaller: SmallerModel, file: TensorFile) -> None:
    """Raises ArgumentError unless tokens are the same to both models, but for unused ones at the
    end of one; UnsupportedError where the smaller one cannot take guesses back."""
    if smaller.store.is_recurrent:
        raise UnsupportedError(
            f"draft: {smaller.path}: a model with recurrent layers, which can forget no guess"
        )
    of_smaller, ours = _vocabulary(smaller.file.metadata), _vocabulary(file.metadata)
    for i, (its, our) in enumerate(zip(of_smaller, ours, strict=False)):
        if its != our:
            raise ArgumentError(
                f"draft: {smaller.path}: another vocabulary than that of {file.path}: token {i} is "
                f"{its!r:.40}, and not {our!r:.40}"
            )
    if len(of_smaller) != len(ours):
        raise ArgumentError(
            f"draft: {smaller.path}: another vocabulary than that of {file.path}: "
            f"{len(of_smaller)} tokens, and not {len(ours)}"
        )


def _vocabulary(metadata: Mapping[str, Any]) -> list[str]:
    """Without unused tokens at its end."""
    tokens = list(metadata.get("tokenizer.ggml.tokens", ()))
    kinds = list(metadata.get("tokenizer.ggml.token_type", ()))
    while len(kinds) == len(tokens) and tokens and kinds[-1] == _UNUSED:
        tokens.pop()
        kinds.pop()
    return tokens
