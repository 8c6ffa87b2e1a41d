"""Files mapped into memory, read-only: the bytes that every tensor lies in."""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE,
)
from libc.stdint cimport uint64_t

from mmrt._c cimport (
    MMRT_ADVICE_EVICT, MMRT_ADVICE_NORMAL, MMRT_ADVICE_POPULATE_READ, MMRT_ADVICE_RANDOM,
    MMRT_ADVICE_SEQUENTIAL, MMRT_ADVICE_WILLNEED, bool_t, mmrt_advice, mmrt_error, mmrt_mapping_advise,
    mmrt_mapping_close, mmrt_mapping_data, mmrt_mapping_fd, mmrt_mapping_lock, mmrt_mapping_mapped,
    mmrt_mapping_modified_ns,
    mmrt_mapping_open, mmrt_mapping_page_size, mmrt_mapping_pages, mmrt_mapping_residency,
    mmrt_mapping_size, mmrt_mapping_unlock, mmrt_status,
)
from mmrt._status cimport check

import os

from mmrt.errors import ArgumentError, FileError
from mmrt.residency import Residency

_ADVICE = {
    "normal": MMRT_ADVICE_NORMAL,
    "sequential": MMRT_ADVICE_SEQUENTIAL,
    "random": MMRT_ADVICE_RANDOM,
    "willneed": MMRT_ADVICE_WILLNEED,
    "populate_read": MMRT_ADVICE_POPULATE_READ,
    "evict": MMRT_ADVICE_EVICT,
}


cdef char *_BYTES = b"B"  # the buffer format of raw bytes


cdef class Mapping:
    """The regular file at `path`, mapped whole and read-only. Opening reads none of it.

    A buffer of bytes (`memoryview(mapping)`) and a context manager. `path` is as given; `views`
    counts the buffers and calls that need the file mapped just now.

    Raises FileError where the file cannot be opened or is not a regular file, FormatError where it
    is empty. A file must not be cut short while it is mapped.
    """

    def __cinit__(self, path):
        cdef mmrt_error error
        cdef mmrt_status status
        self.path = os.fsdecode(path)
        cdef bytes name = os.fsencode(path)
        if b"\0" in name:
            raise ArgumentError(f"a path cannot hold NUL: {self.path!r}")
        cdef const char *c_path = name
        with nogil:
            status = mmrt_mapping_open(c_path, &self.handle, &error)
        check(status, &error)
        self.shape[0] = <Py_ssize_t> mmrt_mapping_size(self.handle)
        self.strides[0] = 1

    def __dealloc__(self):
        mmrt_mapping_close(self.handle)  # views hold references, so there are none left

    cdef int pin(self) except -1:
        if self.handle is NULL:
            raise ArgumentError(f"{self.path} is closed")
        self.views += 1
        return 0

    cdef void unpin(self) noexcept:
        self.views -= 1

    def close(self):
        """Unmaps the file; closing twice is allowed.

        Raises BufferError while `views` is not 0: while arrays, memoryviews or DLPack tensors of
        the file are alive, or another thread is inside a call on it. It can be closed again later.
        """
        if self.views:
            raise BufferError(f"cannot close {self.path}: views of it are alive ({self.views})")
        handle, self.handle = self.handle, NULL
        with nogil:
            mmrt_mapping_close(handle)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def closed(self):
        """Whether close() has been called."""
        return self.handle is NULL

    @property
    def size(self):
        """Bytes in the file when it was opened."""
        return self.shape[0]

    def __len__(self):
        return self.shape[0]

    @property
    def address(self):
        """Where in this process's address space the file begins."""
        self.pin()
        address = <size_t> mmrt_mapping_data(self.handle)
        self.unpin()
        return address

    @property
    def page_size(self):
        """Bytes in a page of memory."""
        self.pin()
        size = mmrt_mapping_page_size(self.handle)
        self.unpin()
        return size

    @property
    def modified_ns(self):
        """When the file was last changed before it was opened, in nanoseconds since 1970."""
        self.pin()
        modified = mmrt_mapping_modified_ns(self.handle)
        self.unpin()
        return modified

    def fileno(self):
        """The descriptor of the mapping's own, read-only, open until close()."""
        self.pin()
        fd = mmrt_mapping_fd(self.handle)
        self.unpin()
        return fd

    def __repr__(self):
        state = "closed" if self.handle is NULL else f"{self.size} bytes"
        return f"<Mapping of {self.path!r}, {state}>"

    def __reduce__(self):
        """Pickles as path, size and time of change: the other side maps the same file."""
        return _reopen, (os.path.abspath(self.path), self.size, self.modified_ns)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a mapped file is read-only")
        self.pin()
        buffer.buf = <void *> mmrt_mapping_data(self.handle)
        buffer.obj = self
        buffer.len = self.shape[0]
        buffer.itemsize = 1
        buffer.readonly = 1
        buffer.ndim = 1
        buffer.format = _BYTES if flags & PyBUF_FORMAT else NULL
        buffer.shape = self.shape if flags & PyBUF_ND else NULL
        buffer.strides = self.strides if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer *buffer):
        self.unpin()

    def advise(self, advice, offset=0, length=None):
        """Advises the kernel on `length` bytes from `offset` (None: to the end).

        "normal", "sequential" and "random" say how later faults read ahead. "willneed" starts
        reading exactly this range and returns; "populate_read" reads and maps it before it returns.
        "evict" drops the whole pages inside the range from memory, as far as nothing else uses
        them.

        Raises ArgumentError for other words, a range outside the file, or "evict" on locked
        pages; UnsupportedError for "populate_read" before Linux 5.14.
        """
        if advice not in _ADVICE:
            raise ArgumentError(f"advice is one of {', '.join(_ADVICE)}; not {advice!r}")
        cdef mmrt_advice kind = _ADVICE[advice]
        cdef uint64_t start, size
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        self.pin()
        with nogil:
            status = mmrt_mapping_advise(self.handle, start, size, kind, &error)
        self.unpin()
        check(status, &error)

    def lock(self, offset=0, length=None):
        """Reads the pages that the range touches and keeps them in memory.

        Raises OutOfMemoryError where RLIMIT_MEMLOCK (often 8 MiB) does not allow it.
        """
        cdef uint64_t start, size
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        self.pin()
        with nogil:
            status = mmrt_mapping_lock(self.handle, start, size, &error)
        self.unpin()
        check(status, &error)

    def unlock(self, offset=0, length=None):
        """Lets the pages that the range touches go again. Locks do not count."""
        cdef uint64_t start, size
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        self.pin()
        with nogil:
            status = mmrt_mapping_unlock(self.handle, start, size, &error)
        self.unpin()
        check(status, &error)

    def residency(self, offset=0, length=None):
        """Which pages of the range are in memory now: a Residency. Reads nothing in."""
        cdef uint64_t start, size
        cdef unsigned char *flags
        cdef bool_t trusted = True
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        self.pin()
        try:
            pages = bytearray(mmrt_mapping_pages(self.handle, start, size))
            flags = pages
            with nogil:
                status = mmrt_mapping_residency(self.handle, start, size, flags, &trusted, &error)
        finally:
            self.unpin()
        check(status, &error)
        return Residency.of(bytes(pages), "mincore" if trusted else "pagemap")

    def mapped(self, offset=0, length=None):
        """Which pages of the range this process has in its page table: a Residency whose source is
        "pagemap". Fewer than residency() tells of: a page may be cached and not mapped here yet.
        """
        cdef uint64_t start, size
        cdef unsigned char *flags
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        self.pin()
        try:
            pages = bytearray(mmrt_mapping_pages(self.handle, start, size))
            flags = pages
            with nogil:
                status = mmrt_mapping_mapped(self.handle, start, size, flags, &error)
        finally:
            self.unpin()
        check(status, &error)
        return Residency.of(bytes(pages), "pagemap")


cdef tuple _checked(Mapping mapping, offset, length):
    """The range as two numbers that fit the core's uint64; a length of None ends with the file."""
    if length is None:
        length = mapping.size - offset
    if offset < 0 or length < 0 or offset + length > mapping.size:
        raise ArgumentError(
            f"{length} bytes from {offset} lie outside {mapping.path}, of {mapping.size} bytes"
        )
    return offset, length


def _reopen(path, size, modified_ns):
    """The Mapping that was pickled. Raises FileError if the file has changed since."""
    mapping = Mapping(path)
    if (mapping.size, mapping.modified_ns) != (size, modified_ns):
        raise FileError(f"{path} has changed since it was pickled")
    return mapping
