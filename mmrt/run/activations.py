"""What a model's feed-forward layers read, and which of their neurons that leaves at zero: layer by
layer, each of which all texts go through before the next, so that weights are read once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.kernels import Pool
from mmrt.core.program import Matrix, Part, Program
from mmrt.core.state import Cache
from mmrt.core.tensor import Tensor
from mmrt.files.finite import naming_nan
from mmrt.files.tensor_file import TensorFile
from mmrt.run.building import build


class Activations(NamedTuple):
    """Of one layer, for the tokens of all texts in turn. down: the matrix that reads neurons."""

    down: Tensor
    read: NDArray[np.float32]  # (tokens, width)
    active: NDArray[np.bool_]  # (tokens, neurons): which are not zero


class _Layer(Program):
    """The program of one layer: gives the stream, unless the layer is the last; then what neurons
    read, and these."""

    down: Tensor | None = None
    widths = (0, 0)  # of what the neurons read, and of these
    _read = -1

    def append(self, kind: str, note: str, weights: Any = (), /, **fields: float) -> None:
        super().append(kind, note, weights, **fields | {"outputs_only": False})

    def unit(self, in_: int, *rest: Any, **options: Any) -> None:
        self._read = in_
        super().unit(in_, *rest, **options)

    def glu(self, in_: int, *rest: Any, **options: Any) -> None:
        self._read = in_
        super().glu(in_, *rest, **options)

    def sparse(self, in_: int, matrix: Tensor | Matrix, *rest: Any, **options: Any) -> None:
        super().sparse(in_, matrix, *rest, **options)
        self.down = matrix.weight if isinstance(matrix, Matrix) else matrix
        self.widths = self._widths[self._read], self._widths[in_]
        self._neurons = in_

    def norm(self, *rest: Any, **options: Any) -> None:
        if self.down is None:  # what neurons read is in the buffer that the last one writes
            super().norm(*rest, **options)

    def give(self, in_: int) -> None:
        super().give(in_)
        self._give_neurons()

    def logits(self, in_: int, *_: Any, **__: Any) -> None:
        if self.down is None:  # a program has to give something
            super().give(in_)
        self._give_neurons()

    def _give_neurons(self) -> None:
        if self.down is not None:
            super().give(self._read)
            super().give(self._neurons)


def activations(
    file: TensorFile, texts: Sequence[Sequence[int]], threads: int | None = None
) -> Iterator[Activations]:
    """Those of the layers of the model in `file` that have ReLU or one of its family, in order.
    texts: token ids, each text a step.

    Raises as build() does, and FormatError for NaN, naming the tensor.
    """
    pool, rows, n_layers, layer = Pool(threads), None, 1, 0
    starts = np.cumsum([0, *map(len, texts)])
    while layer < n_layers:
        built = build(file, pool, partial=True, layers=range(layer, layer + 1), make=_Layer)
        program = built.program
        assert isinstance(program, _Layer)
        read, neurons = program.widths
        width = program.given - read - neurons
        stream = np.empty((starts[-1], width), np.float32)
        found = np.empty((starts[-1], read), np.float32)
        active = np.empty((starts[-1], neurons), np.bool_)
        for ids, start in zip(texts, starts, strict=False):
            here = slice(start, start + len(ids))
            given = np.empty((len(ids), program.given), np.float32)
            part = Part(Cache(built.store), np.asarray(ids, np.int32), len(ids))
            with naming_nan(file, program):
                program.run([part], given, rows=None if rows is None else rows[here])
            stream[here] = given[:, :width]
            found[here] = given[:, width : width + read]
            active[here] = given[:, width + read :] != 0
        rows, n_layers, layer = stream, built.config.n_layers, layer + 1
        down = program.down
        program.close()
        if down is not None:
            yield Activations(down, found, active)
