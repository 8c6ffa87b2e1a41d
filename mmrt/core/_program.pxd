from libc.stdint cimport int32_t, int64_t, uint64_t

from mmrt.core._c cimport mmrt_part, mmrt_program
from mmrt.core._calls cimport calls
from mmrt.core.kernels cimport Pool
from mmrt.core.state cimport Cache, StateStore
from mmrt.core.tensor cimport Tensor


cdef class CoreProgram:
    cdef mmrt_program *handle  # NULL once closed
    cdef readonly Pool pool
    cdef list tensors      # pinned: weight index -> Tensor
    cdef list names        # their names as bytes, which the core points to
    cdef dict indices      # tensor name -> weight index
    cdef readonly list routes  # (number, n_used) of each ROUTE operation
    cdef list lines        # (what an operation is called, the tensors that it reads)
    cdef calls running     # in the core
    cdef bint streams
    cdef readonly int max_tokens
    cdef readonly StateStore store
    cdef public int vocab_size  # rows of the logits' weight
    cdef public int taken  # values of the hidden rows that it takes; 0: it takes none
    cdef public int given  # values of the hidden rows that it gives; 0: it gives logits

    cdef _release(self)
    cdef mmrt_program *_open(self) except NULL
    cdef int _weight(self, Tensor tensor) except -2
    cdef _run(self, list caches, mmrt_part *parts, const int32_t[::1] tokens,
              float[:, ::1] logits, int64_t[:, ::1] marks, int32_t[::1] choices,
              const float[:, ::1] rows)
