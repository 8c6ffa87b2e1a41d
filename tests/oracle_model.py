"""A file as oracle.py reads it: metadata, and dequantised tensors with products of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from oracle_functions import Array, round_to_int8

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


class Model:
    """Metadata and dequantised tensors of one file.

    rounding: keys and values to float16, and to int8 what is multiplied with a quantised matrix.
    context: the most tokens of a text, if not as many as the file says.
    """

    def __init__(self, path: str | Path, rounding: bool = False, context: int = 0) -> None:
        self.reader = GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.architecture = str(self.reader.fields["general.architecture"].contents())
        self.rounding = rounding
        self.context = context or self.get("context_length")

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own metadata; a key without default must be there. An array
        is a list."""
        field = self.reader.fields.get(f"{self.architecture}.{key}")
        if field is None and default is None:
            raise KeyError(f"{self.architecture}.{key}")
        return default if field is None else field.contents()

    def tensor(self, name: str, rows: slice | NDArray[np.int64] = slice(None)) -> Array:
        tensor = self.tensors[name]
        return np.asarray(dequantize(tensor.data[rows], tensor.tensor_type), np.float32)

    def layer(self, index: int) -> "Layer":
        return Layer(self, f"blk.{index}.")

    def product(
        self, x: Array, name: str, rows: slice = slice(None), beside: str | None = None
    ) -> Array:
        """The matrix `name` times x, then its scale and its bias, where the file has them.
        beside: what scale and bias are called, if not as the matrix."""
        weight, beside = f"{name}.weight", beside or name
        if self.rounding and self.tensors[weight].tensor_type not in FLOATS:
            x = round_to_int8(x)
        y = x @ self.tensor(weight, rows).T
        if f"{beside}.scale" in self.tensors:
            y = y * self.tensor(f"{beside}.scale")
        if f"{beside}.bias" in self.tensors:
            y = y + self.tensor(f"{beside}.bias", rows)
        return y

    def stored(self, x: Array) -> Array:
        """Keys or values as they come back from the cache."""
        return x.astype(np.float16).astype(np.float32) if self.rounding else x


@dataclass
class Layer:
    model: Model
    prefix: str

    def __call__(self, name: str) -> Array:
        return self.model.tensor(f"{self.prefix}{name}.weight")

    def product(self, x: Array, name: str) -> Array:
        return self.model.product(x, f"{self.prefix}{name}")

    def product_of_heads(self, x: Array, name: str) -> Array:
        """The matrix of each head times its part of x (positions, heads, width)."""
        stack = self.model.tensors[f"{self.prefix}{name}.weight"]
        if self.model.rounding and stack.tensor_type not in FLOATS:
            x = round_to_int8(x)
        return np.asarray(np.einsum("thi,hoi->tho", x, self(name)), np.float32)

    def has(self, name: str) -> bool:
        return f"{self.prefix}{name}" in self.model.tensors

    def of_expert(self, expert: int, x: Array, name: str) -> Array:
        """The matrix of one expert times x, then its scale and its bias, if any."""
        stack = self.model.tensors[f"{self.prefix}{name}.weight"]
        if self.model.rounding and stack.tensor_type not in FLOATS:
            x = round_to_int8(x)
        matrix = np.asarray(dequantize(stack.data[expert], stack.tensor_type), np.float32)
        y = x @ matrix.T
        if self.has(f"{name}.scale"):
            scales = self.model.tensor(f"{self.prefix}{name}.scale")
            y = y * scales[expert if len(scales) > 1 else 0]
        if self.has(f"{name}.bias"):
            y = y + self.model.tensor(f"{self.prefix}{name}.bias")[expert]
        return np.asarray(y)

    def gate_and_up(self, expert: int, x: Array) -> list[Array]:
        """Of two matrices of one expert, or of one that has them one below the other; or of the
        only one that it has."""
        if not self.has("ffn_gate_exps.weight") and not self.has("ffn_gate_up_exps.weight"):
            return [self.of_expert(expert, x, "ffn_up_exps")]
        if self.has("ffn_gate_up_exps.weight"):
            return np.split(self.of_expert(expert, x, "ffn_gate_up_exps"), 2, axis=-1)
        return [self.of_expert(expert, x, f"ffn_{which}_exps") for which in ("gate", "up")]

    def queries_keys_values(self, x: Array, head_dim: int) -> list[Array]:
        """Of three matrices, or of one that has them one below the other."""
        if f"{self.prefix}attn_qkv.weight" in self.model.tensors:
            kv = one_of(self.model.get("attention.head_count_kv")) * head_dim
            all_three = self.product(x, "attn_qkv")
            parts = np.split(all_three, [-2 * kv, -kv], axis=-1)
        else:
            parts = [self.product(x, f"attn_{which}") for which in "qkv"]
        return [split_heads(part, head_dim) for part in parts]


def one_of(value: Any) -> Any:
    """A value that may be an array with the same for each layer."""
    return value[0] if isinstance(value, list) else value


def split_heads(x: Array, head_dim: int) -> Array:
    return x.reshape(len(x), -1, head_dim)
