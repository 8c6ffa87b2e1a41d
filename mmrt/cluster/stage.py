"""Some of a model's layers at work: token ids or hidden rows in, hidden rows or logits out."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import choice, flag, instance
from mmrt.core.elements import KV_TYPES
from mmrt.core.kernels import Pool
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.core.streaming import READERS
from mmrt.errors import ArgumentError
from mmrt.files import formats
from mmrt.files.finite import naming_nan
from mmrt.memory import budget
from mmrt.memory.budget import Budget, Share
from mmrt.run.building import build

# Tokens of a long prompt that one step takes.
STEP_TOKENS = 256


class Stage:
    """Layers of the model in the GGUF file (or set of files) at `path`; a context manager.

    layers: which, counted from 0, as range(first, end); None: all that the file has. The file is
    mapped whole, but only what these layers need is checked, read and budgeted: the first stage of
    a model needs the embedding beside them, the last one the output. Other arguments are Model's.

    What a text has computed in the stage is in a Cache, of which fork() and truncate() are as
    those of a Sequence. Stages of one model that are given the same steps, each the hidden rows of
    the one before it, compute the logits of the whole model, to the bit.

    Raises what Model does; ArgumentError for layers that the file has not.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layers: range | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
        memory: Budget | int | str | None = None,
        reader: str | None = None,
        kv_k: str = "f16",
        kv_v: str = "f16",
        exact: bool = False,
    ) -> None:
        if layers is not None:
            instance("layers", layers, range, "a range")
        self.exact = flag("exact", exact)
        if reader is not None:
            choice("reader", reader, READERS)
        self.kv = choice("kv_k", kv_k, KV_TYPES), choice("kv_v", kv_v, KV_TYPES)
        self.budget = budget.of(memory)
        self.budget.begin()
        self._how: dict[str, Any] = {"threads": threads, "reader": reader}
        self._pool = Pool(threads)
        self._share: Share | None = None
        self.closed = False
        self.file = formats.open(path)
        try:
            built = build(
                self.file, self._pool, context=context, kv=self.kv, exact=exact, partial=True,
                layers=layers,
            )  # fmt: skip
            self.config, self.program = built.config, built.program
            self.program.stream()
            share = Share(
                self.file.path, self.program, _nothing, _nothing, STEP_TOKENS, reader, lock=False
            )
            self.budget.join(share)
            self._share = share
        except BaseException:
            self.close()
            raise

    @property
    def layers(self) -> range:
        """Those that it has, counted from 0."""
        return self.config.layers

    @property
    def is_first(self) -> bool:
        """Whether it reads token ids, and no hidden rows."""
        return not self.program.taken

    @property
    def is_last(self) -> bool:
        """Whether it gives logits, and no hidden rows."""
        return not self.program.given

    @property
    def width(self) -> int:
        """Values of a row that it gives."""
        return self.program.given or self.program.vocab_size

    @property
    def weights(self) -> int:
        """Bytes of the tensors that it reads."""
        return sum(tensor.nbytes for tensor in self.program.weights)

    @property
    def kept(self) -> int:
        """Of these, the bytes that may stay in memory."""
        share = self._share
        if share is None or share.weights is None or self.program.streaming is None:
            return self.weights
        return self.program.streaming.kept + share.extremes.rest

    def beside(self, layers: range) -> "Stage":
        """A stage of other layers of the file, with the settings of this one, in its budget: what
        has no room there is streamed from the disk."""
        return Stage(
            self.file.path, layers, context=self.config.context, memory=self.budget,
            kv_k=self.kv[0], kv_v=self.kv[1], exact=self.exact, **self._how,
        )  # fmt: skip

    def cache(self) -> Cache:
        """What a new, empty text has here."""
        self._check_open()
        return self.program.store.cache()

    def run(
        self, parts: Sequence[Part], rows: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """One step: see Program.run(). rows: unless this is the first stage, the hidden rows of the
        one before it, float32 (tokens, width). Returns hidden rows likewise, or of the last stage
        the logits that the parts want, float32 (sum of outputs, vocabulary).

        On any error the texts are as before. Raises OutOfMemoryError where the budget has no room,
        FormatError for NaN, naming the tensor.
        """
        self._check_open()
        n_rows = sum(part.outputs if self.is_last else len(part.tokens) for part in parts)
        given = np.empty((n_rows, self.width), np.float32)
        assert self._share is not None
        with naming_nan(self.file, self.program), self.budget.step(self._share, parts):
            self.program.run(parts, given if n_rows else None, rows=rows)
        return given

    def _check_open(self) -> None:
        if self.closed:
            raise ArgumentError(f"{self.file.path}: the stage is closed")

    def close(self) -> None:
        """Frees the scratch and unmaps the file; while a step or a view needs them, an InUseError
        leaves all as it is."""
        if hasattr(self, "program"):
            own = sum(self.file.holds(tensor) for tensor in self.program.weights)
            self.file.require_unviewed(except_for=own)
            self.program.close()
        self.closed = True
        if self._share is not None:
            self.budget.leave(self._share)
        self.file.close()

    def __enter__(self) -> "Stage":
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"layers {self.layers.start}:{self.layers.stop}"
        return f"<Stage of {self.file.path!r}, {state}>"


def _nothing() -> None:
    """It keeps no texts that it can do without, and loads nothing beside its program."""
