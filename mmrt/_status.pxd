from mmrt._c cimport mmrt_error, mmrt_status

cdef int check(mmrt_status status, mmrt_error *error) except -1
