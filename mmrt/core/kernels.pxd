from mmrt.core._c cimport mmrt_isa, mmrt_pool


# Threads that run one job together.
cdef class Pool:
    cdef mmrt_pool *handle


cdef mmrt_isa chosen_isa() except *
cpdef Pool default_pool()

# matmul() of n_bytes at `blocks`.
cdef object multiply(str type, const unsigned char *blocks, Py_ssize_t n_bytes, shape, x,
                     Pool pool)
