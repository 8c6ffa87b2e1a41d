"""The header of a mapped GGUF file: its metadata, decoded when asked for, and its tensors."""

from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmrt._c cimport (
    MMRT_ADVICE_WILLNEED, MMRT_GGUF_ARRAY, MMRT_GGUF_STRING, MMRT_OK, mmrt_error, mmrt_format_find,
    mmrt_gguf, mmrt_gguf_entry, mmrt_gguf_entry_at, mmrt_gguf_free, mmrt_gguf_header_size,
    mmrt_gguf_n_entries, mmrt_gguf_n_tensors, mmrt_gguf_parse, mmrt_gguf_tensor,
    mmrt_gguf_tensor_at, mmrt_gguf_version, mmrt_mapping, mmrt_mapping_advise, mmrt_mapping_data,
    mmrt_mapping_size, mmrt_status,
)
from mmrt._status cimport check
from mmrt.mapping cimport Mapping

import os
import struct
from collections import abc

from mmrt.errors import FormatError

# How memoryview spells each type of value, by its number in the file (8 and 9: string, array).
_SPELLING = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")


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
        mapping.pin()
        with nogil:
            status = mmrt_gguf_parse(
                mmrt_mapping_data(mapping.handle), mmrt_mapping_size(mapping.handle), path,
                _read_ahead, mapping.handle, &self.handle, &error,
            )
        mapping.unpin()
        if status != MMRT_OK:
            mapping.check_read(0, mapping.size)  # what is missing reads as zeros: no fault of its own
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

    def value(self, uint64_t index):
        """The value of metadata entry `index`: a number, bool, str, or a list of one of these.

        Strings are decoded as UTF-8; bytes that are not become U+FFFD.
        """
        cdef const mmrt_gguf_entry *entry = mmrt_gguf_entry_at(self.handle, index)
        if entry is NULL:
            raise IndexError(index)
        self.mapping.pin()
        try:
            if entry.element_type == MMRT_GGUF_STRING:
                values = self.strings(entry)
            else:
                values = PyMemoryView_FromMemory(
                    <char *> entry.data, <Py_ssize_t> entry.size, PyBUF_READ
                ).cast(_SPELLING[entry.element_type]).tolist()
        finally:
            self.mapping.unpin()
        self.mapping.check_read(0, self.size)
        return values if entry.type == MMRT_GGUF_ARRAY else values[0]

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

    cdef list strings(self, const mmrt_gguf_entry *entry):
        cdef const unsigned char *at = entry.data
        cdef uint64_t left = entry.size
        cdef uint64_t length
        cdef Py_ssize_t i
        cdef list values = PyList_New(<Py_ssize_t> entry.count)
        for i in range(<Py_ssize_t> entry.count):
            # The lengths were checked when the file was parsed, but a mapped file can change.
            length = 0
            if left >= 8:
                memcpy(&length, at, 8)
            if left < 8 or length > left - 8:
                self.mapping.check_read(0, self.size)
                raise FormatError(f"{self.mapping.path}: its header changed while it was open")
            text = PyUnicode_DecodeUTF8(<const char *> at + 8, <Py_ssize_t> length, "replace")
            Py_INCREF(text)
            PyList_SET_ITEM(values, i, text)
            at += 8 + length
            left -= 8 + length
        return values

    def tensors(self):
        """(name, type, shape, offset) of each tensor, in file order.

        The shape is in NumPy's order, rows before columns; the offset is in bytes from the start
        of the file.
        """
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
                shape = tuple([tensor.dims[d] for d in range(<Py_ssize_t> tensor.n_dims - 1, -1, -1)])
                found.append(
                    (name, mmrt_format_find(tensor.type).name.decode(), shape, tensor.offset)
                )
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
