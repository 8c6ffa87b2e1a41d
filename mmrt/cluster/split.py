"""Writing a file of some of a model's layers, for a machine whose disk does not hold them all."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mmrt.core.gguf import Metadata
from mmrt.core.kernels import Pool
from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.files import formats
from mmrt.files.gguf_writer import Entry, RawValue, write_gguf
from mmrt.run.building import LAYERS, build

_PIECE = 4 << 20  # bytes copied between two looks at Ctrl-C


def split(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    layers: range,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes to `target` what a stage of these layers needs of the model in the GGUF file `source`:
    their tensors, those that it reads beside them, all metadata, and `mmrt.layers` that says which
    layers they are. Returns the tensors' bytes. progress(done, total): called now and then.

    `target` appears when it is whole. Raises what Stage does for a model that does not run, and
    ArgumentError for layers that are not there, or `target` being a part of `source`.
    """
    with formats.open(source) as file:
        if os.path.exists(target) and any(os.path.samefile(target, path) for path in file.paths):
            raise ArgumentError(f"{os.fspath(target)}: is the file to be read, and must stay")
        built = build(file, Pool(1), partial=True, layers=layers)
        built.program.close()
        tensors = [file[name] for name in built.tensors]
        total, done = sum(tensor.nbytes for tensor in tensors), 0
        entries = [Entry(tensor.name, str(tensor.type), tensor.shape) for tensor in tensors]
        with write_gguf(target, _metadata(file, layers), entries) as writer:
            for tensor in tensors:
                for first in range(0, tensor.nbytes, _PIECE):
                    start, size = tensor.offset + first, min(_PIECE, tensor.nbytes - first)
                    with memoryview(tensor.mapping) as mapped, mapped[start : start + size] as data:
                        writer.write(data)
                    with suppress(ArgumentError):  # some may be locked
                        tensor.mapping.advise("dontneed", start, size)
                    done += size
                    if progress:
                        progress(done, total)
        return total


def _metadata(file: formats.TensorFile, layers: range) -> dict[str, Any]:
    old = file.metadata
    if not isinstance(old, Metadata):
        raise UnsupportedError(f"{file.path}: {file.format} files cannot be split, only GGUF")
    kept = {key: RawValue(*old.raw(key)) for key in old if not key.startswith("split.")}
    return {**kept, LAYERS: [layers.start, layers.stop]}
