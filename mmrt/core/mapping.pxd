from libc.stdint cimport uint64_t

from mmrt.core._c cimport mmrt_mapping
from mmrt.core._calls cimport calls, pid_t


cdef class Mapping:
    cdef object __weakref__
    cdef mmrt_mapping *handle  # NULL once closed
    cdef readonly str path
    cdef str absolute  # path, for when the current folder is another one
    cdef bint has_file
    cdef uint64_t device  # what tells the file from others
    cdef uint64_t inode
    cdef Py_ssize_t pins
    cdef calls calls
    cdef readonly bint writable
    cdef readonly tuple flags
    cdef readonly uint64_t offset  # in the file
    cdef Py_ssize_t shape[1]  # what buffers of all bytes point to
    cdef Py_ssize_t strides[1]

    # Between pin and unpin the bytes stay mapped; for a call that may let go of the GIL, between
    # begin and end, which is given what begin returned. All need the GIL. pin and begin raise once
    # closed, and FileError once bytes were found missing.
    cdef int pin(self) except -1
    cdef void unpin(self) noexcept
    cdef pid_t begin(self) except -1
    cdef void end(self, pid_t begun) noexcept

    cdef tuple identity(self)
    cdef bint _is_deleted(self)

    # Raises FileError if bytes that were just read are not in the file any more.
    cdef int check_read(self, uint64_t offset, uint64_t length) except -1
