"""Bundles: side files with the neurons of a model's feed-forward layers, each in one piece.

In a model's file a neuron's weights of `down` are a column: one in each row. A bundle has for each
neuron this column, then its row of `up`, then that of the gate, where there is one, and zeros up to
whole pages, so that it can be multiplied, or read from the disk, without the others. The last row
is what decides whether a token needs the neuron: it is read from here only where a predictor does
that, and otherwise multiplied with all others. It is a GGUF file with a tensor
`blk.N.ffn_down.neurons` for each `down`, of its type and of shape (neurons, elements), and says
which file it was made of.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError, UnsupportedError
from mmrt.files import formats, origin
from mmrt.files.gguf_writer import Entry, write_gguf
from mmrt.files.origin import SideKind
from mmrt.files.tensor_file import TensorFile

_BUNDLE = SideKind("mmrt-bundle", 2, "bundle of neurons", "mmrt bundle")
_PAGE = 4096

# Numbers of one type, as bytes that belong together.
_WIDTHS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}

_AT_ONCE = 512  # neurons

_WEIGHT, _NEURONS = ".weight", ".neurons"  # how names of tensors end

Progress = Callable[[int, int], None]


def name_of(matrix: Tensor) -> str:
    """Of the tensor that has the columns of this matrix."""
    return matrix.name.removesuffix(_WEIGHT) + _NEURONS


class Neurons(NamedTuple):
    """The neurons of a layer. gate: None where there is none."""

    down: Tensor
    up: Tensor
    gate: Tensor | None


def write_bundle(
    path: str | os.PathLike[str],
    file: TensorFile,
    layers: Sequence[Neurons],
    progress: Progress | None = None,
) -> int:
    """Writes the bundle of these layers of `file`; returns its bytes. `path` gets it only when it
    is whole. progress(done, total) is called with bytes.

    Raises UnsupportedError, naming the tensor, where `down` is not F32, F16 or BF16: blocks of
    other types lie along its rows, and their scales are no neuron's.
    """
    entries = [_entry(neurons) for neurons in layers]
    metadata = origin.written(_BUNDLE, file, [neurons.down for neurons in layers])
    metadata["general.alignment"] = _PAGE
    done, total = 0, sum(entry.nbytes for entry in entries)
    with write_gguf(path, metadata, entries) as writer:
        for neurons, entry in zip(layers, entries, strict=True):
            n_bytes = entry.nbytes // entry.shape[0]
            columns = neurons.down.blocks().view(_WIDTHS[neurons.down.type])
            rows = [matrix.blocks() for matrix in neurons[1:] if matrix is not None]
            for first in range(0, entry.shape[0], _AT_ONCE):
                some = slice(first, min(first + _AT_ONCE, entry.shape[0]))
                bundles = np.zeros((some.stop - some.start, n_bytes), np.uint8)
                column = np.ascontiguousarray(columns[:, some].T).view(np.uint8)
                parts = [column, *(matrix[some] for matrix in rows)]
                ends = np.cumsum([part.shape[1] for part in parts])
                for part, end in zip(parts, ends, strict=True):
                    bundles[:, end - part.shape[1] : end] = part
                writer.write(bundles.reshape(-1).data)
                done += bundles.nbytes
                if progress is not None:
                    progress(done, total)
            del columns, rows
    return total


def _entry(neurons: Neurons) -> Entry:
    down = neurons.down
    if down.type not in _WIDTHS:
        raise UnsupportedError(
            f"tensor {down.name}: {down.type} lies in blocks along its rows; bundles are made of "
            f"{', '.join(_WIDTHS)}"
        )
    width = np.dtype(_WIDTHS[down.type]).itemsize
    n_rows, n_neurons = down.shape
    rows = [matrix for matrix in neurons[1:] if matrix is not None]
    used = n_rows * width + sum(matrix.nbytes // matrix.shape[0] for matrix in rows)
    return Entry(name_of(down), down.type, (n_neurons, -(-used // _PAGE) * _PAGE // width))


def open_bundle(path: str | os.PathLike[str], file: TensorFile) -> TensorFile:
    """The bundle at `path`, which was made of `file`.

    Raises FileError and FormatError as mmrt.open() does, and FormatError, naming the field, where
    it is no bundle, one of another version, or one of another file.
    """
    bundle = formats.open(path)
    try:
        matrices = {name: file.get(name.removesuffix(_NEURONS) + _WEIGHT) for name in bundle}
        origin.require(_BUNDLE, bundle, file, matrices.values())
        for name, matrix in matrices.items():
            _require_columns(bundle, bundle[name], matrix)
    except BaseException:
        bundle.close()
        raise
    return bundle


def _require_columns(bundle: TensorFile, tensor: Tensor, matrix: Tensor | None) -> None:
    fits = matrix is not None and (
        tensor.type == matrix.type
        and tensor.ndim == matrix.ndim == 2
        and tensor.shape[0] == matrix.shape[1]
        and tensor.shape[1] >= matrix.shape[0]
    )
    if not fits:
        of = "a matrix that is there" if matrix is None else f"{matrix.shape} in {matrix.type}"
        raise FormatError(
            f"{bundle.path}: tensor {tensor.name}: {tensor.shape} in {tensor.type}, where columns "
            f"of {of} are expected"
        )
