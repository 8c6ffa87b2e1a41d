"""Writes the model in a GGUF file again, its matrices as F16: `python -m bench.dequantise IN OUT`.

OUT computes what IN does but for the rounding of activations. It stands for a model in F16 of which
only a quantised file is at hand: `mmrt quantize OUT TWIN Q2_K` makes a draft for it that shares its
vocabulary, and is related to it as quantised files are to the models that they were made of.
Metadata and the order of tensors stay.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np

from mmrt.core.gguf import Metadata
from mmrt.core.tensor import Tensor
from mmrt.errors import MmrtError, UnsupportedError
from mmrt.files import formats
from mmrt.files.gguf_writer import Entry, RawValue, write_gguf

_F16 = 1  # of general.file_type

_CHUNK = 1 << 22  # elements at a time


def dequantise(source: str, target: str) -> None:
    """Memory: a piece of a matrix at a time. Raises UnsupportedError where `source` is no GGUF
    file, FileError where the system refuses."""
    with formats.open(source) as file:
        if not isinstance(file.metadata, Metadata):
            raise UnsupportedError(f"{file.path}: {file.format} files have no blocks, only GGUF")
        raw = {key: RawValue(*file.metadata.raw(key)) for key in file.metadata}
        kept = {key: value for key, value in raw.items() if not key.startswith("split.")}
        tensors = list(file.values())
        entries = [Entry(each.name, _type(each), each.shape) for each in tensors]
        with write_gguf(target, {**kept, "general.file_type": _F16}, entries) as writer:
            for tensor, entry in zip(tensors, entries, strict=True):
                for piece in _pieces(tensor, entry.type):
                    writer.write(piece)


def _type(tensor: Tensor) -> str:
    return tensor.type if tensor.ndim < 2 or tensor.dtype is not None else "F16"


def _pieces(tensor: Tensor, type: str) -> Iterator[bytes]:
    if type == tensor.type:
        yield tensor.blocks().tobytes()
        return
    at_once = max(_CHUNK // max(math.prod(tensor.shape[1:]), 1), 1)
    for first in range(0, tensor.shape[0], at_once):
        yield tensor[first : first + at_once].dequantize().astype(np.float16).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    arguments = parser.parse_args()
    try:
        dequantise(arguments.source, arguments.target)
    except MmrtError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
