"""What ties a side file to the model's file that it was made of, and to the mmrt that reads it."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError
from mmrt.files.tensor_file import TensorFile


class SideKind(NamedTuple):
    """A kind of GGUF file that stands beside a model's. name: its general.architecture."""

    name: str
    version: int
    what: str  # "bundle of neurons"
    command: str  # that makes it


def written(kind: SideKind, file: TensorFile, matrices: Iterable[Tensor]) -> dict[str, Any]:
    """The metadata of a side file that is made of these matrices of `file`: it tells the file from
    others by its size, its tensors, and the first row of each matrix."""
    table = hashlib.sha256()
    for name, tensor in file.items():
        table.update(f"{name} {tensor.type} {tensor.shape} {tensor.offset}\n".encode())
    for matrix in matrices:
        table.update(matrix[:1].blocks().tobytes())
    return {
        "general.architecture": kind.name,
        f"{kind.name}.version": kind.version,
        f"{kind.name}.of.size": sum(mapping.size for mapping in file.mappings),
        f"{kind.name}.of.digest": table.hexdigest(),
    }


def require(
    kind: SideKind, side: TensorFile, file: TensorFile, matrices: Iterable[Tensor | None]
) -> None:
    """FormatError, naming the field, unless `side` is of this kind and version, and was made of
    these matrices of `file`."""
    _require(side, "general.architecture", kind.name, f"it is no {kind.what}")
    _require(side, f"{kind.name}.version", kind.version, f"make it anew by {kind.command}")
    there = [matrix for matrix in matrices if matrix is not None]
    for field, value in written(kind, file, there).items():
        _require(side, field, value, f"it was made of another file than {file.path}")


def _require(side: TensorFile, field: str, expected: object, what: str) -> None:
    found = side.metadata.get(field)
    if found != expected:
        raise FormatError(
            f"{side.path}: {field}: expected {expected!r}, found {found!r:.80}: {what}"
        )
