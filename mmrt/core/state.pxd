from libc.stdint cimport uint64_t

from mmrt.core._c cimport mmrt_layer_state, mmrt_state, mmrt_state_store
from mmrt.core._calls cimport calls


cdef class StateStore:
    cdef mmrt_state_store *handle
    cdef readonly tuple layers  # what each keeps: KeyValues, a Block, or None
    cdef mmrt_layer_state *specs  # the same for the core


cdef class Cache:
    cdef mmrt_state *handle
    cdef readonly StateStore store
    cdef list ids    # the tokens; between calls as many as the core has keys
    cdef calls busy  # steps that it is in
    cdef uint64_t before  # tokens when they began

    cdef cut(self, uint64_t length)
    cdef settle(self)
    cdef int require_rest(self) except -1
