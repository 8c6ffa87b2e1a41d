"""The ways in which streamed weights are read from their files."""

from libc.stdint cimport uint64_t

from mmrt.core._c cimport (
    MMRT_READER_COUNT, mmrt_error, mmrt_reader, mmrt_reader_check, mmrt_reader_name,
    mmrt_reader_probe, mmrt_status,
)
from mmrt.core._calls cimport pid_t
from mmrt.core._status cimport check
from mmrt.core.mapping cimport Mapping

from mmrt.errors import ArgumentError


cdef mmrt_reader reader_named(str name) except *:
    for kind in range(MMRT_READER_COUNT):
        if mmrt_reader_name(<mmrt_reader> <int> kind).decode() == name:
            return <mmrt_reader> <int> kind
    raise ArgumentError(f"there is no reader {name!r:.60}")


def check_reader(str reader not None, Mapping mapping not None):
    """Raises UnsupportedError, saying why, if `mapping`'s file cannot be read by this reader."""
    cdef mmrt_error error
    mapping.pin()
    try:
        check(mmrt_reader_check(reader_named(reader), mapping.handle, &error), &error)
    finally:
        mapping.unpin()


def probe_reader(str reader not None, Mapping mapping not None, uint64_t offset, uint64_t length):
    """Bytes a second that this reader brings from the disk: measured on a range of the file, which
    is dropped from memory before. Later faults on the file read single pages."""
    cdef mmrt_error error
    cdef mmrt_status status
    cdef double speed = 0
    cdef mmrt_reader kind = reader_named(reader)
    cdef pid_t begun = mapping.begin()
    with nogil:
        status = mmrt_reader_probe(kind, mapping.handle, offset, length, &speed, &error)
    mapping.end(begun)
    check(status, &error)
    return speed
