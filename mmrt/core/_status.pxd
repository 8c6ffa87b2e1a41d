from mmrt.core._c cimport mmrt_error, mmrt_status

cdef int check(mmrt_status status, mmrt_error *error) except -1

# For functions of the core that poll: `poll` with a list as its context lets Python handle signals,
# and check_polled() raises what their handlers raised.
cdef int poll(void *raised) noexcept with gil
cdef int check_polled(mmrt_status status, mmrt_error *error, list raised) except -1
