"""The header of a mapped GGUF file: its metadata, decoded when asked for, and its tensors."""

from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from mmrt.core._c cimport (
    MMRT_ADVICE_WILLNEED, MMRT_GGUF_ARRAY, MMRT_GGUF_STRING, MMRT_OK, mmrt_error, mmrt_format,
    mmrt_format_find,
    mmrt_gguf, mmrt_gguf_dim,
    mmrt_gguf_entry, mmrt_gguf_entry_at, mmrt_gguf_free, mmrt_gguf_header_size,
    mmrt_gguf_n_entries, mmrt_gguf_n_tensors, mmrt_gguf_parse, mmrt_gguf_tensor,
    mmrt_gguf_tensor_at, mmrt_gguf_version, mmrt_mapping, mmrt_mapping_advise, mmrt_mapping_data,
    mmrt_mapping_size, mmrt_status,
)
from mmrt.core._calls cimport pid_t
from mmrt.core._status cimport check
from mmrt.core.mapping cimport Mapping

import os
import struct
from collections import abc, namedtuple

from mmrt.errors import FormatError

# How memoryview spells each type of value, by its number in the file (8 and 9: string, array), and
# the bytes of one.
_SPELLING = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")
cdef uint64_t[13] _SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)

Beginning = namedtuple("Beginning", "length first")
Beginning.__doc__ = """Of a long list its length, and its first elements as a list."""


class _ChangedError(Exception):
    """A value is not what it was when the file was parsed: a mapped file can change."""


cdef struct _Cursor:
    const unsigned char *at
    uint64_t left


cdef const unsigned char *_take(_Cursor *cursor, uint64_t n) except NULL:
    if n > cursor.left:
        raise _ChangedError
    cdef const unsigned char *at = cursor.at
    cursor.at += n
    cursor.left -= n
    return at


cdef uint64_t _length(_Cursor *cursor) except? 0:
    cdef uint64_t length
    memcpy(&length, _take(cursor, 8), 8)
    return length


cdef _elements(_Cursor *cursor, uint32_t kind, uint64_t count, most):
    """The next `count` values of type `kind` as a list; if they are more than `most`, a Beginning.
    """
    cdef uint64_t shown = count if most is None else min(count, <uint64_t> most)
    cdef uint64_t i, length
    cdef uint32_t inner
    cdef const unsigned char *at
    if kind >= len(_SPELLING) or count > cursor.left:
        raise _ChangedError
    if _SIZES[kind]:
        if count > cursor.left // _SIZES[kind]:
            raise _ChangedError
        at = cursor.at
        cursor.at += count * _SIZES[kind]
        cursor.left -= count * _SIZES[kind]
        values = PyMemoryView_FromMemory(
            <char *> at, <Py_ssize_t> (shown * _SIZES[kind]), PyBUF_READ
        ).cast(_SPELLING[kind]).tolist() if shown else []
    else:
        values = []
        for i in range(count):
            if kind == MMRT_GGUF_STRING:
                length = _length(cursor)
                at = _take(cursor, length)
                if i < shown:
                    values.append(
                        PyUnicode_DecodeUTF8(<const char *> at, <Py_ssize_t> length, "replace")
                    )
            else:
                memcpy(&inner, _take(cursor, 4), 4)
                value = _elements(cursor, inner, _length(cursor), most if i < shown else 0)
                if i < shown:
                    values.append(value)
    return values if shown == count else Beginning(count, values)


cdef void _read_ahead(void *mapping, uint64_t offset, uint64_t length) noexcept nogil:
    # Reads just the window that the parser enters. Left to itself the first fault would read as
    # much as the disk's read-ahead says, up to many MiB of weights; page by page would be slow.
    mmrt_mapping_advise(<mmrt_mapping *> mapping, offset, length, MMRT_ADVICE_WILLNEED, NULL)


cdef class Header:
    """The header of the GGUF file that `mapping` maps, parsed and checked.

    Reads the header and no weight. `version` is that of the format, `size` the header's bytes.
    It reads from the mapping when asked and does not keep it open.

    Raises FormatError where the file breaks the format, UnsupportedError where it is sound but of
    a kind that mmrt does not know; each names the file, the field and its offset. FileError where
    the file is cut short meanwhile.
    """

    cdef mmrt_gguf *handle
    cdef readonly Mapping mapping

    def __cinit__(self, Mapping mapping not None):
        cdef mmrt_error error
        cdef mmrt_status status
        cdef bytes name = os.fsencode(mapping.path)
        cdef const char *path = name
        self.mapping = mapping
        cdef pid_t begun = mapping.begin()
        with nogil:
            status = mmrt_gguf_parse(
                mmrt_mapping_data(mapping.handle), mmrt_mapping_size(mapping.handle), path,
                _read_ahead, mapping.handle, &self.handle, &error,
            )
        mapping.end(begun)
        if status != MMRT_OK:
            mapping.check_read(0, mapping.size)  # what is missing reads as zeros, without a fault
        check(status, &error)
        mapping.check_read(0, mmrt_gguf_header_size(self.handle))

    def __dealloc__(self):
        mmrt_gguf_free(self.handle)

    @property
    def version(self):
        return mmrt_gguf_version(self.handle)

    @property
    def size(self):
        return mmrt_gguf_header_size(self.handle)

    def keys(self):
        """The keys of the metadata, in file order."""
        self.mapping.pin()
        try:
            keys = [self.key(i) for i in range(mmrt_gguf_n_entries(self.handle))]
        finally:
            self.mapping.unpin()
        self.mapping.check_read(0, self.size)
        return keys

    cdef str key(self, uint64_t index):
        cdef const mmrt_gguf_entry *entry = mmrt_gguf_entry_at(self.handle, index)
        return PyUnicode_DecodeUTF8(entry.key, <Py_ssize_t> entry.key_length, "replace")

    def value(self, uint64_t index, most=None):
        """The value of metadata entry `index`: a number, bool, str, or a list of these or of lists.

        Strings are decoded as UTF-8; bytes that are not become U+FFFD. most: of lists longer than
        that, a Beginning.
        """
        cdef const mmrt_gguf_entry *entry = mmrt_gguf_entry_at(self.handle, index)
        cdef _Cursor cursor
        if entry is NULL:
            raise IndexError(index)
        cursor.at, cursor.left = entry.data, entry.size
        self.mapping.pin()
        try:
            if entry.type == MMRT_GGUF_ARRAY:
                value = _elements(&cursor, entry.element_type, entry.count, most)
            else:
                [value] = _elements(&cursor, entry.type, 1, None)
        except _ChangedError:
            self.mapping.check_read(0, self.size)
            raise FormatError(
                f"{self.mapping.path}: its header changed while it was open"
            ) from None
        finally:
            self.mapping.unpin()
        self.mapping.check_read(0, self.size)
        return value

    def raw(self, uint64_t index):
        """Metadata entry `index` as it stands in the file: the number of its type, and the bytes
        behind it."""
        cdef const mmrt_gguf_entry *entry = mmrt_gguf_entry_at(self.handle, index)
        if entry is NULL:
            raise IndexError(index)
        self.mapping.pin()
        try:
            data = entry.data[:entry.size]
        finally:
            self.mapping.unpin()
        if entry.type == MMRT_GGUF_ARRAY:
            data = struct.pack("<IQ", <int> entry.element_type, entry.count) + data
        return <int> entry.type, data

    def tensors(self):
        """(name, type, shape, offset, nbytes) of each tensor, in file order.

        The type is a name, or its number in the file if mmrt does not know it: then the tensor's
        bytes are those up to the next tensor. The shape is in NumPy's order, rows before columns;
        the offset is in bytes from the start of the file.
        """
        cdef const mmrt_format *format
        cdef const mmrt_gguf_tensor *tensor
        cdef uint64_t i
        cdef Py_ssize_t d
        found = []
        self.mapping.pin()
        try:
            for i in range(mmrt_gguf_n_tensors(self.handle)):
                tensor = mmrt_gguf_tensor_at(self.handle, i)
                name = PyUnicode_DecodeUTF8(
                    tensor.name, <Py_ssize_t> tensor.name_length, "replace"
                )
                n_dims = <Py_ssize_t> tensor.n_dims
                shape = tuple([mmrt_gguf_dim(tensor, d) for d in range(n_dims - 1, -1, -1)])
                format = mmrt_format_find(tensor.type)
                type = tensor.type if format is NULL else format.name.decode()
                found.append((name, type, shape, tensor.offset, tensor.size))
        finally:
            self.mapping.unpin()
        self.mapping.check_read(0, self.size)
        return found


class Metadata(abc.Mapping):
    """The metadata of a GGUF file: key -> number, bool, str or list, in file order.

    A value is decoded each time that it is asked for, and not kept: hold on to a long list (the
    vocabulary) for as long as it is needed, and no longer. Strings are decoded as UTF-8; bytes that
    are not become U+FFFD. Raises ArgumentError once the file is closed.
    """

    __slots__ = ("_header", "_index")

    def __init__(self, header):
        self._header = header
        self._index = {key: i for i, key in enumerate(header.keys())}

    def __getitem__(self, key):
        return self._header.value(self._index[key])

    def beginning(self, key, most):
        """The value; of lists longer than `most`, only their Beginning is decoded."""
        return self._header.value(self._index[key], most)

    def raw(self, key):
        """A value as it stands in the file: the number of its type, and the bytes behind it."""
        return self._header.raw(self._index[key])

    def __contains__(self, key):
        return key in self._index

    def __iter__(self):
        return iter(self._index)

    def __len__(self):
        return len(self._index)

    def __repr__(self):
        return f"<Metadata of {self._header.mapping.path!r}, {len(self)} keys>"
