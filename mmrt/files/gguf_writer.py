"""Writing GGUF files: a header, then the tensors one after another, as they come."""

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from mmrt.core.quant import TYPES
from mmrt.errors import ArgumentError
from mmrt.files.whole_file import WholeFile, whole_file

VERSION = 3
ALIGNMENT = 32  # of tensors, where general.alignment does not say otherwise

# Numbers of value types in the file, and how struct spells them.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 4, 5, 6, 7, 8, 9, 10, 11
_SPELLING = {_UINT32: "I", _INT32: "i", _FLOAT32: "f", _BOOL: "?", _UINT64: "Q", _INT64: "q"}


class RawValue(NamedTuple):
    """A metadata value as it stands in a file: the number of its type, and the bytes behind it."""

    type: int
    data: bytes


class Entry(NamedTuple):
    """A tensor to be written: rows before columns in its shape, as in NumPy."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        kind = TYPES[self.type]
        *rows, cols = self.shape or (1,)
        if cols % kind.elements:
            raise ArgumentError(
                f"tensor {self.name!r}: rows of {cols} are not whole blocks of {self.type}"
            )
        blocks = cols // kind.elements
        for n in rows:
            blocks *= n
        return blocks * kind.bytes


class GgufWriter:
    """Takes the bytes of all tensors, in order and in pieces of any size."""

    def __init__(self, file: WholeFile, tensors: Sequence[Entry], alignment: int) -> None:
        self._file = file
        self._tensors = iter(tensors)
        self._alignment = alignment
        self._name, self._left = "", 0

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of a tensor; they may not reach into the one after it."""
        size = memoryview(data).nbytes
        while not self._left and size:
            tensor = next(self._tensors)
            self._name, self._left = tensor.name, tensor.nbytes
        if size > self._left:
            raise ArgumentError(f"tensor {self._name!r} was given {size - self._left} bytes more")
        self._file.write(data)
        self._left -= size
        if not self._left:
            self._file.write(_padding(self._file.size, self._alignment))

    def _finish(self) -> None:
        if self._left or any(tensor.nbytes for tensor in self._tensors):
            raise ArgumentError(f"{self._file.path}: not all tensors were written")


@contextmanager
def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[Entry],
) -> Iterator[GgufWriter]:
    """Writes a GGUF file to `path`, which it gets only when the block has ended well.

    metadata: numbers, strings, bools, lists of one of them, or RawValues. Whole numbers become
    UINT32 where they fit, those in lists INT32; floats become FLOAT32. In the block, the bytes of
    all tensors are to be given to the writer, in this order.

    Raises FileError where the system refuses, ArgumentError where a value or shape has no place in
    the format.
    """
    alignment = _alignment(metadata)
    fields = b"".join(_text(key) + _value(key, value) for key, value in metadata.items())
    header = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)) + fields
    offset, infos = 0, []
    for tensor in tensors:
        dims = tensor.shape[::-1]
        infos.append(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        infos.append(struct.pack("<IQ", TYPES[tensor.type].id, offset))
        offset += tensor.nbytes
        offset += len(_padding(offset, alignment))
    header += b"".join(infos)
    header += _padding(len(header), alignment)
    with whole_file(path) as file:
        file.reserve(len(header) + offset)
        file.write(header)
        writer = GgufWriter(file, tensors, alignment)
        yield writer
        writer._finish()


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    return int.from_bytes(value.data, "little") if isinstance(value, RawValue) else int(value)


def _padding(size: int, alignment: int) -> bytes:
    return bytes(-size % alignment)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, RawValue):
        return struct.pack("<I", value.type) + value.data
    if not isinstance(value, list):
        kind = _type_of(key, value)
        return struct.pack("<I", kind) + _packed(kind, [value])
    kind = _type_of(key, value[0]) if value else _INT32
    if kind in (_UINT32, _UINT64, _INT64):
        kind = _INT32
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + _packed(kind, value)


def _type_of(key: str, value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        bits = value.bit_length()
        return (
            (_UINT32 if bits <= 32 else _UINT64) if value >= 0 else _INT32 if bits < 32 else _INT64
        )
    if isinstance(value, float):
        return _FLOAT32
    if isinstance(value, str):
        return _STRING
    raise ArgumentError(f"metadata {key!r}: a value of type {type(value).__name__} has no place")


def _packed(kind: int, values: Sequence[Any]) -> bytes:
    if kind == _STRING:
        return b"".join(map(_text, values))
    return struct.pack(f"<{len(values)}{_SPELLING[kind]}", *values)
