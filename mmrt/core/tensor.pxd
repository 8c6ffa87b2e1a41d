from mmrt.core._c cimport mmrt_format
from mmrt.core.mapping cimport Mapping

cdef enum:
    MAX_DIMENSIONS = 8


# One tensor of a mapped file. Its bytes are at data() while the mapping is pinned.
cdef class Tensor:
    cdef object __weakref__
    cdef readonly str name
    cdef readonly str type
    cdef readonly Mapping mapping
    cdef readonly tuple shape
    cdef readonly Py_ssize_t nbytes
    cdef readonly Py_ssize_t offset
    cdef readonly str unreadable
    cdef const mmrt_format *format  # NULL: the core does not know the type

    cdef Py_ssize_t block_elements
    cdef Py_ssize_t item_size  # bytes of a block, which is an element for types of single numbers

    # The array that buffers export.
    cdef bytes letter  # how they spell the elements; None: NumPy lacks the type
    cdef int n_dims
    cdef Py_ssize_t array_shape[MAX_DIMENSIONS]
    cdef Py_ssize_t array_strides[MAX_DIMENSIONS]

    cdef const unsigned char *data(self) noexcept
    cdef _place(self, offset, nbytes)

    # Raises UnsupportedError for a tensor that mmrt cannot read.
    cdef int check_readable(self) except -1
    cdef _converted(self, element)
    cdef _no_array(self)

    # The copy, if all of the tensor was there to be copied; else raises FileError.
    cdef object checked_whole(self, object copy)
