from libc.stdint cimport int32_t, int64_t, uint64_t

from mmrt.core._c cimport mmrt_layer_state, mmrt_op, mmrt_part, mmrt_program
from mmrt.core._calls cimport calls
from mmrt.core.kernels cimport Pool
from mmrt.core.state cimport Cache, StateStore
from mmrt.core.tensor cimport Tensor


cdef class Program:
    cdef mmrt_program *handle  # NULL once closed
    cdef readonly Pool pool
    cdef list tensors      # pinned: weight index -> Tensor
    cdef list names        # their names as bytes, which the core points to
    cdef dict indices      # tensor name -> weight index
    cdef list widths       # of buffers
    cdef dict roomy        # buffer of heads -> the one where they have room
    cdef list lines        # (operation, [weights], note), for printing
    cdef calls running     # in the core
    cdef bint streams
    cdef readonly int max_tokens
    cdef readonly StateStore store
    cdef readonly int vocab_size  # rows of the logits' weight

    cdef _release(self)
    cdef mmrt_program *_open(self) except NULL
    cdef int _weight(self, Tensor tensor) except -2
    cdef int _of_experts(self, str role, width, int n_used) except -2
    cdef int _with_room(self, int buffer, int n_heads, const mmrt_layer_state *layer) except -2
    cdef int _heads_with_room(self, int qkv, int layer, int n_heads) except -2
    cdef list _multiply(self, mmrt_op *op, matrices)
    cdef _norm(self, int stream, Tensor weight, int out, float eps, int add, Tensor post,
               float scale, bint centred, bint outputs_only)
    cdef _run(self, list caches, mmrt_part *parts, const int32_t[::1] tokens,
              float[:, ::1] logits, int64_t[:, ::1] marks)
    cdef int _add(self, mmrt_op *op, weights, str note) except -1
