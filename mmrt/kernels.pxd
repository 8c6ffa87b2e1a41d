from mmrt._c cimport mmrt_isa, mmrt_pool


# Threads that run one job together.
cdef class Pool:
    cdef mmrt_pool *handle


cdef mmrt_isa chosen_isa() except *
cpdef Pool default_pool()
