"""Tensor types: their block sizes, and the exact scalar unpack of each."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

from mmrt.core._c cimport (
    mmrt_bytes_check, mmrt_dequantize, mmrt_error, mmrt_format, mmrt_format_find, mmrt_status,
)
from mmrt.core._status cimport check

from collections import namedtuple

from mmrt.core.arguments import checked
from mmrt.errors import ArgumentError

TensorType = namedtuple("TensorType", "name id elements bytes has_unpack has_pack")


cdef dict _all_types():
    cdef uint32_t number
    cdef const mmrt_format *f
    found = {}
    for number in range(256):
        f = mmrt_format_find(number)
        if f is not NULL:
            name = f.name.decode()
            found[name] = TensorType(
                name, f.id, f.elements, f.bytes, f.unpack is not NULL, f.pack is not NULL
            )
    return found


TYPES = _all_types()


@checked
def dequantize(str type not None, blocks, Py_ssize_t n_elements):
    """The first n_elements of `blocks` (bytes-like, C-contiguous) as a float32 array.

    Exact: the same bits as the type's definition in float32. n_elements must be whole blocks of
    the type and lie within the buffer (ArgumentError); UnsupportedError for a type of which only
    the sizes are known; FileError where the blocks are in a mapped file that has lost them.
    """
    cdef const unsigned char[::1] data = memoryview(blocks).cast("B")
    cdef const unsigned char *at = &data[0] if data.shape[0] else NULL
    return unpack(type, at, data.shape[0], n_elements)


cdef object unpack(str type, const unsigned char *blocks, Py_ssize_t n_bytes,
                   Py_ssize_t n_elements):
    import numpy

    if type not in TYPES:
        raise ArgumentError(f"there is no tensor type {type!r}")
    kind = TYPES[type]
    if n_elements < 0 or n_elements // kind.elements * kind.bytes > n_bytes:
        raise ArgumentError(
            f"{n_elements} elements of {type} do not lie within {n_bytes} bytes"
        )
    out = numpy.empty(n_elements, numpy.float32)
    cdef float[::1] values = out
    cdef uint32_t number = kind.id
    cdef size_t n = n_elements
    cdef mmrt_status status
    cdef mmrt_error error
    if n_elements == 0:
        return out
    with nogil:
        status = mmrt_dequantize(number, blocks, &values[0], n, &error)
    check(status, &error)
    check(mmrt_bytes_check(blocks, n_bytes, &error), &error)
    return out
