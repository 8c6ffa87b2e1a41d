from mmrt._c cimport mmrt_format
from mmrt.mapping cimport Mapping

cdef enum:
    MAX_DIMENSIONS = 8


# One tensor of a mapped file. Its bytes are at data() while the mapping is pinned.
cdef class Tensor:
    cdef object __weakref__
    cdef readonly str name
    cdef readonly Mapping mapping
    cdef readonly tuple shape
    cdef readonly Py_ssize_t nbytes
    cdef readonly Py_ssize_t offset
    cdef const mmrt_format *format

    # The array that buffers export: the elements of a plain type, the blocks of any other.
    cdef bytes element_format
    cdef Py_ssize_t item_size
    cdef int n_dims
    cdef Py_ssize_t array_shape[MAX_DIMENSIONS]
    cdef Py_ssize_t array_strides[MAX_DIMENSIONS]

    cdef const unsigned char *data(self) noexcept
