"""The only place where a status of the core becomes an exception."""

from mmrt._c cimport (
    MMRT_ARGUMENT, MMRT_FORMAT, MMRT_INTERRUPTED, MMRT_IO, MMRT_NO_MEMORY, MMRT_NOT_FINITE,
    MMRT_OK, MMRT_UNSUPPORTED, mmrt_error, mmrt_status,
)

from mmrt import errors

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
