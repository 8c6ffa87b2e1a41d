from mmrt._c cimport mmrt_mapping


cdef class Mapping:
    cdef object __weakref__
    cdef mmrt_mapping *handle  # NULL once closed
    cdef readonly str path
    cdef readonly Py_ssize_t views
    cdef Py_ssize_t shape[1]  # what buffers of the whole file point to
    cdef Py_ssize_t strides[1]

    # Between pin and unpin the file stays mapped. Both need the GIL. pin raises once closed.
    cdef int pin(self) except -1
    cdef void unpin(self) noexcept
