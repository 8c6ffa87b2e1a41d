"""Predictors: side files that tell, before a layer's neurons are computed, which a token needs.

Liu et al. 2023 (arXiv:2310.17157) and "LLM in a flash" (arXiv:2312.11514): two small matrices, and
a bias for each neuron, make a score of what the feed-forward layer reads; neurons whose score is
not above zero are taken for zero. That is a guess: what a model writes with it is not its own. A
predictor is a GGUF file with, for each matrix `blk.N.ffn_down`, the tensors `.predictor_in` (rank,
width) and `.predictor_out` (neurons, rank) in F16, and `.predictor_bias` (neurons,) in F32. It says
which file it was made of.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError
from mmrt.files import formats, origin
from mmrt.files.finite import is_finite
from mmrt.files.gguf_writer import Entry, write_gguf
from mmrt.files.origin import SideKind
from mmrt.files.tensor_file import TensorFile

_PREDICTOR = SideKind("mmrt-predictor", 1, "predictor of neurons", "mmrt predictor")

_WEIGHT = ".weight"
_IN, _OUT, _BIAS = (f".predictor_{part}" for part in ("in", "out", "bias"))


class Scores(NamedTuple):
    """score = outer @ (inner @ x) + bias, above zero for a neuron that x is predicted to need."""

    inner: NDArray[np.float16]  # (rank, width)
    outer: NDArray[np.float16]  # (neurons, rank)
    bias: NDArray[np.float32]  # (neurons,)

    def of(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(tokens, neurons), of x (tokens, width)."""
        inner, outer = self.inner.astype(np.float32), self.outer.astype(np.float32)
        return np.add(x @ inner.T @ outer.T, self.bias, dtype=np.float32)


class Predictor(NamedTuple):
    """Scores as tensors of a file."""

    inner: Tensor
    outer: Tensor
    bias: Tensor


def write_predictor(
    path: str | os.PathLike[str],
    file: TensorFile,
    layers: Sequence[tuple[Tensor, Scores]],
) -> int:
    """Writes the scores of layers of `file`, each with its matrix `down`; returns their bytes.
    `path` gets the file only when it is whole."""
    entries = []
    for down, scores in layers:
        base = down.name.removesuffix(_WEIGHT)
        entries.append(Entry(base + _IN, "F16", scores.inner.shape))
        entries.append(Entry(base + _OUT, "F16", scores.outer.shape))
        entries.append(Entry(base + _BIAS, "F32", scores.bias.shape))
    metadata = origin.written(_PREDICTOR, file, [down for down, _ in layers])
    with write_gguf(path, metadata, entries) as writer:
        for _, scores in layers:
            for part in scores:
                writer.write(np.ascontiguousarray(part).reshape(-1).data)
    return sum(entry.nbytes for entry in entries)


def open_predictor(path: str | os.PathLike[str], file: TensorFile) -> TensorFile:
    """The predictor at `path`, which was made of `file`.

    Raises FileError and FormatError as mmrt.open() does, and FormatError, naming field or tensor,
    where it is no predictor, one of another version or file, or its parts do not fit the model's
    matrices and each other, or hold what is no number: such a score would name nothing, unnoticed.
    """
    side = formats.open(path)
    try:
        bases = list(dict.fromkeys(name.rpartition(".")[0] for name in side))
        matrices = {base: file.get(base + _WEIGHT) for base in bases}
        origin.require(_PREDICTOR, side, file, matrices.values())
        for base, matrix in matrices.items():
            _require_parts(side, base, matrix)
    except BaseException:
        side.close()
        raise
    return side


def of(side: Mapping[str, Tensor], matrix: Tensor) -> Predictor | None:
    """What tells which neurons' columns of the matrix `down` a token needs; None: nothing does."""
    base = matrix.name.removesuffix(_WEIGHT)
    if base + _IN not in side:
        return None
    return Predictor(side[base + _IN], side[base + _OUT], side[base + _BIAS])


def _require_parts(side: TensorFile, base: str, matrix: Tensor | None) -> None:
    width, neurons = matrix.shape if matrix is not None and matrix.ndim == 2 else (0, 0)
    inner = side.get(base + _IN)
    rank = inner.shape[0] if inner is not None and inner.ndim == 2 else 0
    expected = {
        _IN: ("F16", (rank, width)),
        _OUT: ("F16", (neurons, rank)),
        _BIAS: ("F32", (neurons,)),
    }
    for suffix, (type, shape) in expected.items():
        tensor = side.get(base + suffix)
        if tensor is None or tensor.type != type or tensor.shape != shape or 0 in shape:
            found = "none" if tensor is None else f"{tensor.shape} in {tensor.type}"
            raise FormatError(
                f"{side.path}: tensor {base}{suffix}: expected {shape} in {type}, found {found}"
            )
        if not is_finite(tensor):
            raise FormatError(f"{side.path}: tensor {base}{suffix} holds NaN or infinity")
