"""GGUF: single files, and models split into files `<name>-00001-of-0000N.gguf`."""

import re
from contextlib import ExitStack

from mmrt.core.gguf import Header, Metadata
from mmrt.core.mapping import Mapping
from mmrt.core.tensor import MOST_DIMENSIONS, Tensor
from mmrt.errors import ArgumentError, FormatError, MissingFileError
from mmrt.files.tensor_file import TensorFile

# Types that mmrt does not know, by the numbers that files give them, and whose they are.
_FOREIGN = (
    (range(4, 6), "that ggml has given up"),
    (range(31, 34), "that ggml has given up"),
    (range(36, 39), "that ggml has given up (36 is I2_S of bitnet.cpp)"),
    (range(43, 97), "of a later ggml, it seems"),
    (range(97, 400), "of ik_llama.cpp, it seems"),
)

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def matches(head: bytes, path: str) -> bool:
    """Whether a file that begins with `head` is one."""
    return head.startswith(b"GGUF")


def open_gguf(mapping: Mapping) -> TensorFile:
    """The file that `mapping` maps, with the other parts if it is one of several.

    The metadata is the first part's. Raises FileError for a part that is missing; FormatError where
    the parts do not belong together: where `split.count`, `split.no` or `split.tensors.count`
    disagree with the files, or a tensor is in two of them.
    """
    header = Header(mapping)
    metadata = Metadata(header)
    if _count(metadata) <= 1:
        return TensorFile("GGUF", [mapping], _tensors(header), metadata)

    with ExitStack() as opened:
        headers = _open_parts(header, _count(metadata), opened)
        tensors = _merge(headers)
        metadata = Metadata(headers[0])
        expected = metadata.get("split.tensors.count", len(tensors))
        if len(tensors) != expected:
            raise FormatError(
                f"{headers[0].mapping.path}: split.tensors.count is {expected}, but its "
                f"{len(headers)} parts hold {len(tensors)} tensors"
            )
        opened.pop_all()
    return TensorFile("GGUF", [header.mapping for header in headers], tensors, metadata)


def _count(metadata: Metadata) -> int:
    count = metadata.get("split.count", 1)
    return count if isinstance(count, int) else 1


def _tensors(header: Header) -> dict[str, Tensor]:
    return {record[0]: _tensor(header.mapping, *record) for record in header.tensors()}


def _tensor(
    mapping: Mapping, name: str, type: str | int, shape: tuple[int, ...], offset: int, nbytes: int
) -> Tensor:
    if len(shape) > MOST_DIMENSIONS:
        why = f"it has {len(shape)} dimensions, where mmrt reads {MOST_DIMENSIONS} at most"
        kind = f"type {type}" if isinstance(type, int) else type
        return Tensor(mapping, name, kind, shape, offset, nbytes=nbytes, unreadable=why)
    if isinstance(type, int):
        whose = next((f", {words}" for numbers, words in _FOREIGN if type in numbers), "")
        why = f"mmrt does not know its type, {type}{whose}"
        return Tensor(mapping, name, f"type {type}", shape, offset, nbytes=nbytes, unreadable=why)
    try:
        return Tensor(mapping, name, type, shape, offset)
    except ArgumentError as error:
        raise FormatError(f"{mapping.path}: {error}") from None


def _open_parts(given: Header, count: int, opened: ExitStack) -> list[Header]:
    """The headers of all parts in order; those opened here are closed with `opened`."""
    from pathlib import Path  # half a megabyte, which few need

    path = Path(given.mapping.path)
    name = _PART.fullmatch(path.name)
    if not name or int(name["count"]) != count:
        raise FormatError(
            f"{path}: its split.count is {count}, so its name has to end in "
            f"-00001-of-{count:05}.gguf (or another number) for the other parts to be found"
        )
    headers = []
    for number in range(1, count + 1):
        if number == int(name["number"]):
            header = given
        else:
            sibling = path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf")
            if not sibling.exists():
                raise MissingFileError(f"{sibling} is missing: part {number} of {count} of {path}")
            header = Header(opened.enter_context(Mapping(sibling)))
        _check_part(header, number, count)
        headers.append(header)
    return headers


def _check_part(header: Header, number: int, count: int) -> None:
    metadata = Metadata(header)
    for key, expected in (("split.count", count), ("split.no", number - 1)):
        found = metadata.get(key)
        if found != expected:
            raise FormatError(
                f"{header.mapping.path}: {key} is {found}, expected {expected} by the file's name"
            )


def _merge(headers: list[Header]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for header in headers:
        for name, tensor in _tensors(header).items():
            if name in tensors:
                raise FormatError(
                    f"{header.mapping.path}: tensor {name!r} is in {tensors[name].mapping.path} too"
                )
            tensors[name] = tensor
    return tensors
