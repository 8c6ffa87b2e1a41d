"""NumPy's files: one array in a `.npy`, several in a `.npz` that stores them uncompressed.

Nothing is ever unpickled. The check sums of a `.npz` are not compared: that would read all of it.
"""

import os
import re
import struct
from ast import literal_eval
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError, UnsupportedError
from mmrt.files.header import declared_tensor, read
from mmrt.files.tensor_file import TensorFile

if TYPE_CHECKING:
    from zipfile import ZipInfo

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000  # bytes, as NumPy limits what it evaluates
_MOST_DIRECTORY = 100_000_000  # bytes of an archive's directory, which is read into memory

# The little of Python that headers are made of. Given more, Python's parser would warn on stderr.
_TOKENS = re.compile(
    r"""(?: '[^'\\\n]*' | "[^"\\\n]*" | True | False | [0-9]+(?!\w) | [\s{}()\[\],:] )*""",
    re.VERBOSE,
)

_ZIP_MAGICS = (b"PK\3\4", b"PK\5\6")  # the second: an archive of nothing
_ZIP_LOCAL = struct.Struct("<4s5H3I2H")  # a member's own header, before its name
_ZIP_64 = 0xFFFFFFFF  # a size that is said elsewhere
_ZIP_ENCRYPTED, _ZIP_SIZES_FOLLOW, _ZIP_UTF8 = 1, 1 << 3, 1 << 11  # flags

# What a dtype is called after its byte order -> the type of its Tensor.
_TYPES = {
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128", "b1": "BOOL",
    "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64",
    "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
}  # fmt: skip


def matches(head: bytes, path: str) -> bool:
    """Whether a file that begins with `head` is one; a ZIP archive is, if it is called `.npz`."""
    return head.startswith(_MAGIC) or (path.endswith(".npz") and head[:4] in _ZIP_MAGICS)


def open_npy(mapping: Mapping) -> TensorFile:
    """The arrays of the file that `mapping` maps, without metadata.

    The one of `weights.npy` is called "weights"; those of a `.npz` are called as their members are,
    without `.npy`.

    What is no plain numbers in rows cannot be read: objects, structures, strings, dates, big-endian
    numbers, and matrices that lie column by column (`fortran_order`). Such a `.npy` is refused with
    UnsupportedError; in a `.npz`, only the tensor that is asked for is.

    Raises FormatError where the file breaks its format, UnsupportedError for compressed members.
    """
    if read(mapping, 0, 4) in _ZIP_MAGICS:
        return TensorFile("npz", [mapping], _archive(mapping), {})
    name = os.path.basename(mapping.path).removesuffix(".npy")
    array = _array(mapping, mapping.path, name, 0, mapping.size)
    if array.unreadable:
        raise UnsupportedError(f"{mapping.path}: {array.unreadable}")
    return TensorFile("npy", [mapping], {name: array}, {})


# ---- an array ----


def _array(mapping: Mapping, where: str, name: str, begin: int, end: int) -> Tensor:
    """The array whose header and elements are the bytes from `begin` to `end`."""
    descr, fortran_order, shape, offset = _header(mapping, where, begin, end)
    type, unreadable = _type(descr)
    if not unreadable and fortran_order and sum(size != 1 for size in shape) > 1:
        unreadable = "fortran_order: it lies column by column; save numpy.ascontiguousarray of it"
    tensor = declared_tensor(mapping, where, name, type, shape, offset, end - offset, unreadable)
    if tensor.nbytes > end - offset:
        raise FormatError(
            f"{where}: its shape takes {tensor.nbytes} bytes, and {end - offset} are there"
        )
    if tensor.nbytes < end - offset:
        raise UnsupportedError(
            f"{where}: {end - offset - tensor.nbytes} bytes follow the array: mmrt reads one array "
            "a file, and more from .npz"
        )
    return tensor


def _header(
    mapping: Mapping, where: str, begin: int, end: int
) -> tuple[Any, bool, tuple[Any, ...], int]:
    """descr, fortran_order, shape, and the offset of the elements."""
    head = read(mapping, begin, min(12, end - begin))
    if not head.startswith(_MAGIC):
        raise FormatError(f"{where}: it begins with {head[:6]!r}, not with {_MAGIC!r}")
    version = tuple(head[6:8])
    if len(version) == 2 and version not in ((1, 0), (2, 0), (3, 0)):
        raise UnsupportedError(
            f"{where}: version {version[0]}.{version[1]} of the format; mmrt knows 1.0, 2.0, 3.0"
        )
    width = 2 if version == (1, 0) else 4  # of the header's length
    start = 8 + width
    length = int.from_bytes(head[8:start], "little")
    if len(head) < start or length > end - begin - start:
        raise FormatError(f"{where}: it ends within its header")
    if length > _MOST_HEADER:
        raise UnsupportedError(
            f"{where}: a header of {length} bytes; mmrt, as NumPy, reads up to {_MOST_HEADER}"
        )
    data = read(mapping, begin + start, length)
    try:
        text = data.decode("utf-8" if version == (3, 0) else "latin-1")
        header: Any = literal_eval(text) if _TOKENS.fullmatch(text) else None
        fields = set(header) if isinstance(header, dict) else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        fields = None
    # The text is shown, not what it means: numbers can have more digits than Python will print.
    shown = f"{data!r:.200}"
    if fields != {"descr", "fortran_order", "shape"}:
        raise FormatError(f"{where}: its header is no dict of descr, fortran_order, shape: {shown}")
    if not isinstance(header["fortran_order"], bool) or not isinstance(header["shape"], tuple):
        raise FormatError(f"{where}: fortran_order is no bool, or shape no tuple: {shown}")
    return header["descr"], header["fortran_order"], header["shape"], begin + start + length


def _type(descr: Any) -> tuple[str, str]:
    """The Tensor type for a dtype as the header spells it; and why it cannot be read, if so."""
    if not isinstance(descr, str):
        return "structure", "descr: a structure is no tensor"
    order, code = (descr[0], descr[1:]) if descr[:1] in ("<", ">", "|", "=") else ("", descr)
    if code[:1] == "O":
        return "objects", "descr: it holds pickled Python objects"
    if code not in _TYPES:
        return descr[:40], f"descr: mmrt does not know the dtype {descr!r:.40}"
    if order == ">" and code[1:] != "1":
        return descr, f"descr: {descr!r} is big-endian; save array.astype('<{code}')"
    return _TYPES[code], ""


# ---- an archive ----


class _Member(NamedTuple):
    name: str  # with its .npy
    header: int  # where its local header begins
    begin: int  # where its bytes do
    end: int


def _archive(mapping: Mapping) -> dict[str, Tensor]:
    """The arrays of a ZIP archive, in file order."""
    tensors: dict[str, Tensor] = {}
    end = 0
    for member in _members(mapping):
        where = f"{mapping.path}: member {member.name!r:.80}"
        if member.header < end:
            raise FormatError(f"{where} overlaps the one before it")
        end = member.end
        name = member.name.removesuffix(".npy")
        if name in tensors:
            raise FormatError(f"{where} is there twice")
        tensors[name] = _array(mapping, where, name, member.begin, member.end)
    return tensors


def _members(mapping: Mapping) -> list[_Member]:
    """The members that the archive's directory names, checked against their own headers."""
    import zipfile  # here, because it takes longer to import than all else that opening needs

    try:
        with zipfile.ZipFile(_Reader(mapping)) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except NotImplementedError as error:
        raise UnsupportedError(f"{mapping.path}: {error}") from None
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, OverflowError) as error:
        raise FormatError(f"{mapping.path}: it is no sound ZIP archive: {error}") from None

    members = []
    for entry in entries:
        where = f"{mapping.path}: member {entry.orig_filename!r:.80}"
        if not entry.orig_filename.endswith(".npy"):
            raise FormatError(f"{where} is no .npy")
        if entry.flag_bits & _ZIP_ENCRYPTED:
            raise UnsupportedError(f"{where} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedError(
                f"{where} is compressed, and only stored ones can be mapped: save it with "
                "numpy.savez, not savez_compressed"
            )
        begin = _check_local(mapping, where, entry, end)
        if entry.compress_size != entry.file_size or entry.file_size > end - begin:
            raise FormatError(
                f"{where}: its {entry.file_size} bytes, {entry.compress_size} stored, do not fit "
                f"between {begin} and the directory at {end}"
            )
        members.append(
            _Member(entry.orig_filename, entry.header_offset, begin, begin + entry.file_size)
        )
    return sorted(members, key=lambda member: member.header)


def _check_local(mapping: Mapping, where: str, entry: "ZipInfo", end: int) -> int:
    """Where the bytes of the directory's `entry` begin, if the header that stands before them
    says the same of them; all members end before `end`."""
    at = entry.header_offset
    if not 0 <= at <= end - _ZIP_LOCAL.size:
        raise FormatError(f"{where}: its header cannot be at byte {at}")
    fields = _ZIP_LOCAL.unpack(read(mapping, at, _ZIP_LOCAL.size))
    magic, _, flags, method, _, _, _, stored, size, name_length, extra_length = fields
    begin: int = at + _ZIP_LOCAL.size + name_length + extra_length
    encoding = "utf-8" if entry.flag_bits & _ZIP_UTF8 else "cp437"
    name = read(mapping, at + _ZIP_LOCAL.size, name_length).decode(encoding, "replace")
    sizes_known = not flags & _ZIP_SIZES_FOLLOW
    if (
        magic != _ZIP_MAGICS[0]
        or (name, method) != (entry.orig_filename, entry.compress_type)
        or flags & _ZIP_ENCRYPTED
        or (sizes_known and stored not in (entry.compress_size, _ZIP_64))
        or (sizes_known and size not in (entry.file_size, _ZIP_64))
        or begin > end
    ):
        raise FormatError(f"{where}: the header at byte {at} is not that of the directory's entry")
    return begin


class _Reader:
    """A mapping as the file that zipfile reads: only what it asks for is read ahead."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._mapping.size}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._at = base + offset
        return self._at

    def read(self, length: int = -1, /) -> bytes:
        length = min(length if length >= 0 else self._mapping.size, self._mapping.size - self._at)
        if length > _MOST_DIRECTORY:
            raise OSError(f"a directory of {length} bytes; mmrt reads up to {_MOST_DIRECTORY}")
        data = read(self._mapping, self._at, length)
        self._at += len(data)
        return data
