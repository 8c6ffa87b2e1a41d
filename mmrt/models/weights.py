"""A model's tensors by name, with one error for those that are missing."""

from collections.abc import Mapping

from mmrt.errors import FormatError
from mmrt.tensor import Tensor


class Weights:
    """The tensors of `file`."""

    def __init__(self, file: Mapping[str, Tensor]) -> None:
        self._file = file

    def get(self, name: str) -> Tensor | None:
        """The tensor, or None if the model has none."""
        return self._file.get(name)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.get(name)
        if tensor is None:
            raise FormatError(f"tensor {name} is missing")
        return tensor

    def layer(self, index: int) -> "Layer":
        """Those of the layer `index`, counted from 0."""
        return Layer(self, index)


class Layer:
    """The tensors `blk.<index>.<name>.weight` (or `.bias`)."""

    def __init__(self, weights: Weights, index: int) -> None:
        self._weights = weights
        self._prefix = f"blk.{index}."

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[f"{self._prefix}{name}.weight"]

    def get(self, name: str) -> Tensor | None:
        """The weight, or None if the layer has none."""
        return self._weights.get(f"{self._prefix}{name}.weight")

    def bias(self, name: str) -> Tensor | None:
        """The bias, or None if the layer has none."""
        return self._weights.get(f"{self._prefix}{name}.bias")
