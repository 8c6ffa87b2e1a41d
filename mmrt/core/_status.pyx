"""The only place where a status of the core becomes an exception."""

from mmrt.core._c cimport (
    MMRT_ARGUMENT, MMRT_FORMAT, MMRT_INTERRUPTED, MMRT_IO, MMRT_NO_MEMORY, MMRT_NOT_FINITE,
    MMRT_OK, MMRT_UNSUPPORTED, mmrt_error, mmrt_status,
)

from mmrt import errors

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

_EXCEPTIONS = {
    MMRT_IO: errors.FileError,
    MMRT_FORMAT: errors.FormatError,
    MMRT_UNSUPPORTED: errors.UnsupportedError,
    MMRT_ARGUMENT: errors.ArgumentError,
    MMRT_NO_MEMORY: errors.OutOfMemoryError,
    MMRT_INTERRUPTED: KeyboardInterrupt,
    MMRT_NOT_FINITE: errors.FormatError,
}


cdef int check(mmrt_status status, mmrt_error *error) except -1:
    """Returns 0 for MMRT_OK, else raises the exception of `status` with the core's message."""
    if status == MMRT_OK:
        return 0
    message = (<bytes> error.message).decode("utf-8", "replace")
    if status == MMRT_IO and error.os_errno:
        # Two arguments, so that OSError fills errno; its text already holds the system's words.
        raise errors.FileError(error.os_errno, message)
    raise _EXCEPTIONS[status](message)


cdef int poll(void *raised) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<list> raised).append(error)
        return 1
    return 0


cdef int check_polled(mmrt_status status, mmrt_error *error, list raised) except -1:
    if status == MMRT_INTERRUPTED and raised:
        raise raised[0]
    return check(status, error)
