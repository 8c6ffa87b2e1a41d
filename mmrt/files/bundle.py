"""Bundles: side files with the neurons of a model's feed-forward layers, each in one piece.

In a model's file a neuron's weights of `down` are a column: one in each row. A bundle has for each
neuron this column, then its row of `up`, and zeros up to whole pages, so that it can be multiplied,
or read from the disk, without the others. What decides whether a token needs a neuron is not in it:
that is multiplied whole (the gate; or `up` where there is none). It is a GGUF file with a tensor
`blk.N.ffn_down.neurons` for each `down`, of its type and of shape (neurons, elements), and says
which file it was made of.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError, UnsupportedError
from mmrt.files import formats
from mmrt.files.gguf_writer import Entry, write_gguf
from mmrt.files.tensor_file import TensorFile

_KIND, _VERSION = "mmrt-bundle", 1
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
    """The neurons of a layer. up: None where it decides which of them a token needs."""

    down: Tensor
    up: Tensor | None


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
    metadata = {
        "general.architecture": _KIND,
        "general.alignment": _PAGE,
        f"{_KIND}.version": _VERSION,
        **_origin(file, [neurons.down for neurons in layers]),
    }
    done, total = 0, sum(entry.nbytes for entry in entries)
    with write_gguf(path, metadata, entries) as writer:
        for neurons, entry in zip(layers, entries, strict=True):
            n_bytes = entry.nbytes // entry.shape[0]
            columns = neurons.down.blocks().view(_WIDTHS[neurons.down.type])
            up = None if neurons.up is None else neurons.up.blocks()
            for first in range(0, entry.shape[0], _AT_ONCE):
                some = slice(first, min(first + _AT_ONCE, entry.shape[0]))
                bundles = np.zeros((some.stop - some.start, n_bytes), np.uint8)
                column = np.ascontiguousarray(columns[:, some].T).view(np.uint8)
                bundles[:, : column.shape[1]] = column
                if up is not None:
                    end = column.shape[1] + up.shape[1]
                    bundles[:, column.shape[1] : end] = up[some]
                writer.write(bundles.reshape(-1).data)
                done += bundles.nbytes
                if progress is not None:
                    progress(done, total)
            del columns, up
    return total


def _entry(neurons: Neurons) -> Entry:
    down, up = neurons
    if down.type not in _WIDTHS:
        raise UnsupportedError(
            f"tensor {down.name}: {down.type} lies in blocks along its rows; bundles are made of "
            f"{', '.join(_WIDTHS)}"
        )
    width = np.dtype(_WIDTHS[down.type]).itemsize
    n_rows, n_neurons = down.shape
    used = n_rows * width + (0 if up is None else up.nbytes // up.shape[0])
    return Entry(name_of(down), down.type, (n_neurons, -(-used // _PAGE) * _PAGE // width))


def _origin(file: TensorFile, matrices: Sequence[Tensor]) -> dict[str, Any]:
    """What tells the file from others: its size, its tensors, and the first row of each matrix."""
    table = hashlib.sha256()
    for name, tensor in file.items():
        table.update(f"{name} {tensor.type} {tensor.shape} {tensor.offset}\n".encode())
    for matrix in matrices:
        table.update(matrix[:1].blocks().tobytes())
    return {
        f"{_KIND}.of.size": sum(mapping.size for mapping in file.mappings),
        f"{_KIND}.of.digest": table.hexdigest(),
    }


def open_bundle(path: str | os.PathLike[str], file: TensorFile) -> TensorFile:
    """The bundle at `path`, which was made of `file`.

    Raises FileError and FormatError as mmrt.open() does, and FormatError, naming the field, where
    it is no bundle, one of another version, or one of another file.
    """
    bundle = formats.open(path)
    try:
        _require(bundle, "general.architecture", _KIND, "it is no bundle of neurons")
        _require(bundle, f"{_KIND}.version", _VERSION, "make it anew by mmrt bundle")
        matrices = {name: file.get(name.removesuffix(_NEURONS) + _WEIGHT) for name in bundle}
        origin = _origin(file, [matrix for matrix in matrices.values() if matrix is not None])
        for field, value in origin.items():
            _require(bundle, field, value, f"it was made of another file than {file.path}")
        for name, matrix in matrices.items():
            _require_columns(bundle, bundle[name], matrix)
    except BaseException:
        bundle.close()
        raise
    return bundle


def _require(bundle: TensorFile, field: str, expected: object, what: str) -> None:
    found = bundle.metadata.get(field)
    if found != expected:
        raise FormatError(
            f"{bundle.path}: {field}: expected {expected!r}, found {found!r:.80}: {what}"
        )


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
