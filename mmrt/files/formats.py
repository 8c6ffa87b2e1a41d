"""Weight files, opened by mapping them. A new format is one line in FORMATS."""

import copyreg
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmrt.core import arguments
from mmrt.core.mapping import Mapping
from mmrt.files import gguf, npy, policies, safetensors
from mmrt.files.header import unlike
from mmrt.files.tensor_file import TensorFile

__all__ = ["FORMATS", "Format", "TensorFile", "from_mapping", "open"]


class Format(NamedTuple):
    name: str
    matches: Callable[[bytes, str], bool]  # whether a file is one, by its first bytes and its path
    open: Callable[[Mapping], TensorFile]


# The first that matches is taken; safetensors, which has no magic, asks last.
FORMATS = [
    Format("GGUF", gguf.matches, gguf.open_gguf),
    Format("npy, npz", npy.matches, npy.open_npy),
    Format("safetensors", safetensors.matches, safetensors.open_safetensors),
]

# Enough to tell the format, and little enough to cost nothing to read.
_HEAD = 4096


def open(path: str | os.PathLike[str], *, policy: str = "lazy") -> TensorFile:
    """Opens the weight file at `path`, whose format its first bytes tell.

    Maps the file and reads its header, none of its weights. Of a GGUF split into parts
    (`...-00001-of-0000N.gguf`) any part opens all. A `....safetensors.index.json` opens all shards
    that it names; a shard opens alone. `policy` says how the weights then come into memory: one of
    mmrt.policies.POLICIES.

    Raises FileError where a file cannot be opened or mapped, FormatError where its content is not
    what its format says or is of no known format, UnsupportedError where it is sound but of a kind
    that mmrt does not know, ArgumentError for an unknown policy, OutOfMemoryError where a policy
    needs more memory than there is.
    """
    apply = policies.policy(policy)
    mapping = Mapping(arguments.path("path", path))
    try:
        file = from_mapping(mapping)
    except BaseException:
        mapping.close()
        raise
    try:
        apply(list(file.values()), None)
    except BaseException:
        file.close()
        raise
    return file


def _reopen(mappings: Sequence[Mapping]) -> TensorFile:
    """The TensorFile that was pickled. Unpickling the mappings has already verified that the files
    are still the same."""
    try:
        return from_mapping(mappings[0])
    except BaseException:
        mappings[0].close()
        raise
    finally:
        for mapping in mappings[1:]:  # the format opens these by itself
            mapping.close()


def _reduce(file: TensorFile) -> tuple[Any, ...]:
    return _reopen, (file.mappings,)


copyreg.pickle(TensorFile, _reduce)  # here, as a file does not know how its format is opened


def from_mapping(mapping: Mapping) -> TensorFile:
    """The same for a file that is mapped already; the result closes `mapping` with itself."""
    mapping.advise("willneed", 0, min(_HEAD, mapping.size))
    with memoryview(mapping) as view:
        head = bytes(view[:16])
    mapping.verify(0, len(head))
    for format in FORMATS:
        if format.matches(head, mapping.path):
            return format.open(mapping)
    known = ", ".join(format.name for format in FORMATS)
    raise unlike(mapping, head, f"like no format that mmrt reads ({known})")
