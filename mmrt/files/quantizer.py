"""Making a smaller GGUF file of a model: its matrices as blocks of another tensor type."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from mmrt.core.arguments import text
from mmrt.core.gguf import Metadata
from mmrt.core.kernels import Pool
from mmrt.core.quant import TYPES
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.files import formats
from mmrt.files.formats import TensorFile
from mmrt.files.gguf_writer import Entry, RawValue, write_gguf

# The types that a model can be quantised to, with the number by which files name such a mixture
# (general.file_type), and the type for rows that are not whole blocks of 256.
_FILE_TYPES = {
    "Q4_0": (2, None),
    "Q4_1": (3, None),
    "Q5_0": (8, None),
    "Q5_1": (9, None),
    "Q8_0": (7, None),
    "Q2_K": (10, "IQ4_NL"),
    "Q3_K": (11, "IQ4_NL"),
    "Q4_K": (14, "Q5_0"),
    "Q5_K": (16, "Q5_1"),
    "Q6_K": (18, "Q8_0"),
    "IQ4_NL": (25, None),
    "TQ2_0": (37, "IQ4_NL"),
}
QUANTIZABLE = tuple(_FILE_TYPES)

# What stands in for types that are not among them: by how their names begin, or by their bits.
_BY_FAMILY = {"IQ4": "IQ4_NL", "TQ": "TQ2_0"}
_BY_BITS = {
    "1": "Q2_K", "2": "Q2_K", "3": "Q3_K", "4": "Q4_K", "5": "Q5_K", "6": "Q6_K", "8": "Q8_0",
}  # fmt: skip

# What it can be quantised from: any other type has lost too much already.
SOURCES = ("F32", "F16", "BF16", "Q8_0")

# The matrix that makes the logits matters most: it gets at least this many bits.
_OUTPUT_TYPE = "Q6_K"

# Matrices that are small, and choose or place rather than multiply.
_KEPT = ("ffn_gate_inp", "position_embd", "token_types", "rope_freqs", "ssm_conv1d")

_CHUNK = 1 << 20  # elements quantised between two looks at Ctrl-C


def nearest(name: str) -> str | None:
    """Of QUANTIZABLE, the type that stands in for another or for a mixture that llama.cpp makes: of
    the same kind ("Q4_K" for "Q4_K_M"), or of about as many bits. None where nothing does."""
    word = name.upper()
    families = {kind: kind for kind in sorted(QUANTIZABLE, key=len, reverse=True)} | _BY_FAMILY
    for beginning, kind in families.items():
        if word.startswith(beginning):
            return kind
    bits = re.search(r"(?:Q|FP|INT)(\d+)", word)
    return _BY_BITS.get(bits[1]) if bits else None


class Choice(NamedTuple):
    """What becomes of a tensor: its type now and then, and why that is not the one asked for."""

    name: str
    shape: tuple[int, ...]
    source: str
    target: str
    reason: str = ""


class Quantized(NamedTuple):
    """What quantize() did. Sizes are those of all tensors, in bytes."""

    choices: list[Choice]
    size_before: int
    size_after: int


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quantized:
    """Writes the model in the GGUF file `source` to `target`, its matrices as blocks of `type`.

    type: one of QUANTIZABLE. Matrices are F32, F16, BF16 or Q8_0 in `source`, which may be one of
    several parts; `target` is a single file, with the same metadata and the same order of tensors.
    Vectors (norms, biases) keep their type. See choose() for the matrices that get another one.
    threads: None for one on each CPU. progress(done, total): called now and then, in bytes read.

    Memory: one piece of a matrix at a time, about a million elements, mapped or not. `target`
    appears when it is whole; on any failure, and on Ctrl-C, nothing of it is left.

    Raises ArgumentError for a type that is none of those, or `target` being a part of `source`;
    FormatError for a weight that is NaN, infinite or larger than 65504; UnsupportedError for
    matrices of other types, or a file that is not GGUF; FileError where the system refuses.
    """
    pool = Pool(threads)
    text("type", type)
    with formats.open(source) as file:
        choices = choose(file, type)
        if os.path.exists(target) and any(os.path.samefile(target, path) for path in file.paths):
            raise ArgumentError(f"{os.fspath(target)}: is the file to be read, and must stay")
        entries = [Entry(choice.name, choice.target, choice.shape) for choice in choices]
        done = 0
        with write_gguf(target, _new_metadata(_metadata(file), type), entries) as writer:
            for choice in choices:
                tensor = file[choice.name]
                for piece, n_bytes in _pieces(tensor, choice.target, pool):
                    writer.write(piece)
                    done += n_bytes
                    if progress:
                        progress(done, file.nbytes)
        return Quantized(choices, file.nbytes, sum(entry.nbytes for entry in entries))


def choose(file: TensorFile, type: str) -> list[Choice]:
    """The type that each tensor of `file` gets when it is quantised to `type`, in file order.

    - What is no matrix of weights keeps its type, and so does a matrix that is of `type` already,
      or whose rows are not whole blocks of 32.
    - Where rows are not whole blocks of 256 and `type` needs them, a type of blocks of 32 with no
      fewer bits takes its place.
    - The output matrix, or the embedding if that is the output too, gets at least Q6_K.
    """
    if type not in _FILE_TYPES:
        near = nearest(type)
        hint = f"; {near} comes nearest" if near else ""
        raise ArgumentError(f"cannot quantize to {type!r}, only to {', '.join(QUANTIZABLE)}{hint}")
    _metadata(file)
    output = "output.weight" if "output.weight" in file else "token_embd.weight"
    return [_choose_one(file, tensor, type, tensor.name == output) for tensor in file.values()]


def _choose_one(file: TensorFile, tensor: Tensor, type: str, is_output: bool) -> Choice:
    if tensor.unreadable:
        raise UnsupportedError(f"{file.path}: tensor {tensor.name!r}: {tensor.unreadable}")
    kept = Choice(tensor.name, tensor.shape, tensor.type, tensor.type)
    if not _is_matrix(tensor):
        return kept
    target, reason = type, ""
    if is_output and _bits(type) < _bits(_OUTPUT_TYPE):
        target, reason = _OUTPUT_TYPE, "it makes the logits"
    cols = tensor.shape[-1]
    if cols % TYPES[target].elements:
        target = _FILE_TYPES[target][1] or target
        reason = f"rows of {cols} are not whole blocks of 256"
    if cols % TYPES[target].elements:
        return kept._replace(reason=f"rows of {cols} are not whole blocks of 32")
    if tensor.type == target:
        return kept._replace(reason=reason)
    if tensor.type not in SOURCES:
        raise UnsupportedError(
            f"{file.path}: tensor {tensor.name!r} is {tensor.type} already: to quantize it again "
            f"would lose too much; start from a file of {', '.join(SOURCES)}"
        )
    return kept._replace(target=target, reason=reason)


def _is_matrix(tensor: Tensor) -> bool:
    role = tensor.name.removesuffix(".weight")
    return (
        role != tensor.name
        and len(tensor.shape) > 1
        and math.prod(tensor.shape) > 0
        and not role.endswith("_norm")
        and role.rpartition(".")[2] not in _KEPT
    )


def _bits(type: str) -> float:
    return 8 * TYPES[type].bytes / TYPES[type].elements


def _metadata(file: TensorFile) -> Metadata:
    if not isinstance(file.metadata, Metadata):
        raise UnsupportedError(f"{file.path}: {file.format} files cannot be quantized, only GGUF")
    return file.metadata


def _new_metadata(old: Metadata, type: str) -> dict[str, Any]:
    """The same, but for what says how it is quantised, and into how many parts it is split."""
    kept = {key: RawValue(*old.raw(key)) for key in old if not key.startswith("split.")}
    return {**kept, "general.quantization_version": 2, "general.file_type": _FILE_TYPES[type][0]}


def _pieces(tensor: Tensor, type: str, pool: Pool) -> Iterator[tuple[Any, int]]:
    """The tensor's bytes as `type`, with the bytes that were read for each piece, of which the
    pages are then unmapped."""
    if not tensor.nbytes:
        return
    n_rows = math.prod(tensor.shape[:-1])
    row_bytes = tensor.nbytes // n_rows
    at_once = max(_CHUNK // (math.prod(tensor.shape) // n_rows), 1)
    for first in range(0, n_rows, at_once):
        rows = min(at_once, n_rows - first)
        start, size = tensor.offset + first * row_bytes, rows * row_bytes
        if type == tensor.type:
            with memoryview(tensor.mapping) as file, file[start : start + size] as piece:
                yield piece, size
        else:
            yield tensor.quantize(type, first, rows, pool), size
        with suppress(ArgumentError):  # some may be locked
            tensor.mapping.advise("dontneed", start, size)
