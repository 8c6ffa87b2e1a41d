"""A model's tensors by name: one error for those that are missing, and a list of those that nobody
has asked for."""

import math
from collections.abc import Mapping

from mmrt.core.program import Matrix
from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError
from mmrt.files import bundle, predictor
from mmrt.files.predictor import Predictor


class Weights:
    """The tensors of `file`. side: those of a bundle and a predictor, if there are such: see
    files/bundle.py, files/predictor.py."""

    def __init__(
        self, file: Mapping[str, Tensor], side: Mapping[str, Tensor] | None = None
    ) -> None:
        self._file = file
        self._side = side or {}
        self._used: set[str] = set()

    def get(self, name: str) -> Tensor | None:
        """The tensor, or None if the model has none."""
        tensor = self._file.get(name)
        if tensor is not None:
            self._used.add(name)
        return tensor

    def columns(self, matrix: Tensor) -> Tensor | None:
        """The columns of a matrix, if the side file has them."""
        return self._side.get(bundle.name_of(matrix))

    def predictor(self, matrix: Tensor) -> Predictor | None:
        """What tells which columns of a matrix a token needs, if the side file has that."""
        return predictor.of(self._side, matrix)

    def has(self, name: str) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.get(name)
        if tensor is None:
            raise FormatError(f"tensor {name} is missing")
        return tensor

    def used(self) -> list[str]:
        """The names of the tensors that somebody has asked for, in file order."""
        return [name for name in self._file if name in self._used]

    def unused(self) -> list[str]:
        """The names of the tensors that have elements and that nobody has asked for."""
        return [n for n, tensor in self._file.items() if n not in self._used and tensor.nbytes]

    def matrix(self, name: str, otherwise: Tensor | None = None) -> Matrix:
        """`name.weight`, or this tensor if the model has none, with `name.bias` and `name.scale`
        where the model has them."""
        weight = self.get(f"{name}.weight")
        if weight is None:  # asked for so, as a tensor without rows counts as false
            weight = otherwise if otherwise is not None else self[f"{name}.weight"]
        return Matrix(weight, self.get(f"{name}.bias"), self.scale(name))

    def scale(self, name: str) -> float:
        """`name.scale`, the factor of a matrix; 1 if the model has none."""
        return self.factor(f"{name}.scale")

    def factor(self, name: str) -> float:
        """The number that this tensor is; 1 if the model has none."""
        tensor = self.get(name)
        if tensor is None:
            return 1.0
        if math.prod(tensor.shape) != 1:
            raise FormatError(f"tensor {name}: shape {tensor.shape} where (1,) is expected")
        scale = float(tensor.dequantize().reshape(-1)[0])
        if not math.isfinite(scale):
            raise FormatError(f"tensor {name}: expected a finite number, found {scale}")
        return scale

    def layer(self, index: int) -> "Layer":
        """Those of the layer `index`, counted from 0."""
        return Layer(self, index)


class Layer:
    """The tensors `blk.<index>.<name>.weight`, and what stands beside them."""

    def __init__(self, weights: Weights, index: int) -> None:
        self._weights = weights
        self._prefix = f"blk.{index}."
        self.index = index

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[f"{self._prefix}{name}.weight"]

    def get(self, name: str) -> Tensor | None:
        """The weight, or None if the layer has none."""
        return self._weights.get(f"{self._prefix}{name}.weight")

    def beside(self, name: str) -> Tensor | None:
        """A tensor of the layer by its whole name, such as "ffn_down_exps.scale"; None: it has
        none."""
        return self._weights.get(f"{self._prefix}{name}")

    def needed(self, name: str) -> Tensor:
        """As beside(). FormatError if the layer has none."""
        return self._weights[f"{self._prefix}{name}"]

    def flat(self, name: str, rows: int, width: int) -> Tensor:
        """As needed(), of a matrix of this shape as a vector of all of its elements, which the file
        may have it as. FormatError if it has another shape."""
        tensor = self.needed(name)
        if tensor.shape not in ((rows, width), (rows * width,)):
            raise FormatError(
                f"tensor {tensor.name}: shape {tensor.shape} where {(rows, width)} is expected"
            )
        return Tensor(tensor.mapping, tensor.name, tensor.type, (rows * width,), tensor.offset)

    def stack(self, name: str, rows: int = 0) -> Matrix:
        """The matrices of a layer's experts (experts, rows, width), with biases, and a scale of all
        or of each, where the file has them; rows: as matrix()'s."""
        weight, scales = self[name], self.beside(f"{name}.scale")
        require_rows(weight, rows)
        bias = self.beside(f"{name}.bias")
        if scales is not None and scales.size > 1:
            return Matrix(weight, bias, scales)
        return Matrix(weight, bias, self._weights.scale(f"{self._prefix}{name}"))

    def matrix(self, name: str, rows: int = 0) -> Matrix:
        """As Weights.matrix(); rows: how many it must have, if not 0."""
        matrix = self._weights.matrix(f"{self._prefix}{name}")
        require_rows(matrix.weight, rows)
        return matrix

    def split(self, name: str, *rows: int) -> list[Matrix]:
        """The matrices, of so many rows each, that the file has as one, one below the other."""
        weight, bias, scale = self.matrix(name)
        for tensor, n_dims in ((weight, 2), (bias, 1)):
            if tensor is not None and (len(tensor.shape) != n_dims or len(tensor) != sum(rows)):
                expected = f"{sum(rows)} rows" if n_dims == 2 else f"({sum(rows)},)"
                raise FormatError(
                    f"tensor {tensor.name}: shape {tensor.shape} where {expected} is expected"
                )
        matrices, first = [], 0
        for n in rows:
            part = slice(first, first + n)
            matrices.append(Matrix(weight[part], bias if bias is None else bias[part], scale))
            first += n
        return matrices


def require_rows(tensor: Tensor, rows: int) -> None:
    """FormatError if a matrix, or each of a stack, has another number of rows; 0: any will do."""
    found = tensor.shape
    if rows and len(found) > 1 and found[-2] != rows:
        expected = (*found[:-2], rows, found[-1])
        raise FormatError(f"tensor {tensor.name}: shape {found} where {expected} is expected")


def require_taps(kernel: Tensor, channels: int, taps: int) -> None:
    """FormatError if the kernel of a convolution has another shape."""
    if kernel.shape != (channels, taps):
        raise FormatError(
            f"tensor {kernel.name}: shape {kernel.shape} where ({channels}, {taps}) is expected"
        )
