"""safetensors: single files, and sets of shards with their `<name>.safetensors.index.json`.

A file is the length of its header in 8 bytes, the header in JSON, and the tensors' bytes end to
end.
"""

import os
from contextlib import ExitStack
from typing import Any

from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError, MissingFileError
from mmrt.files.header import declared_tensor, read, unlike
from mmrt.files.tensor_file import TensorFile

_INDEX = ".safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes, by the format's own rule

# Each is a type of Tensor by the same name. The types of less than a byte (F4, F6_*) are not here:
# such tensors can be seen, and not be read.
_TYPES = {
    "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL",
    "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
}  # fmt: skip


def matches(head: bytes, path: str) -> bool:
    """Whether a file that begins with `head` is one. There is no magic: a header's length is
    followed by the header's opening brace, and an index is known by its name."""
    if path.endswith(_INDEX):
        return head.lstrip().startswith(b"{")
    return head[8:9] == b"{"


def open_safetensors(mapping: Mapping) -> TensorFile:
    """The file that `mapping` maps; if that is an index, all shards that it names.

    The metadata is the header's `__metadata__`; of a set, the first shard's with that of the index.

    Raises FileError for a shard that is missing; FormatError where the file breaks the format, or
    the shards do not fit their index: see the parts below.
    """
    if mapping.path.endswith(_INDEX):
        return _open_set(mapping)
    tensors, metadata = _read_file(mapping)
    return TensorFile("safetensors", [mapping], tensors, metadata)


# ---- one file ----


def _read_file(mapping: Mapping) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in file order, and `__metadata__`."""
    head = read(mapping, 0, 9)
    if not matches(head, ""):
        raise unlike(mapping, head, "not with a length and the brace that opens a header")
    length = int.from_bytes(head[:8], "little")
    if length > _MOST_HEADER:
        raise FormatError(
            f"{mapping.path}: a header of {length} bytes; safetensors allows {_MOST_HEADER}"
        )
    start = 8 + length
    if start > mapping.size:
        raise FormatError(
            f"{mapping.path}: the header's {length} bytes from 8 do not lie within the file's "
            f"{mapping.size}"
        )
    header = _parse(read(mapping, 8, length), f"{mapping.path}: the header")
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{mapping.path}: __metadata__ is no object of strings")
    tensors = [_tensor(mapping, start, name, entry) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_end_to_end(mapping, start, tensors)
    return {tensor.name: tensor for tensor in tensors}, metadata


def _tensor(mapping: Mapping, start: int, name: str, entry: Any) -> Tensor:
    """The tensor that one entry of the header describes; tensors' bytes begin at `start`."""
    where = f"{mapping.path}: tensor {name!r:.80}"
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: its entry is no object")
    for field, kind in (("dtype", str), ("shape", list), ("data_offsets", list)):
        if not isinstance(entry.get(field), kind):
            raise FormatError(f"{where}: {field} is missing or no {kind.__name__}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise FormatError(f"{where}: data_offsets are not two whole numbers")
    begin, end = offsets
    if not 0 <= begin <= end <= mapping.size - start:
        raise FormatError(
            f"{where}: data_offsets {begin} to {end} do not lie within the "
            f"{mapping.size - start} bytes after the header"
        )
    why = "" if dtype in _TYPES else f"mmrt does not know its dtype, {dtype!r:.40}"
    tensor = declared_tensor(mapping, where, name, dtype, shape, start + begin, end - begin, why)
    if tensor.nbytes != end - begin:
        raise FormatError(
            f"{where}: data_offsets give it {end - begin} bytes, but {dtype} of shape {shape} "
            f"takes {tensor.nbytes}"
        )
    return tensor


def _check_end_to_end(mapping: Mapping, start: int, tensors: list[Tensor]) -> None:
    """Refuses overlaps and holes, as the format demands: nothing hides, nothing is shared."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the one before it" if tensor.offset < end else "follows a hole"
            raise FormatError(
                f"{mapping.path}: tensor {tensor.name!r:.80}: data_offsets: it begins at "
                f"{tensor.offset - start}, expected {end - start}: it {what}"
            )
        end += tensor.nbytes
    if end != mapping.size:
        raise FormatError(
            f"{mapping.path}: {mapping.size - end} bytes after the last tensor belong to none"
        )


# ---- sets of shards ----


def _open_set(index: Mapping) -> TensorFile:
    """The tensors of all shards; a shard may hold some that the index does not name.

    Raises FileError for a missing shard; FormatError where the index names a tensor that its shard
    does not hold, or a tensor is in two shards.
    """
    if index.size > _MOST_HEADER:
        raise FormatError(f"{index.path}: an index of {index.size} bytes; expected a short one")
    contents = _parse(read(index, 0, index.size), f"{index.path}: the index")
    places = _weight_map(index.path, contents.get("weight_map"))
    with ExitStack() as opened:
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {}
        shards = {}
        for file in sorted(set(places.values())):
            path = os.path.join(os.path.dirname(index.path), file)
            if not os.path.exists(path):
                raise MissingFileError(f"{path} is missing: {index.path} names it")
            shard = shards[file] = opened.enter_context(Mapping(path))
            held, said = _read_file(shard)
            for twin in held.keys() & tensors.keys():
                raise FormatError(
                    f"{path}: tensor {twin!r:.80} is in {tensors[twin].mapping.path} too"
                )
            tensors |= held
            metadata = metadata or said
        for name, file in places.items():
            if name not in tensors or tensors[name].mapping is not shards[file]:
                raise FormatError(
                    f"{index.path}: weight_map: tensor {name!r:.80} is not in {file!r:.80}"
                )
        opened.pop_all()
    of_index = contents.get("metadata")
    if isinstance(of_index, dict):
        metadata = metadata | of_index
    return TensorFile("safetensors", [index, *shards.values()], tensors, metadata)


def _weight_map(path: str, weight_map: Any) -> dict[str, str]:
    """Tensor name -> name of a file beside the index: what leads anywhere else is refused."""
    if not isinstance(weight_map, dict):
        raise FormatError(f"{path}: weight_map is missing or no object")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise FormatError(f"{path}: weight_map: {name!r:.80} is in no file")
        if "/" in file or "\0" in file or file in ("", ".", ".."):
            raise FormatError(
                f"{path}: weight_map: {name!r:.80} is in {file!r:.80}, which is no name of a file "
                "beside the index"
            )
    return weight_map


# ---- JSON ----


def _parse(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object that `data` holds, without keys that are there twice."""
    import json

    try:
        value = json.loads(data.decode(), object_pairs_hook=_object, parse_int=_integer)
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError too
        raise FormatError(f"{what} is no sound JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is no JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.80} is there twice")
        _check_text(key)
        _check_text(value)
        found[key] = value
    return found


def _check_text(value: Any) -> None:
    """Refuses half a character, which escapes can spell and nothing could print."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, list):  # of an object, _object has seen all
        for element in value:
            _check_text(element)


def _integer(digits: str) -> int:
    if len(digits) > 20:  # 2^64 and its sign; longer ones take time to read
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
