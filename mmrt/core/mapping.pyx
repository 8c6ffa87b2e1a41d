"""Byte ranges mapped into memory, mostly files': what every tensor lies in."""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE,
)
from libc.errno cimport errno
from libc.stdint cimport uint64_t

from mmrt.core._c cimport (
    MMRT_ADVICE_COUNT, MMRT_FILE_ADVICE_COUNT, MMRT_MAP_FLAG_COUNT, MMRT_OK, bool_t, mmrt_advice,
    mmrt_advice_name, mmrt_error, mmrt_guard_renew, mmrt_file_advice, mmrt_file_advice_name,
    mmrt_map_flag, mmrt_map_flag_name, mmrt_map_request, mmrt_mapping_advise,
    mmrt_mapping_advise_file, mmrt_mapping_check, mmrt_mapping_close, mmrt_mapping_create,
    mmrt_mapping_data, mmrt_mapping_fd, mmrt_mapping_file, mmrt_mapping_flush, mmrt_mapping_lock,
    mmrt_mapping_mapped, mmrt_mapping_modified_ns, mmrt_mapping_page_size, mmrt_mapping_pages,
    mmrt_mapping_residency, mmrt_mapping_size, mmrt_mapping_unlock, mmrt_mapping_unreported,
    mmrt_status,
)
from mmrt.core._calls cimport calls_begin, calls_end, calls_now, pid_t
from mmrt.core._status cimport check

import os
import weakref
from collections.abc import Iterable

from mmrt.core.arguments import index, instance, path, text
from mmrt.errors import (
    ArgumentError, FileError, FormatError, InUseError, UnsupportedError, ViewError,
)
from mmrt.core.residency import Residency

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


# Word -> number in the core, whose lists (csrc/map/*.def) these are.
_FLAGS = {mmrt_map_flag_name(<mmrt_map_flag> i).decode(): i for i in range(MMRT_MAP_FLAG_COUNT)}
_ADVICE = {mmrt_advice_name(<mmrt_advice> i).decode(): i for i in range(MMRT_ADVICE_COUNT)}
_FILE_ADVICE = {
    mmrt_file_advice_name(<mmrt_file_advice> i).decode(): i for i in range(MMRT_FILE_ADVICE_COUNT)
}

cdef char *_BYTES = b"B"  # the buffer format of raw bytes

# Between two looks at signals, so that Ctrl-C ends what reads for long.
cdef uint64_t _PIECE = 64 << 20


cdef class Mapping:
    """A regular file, or a part of it, mapped into memory; or memory of its own.

    The arguments are those of mmap():

    - file: a path, a descriptor, an object with fileno(), or None for memory of its own, all zeros.
      The mapping keeps a descriptor of its own.
    - length: in bytes; None for up to the file's end.
    - protection: "r" or "rw"; None stands for "r" with a file and "rw" without.
    - flags: words, in any collection or joined by "|". Of "shared" (what is written reaches the
      file; the default with a file) and "private" (it stays here; the default without) one at most.
      "anonymous": no file. "populate": everything is read and mapped before the call returns.
      "locked": and kept in memory. "noreserve": no memory is promised for what will be written.
      "hugepages": from the huge pages that root has reserved.
    - offset: where in the file to begin; a multiple of the page size.
    - address: where in memory one would like it; a hint, and a multiple of the page size.

    Nothing is read until it is touched, unless asked for. Where the file is cut short while it is
    mapped, or its disk fails, the calls of this package raise FileError; raw views then read zeros:
    see verify(). A buffer of bytes (`memoryview(mapping)`) and a context manager. `path` is the
    file's as given, as the system calls it where a descriptor was given, or "[anonymous]";
    `writable` tells whether its bytes may be changed; `views` counts the buffers and calls that
    need it mapped just now.

    Raises FileError where the file cannot be opened or mapped or is not a regular file; FormatError
    where it is empty; ArgumentError for a range outside the file, a misaligned offset or address,
    and words that are unknown or exclude each other; OutOfMemoryError where address space, reserved
    huge pages or the limit on locked memory do not suffice.
    """

    def __cinit__(self, file=None, length=None, protection=None, flags=(), offset=0, address=0):
        cdef mmrt_map_request request
        cdef mmrt_error error
        cdef mmrt_status status
        cdef bytes name
        descriptor = _descriptor(file)
        self.path = _path(file, descriptor)
        self.absolute = os.path.abspath(self.path)
        if file is not None:
            name = os.fsencode(self.path)
            request.path = name
        else:
            request.path = NULL
        if protection not in (None, "r", "rw"):
            raise ArgumentError(f"protection is 'r' or 'rw'; not {protection!r:.60}")
        self.writable = protection == "rw" or (protection is None and file is None)
        self.flags = _words(flags)
        self.offset = _number("offset", offset)
        if length is not None and _number("length", length) == 0:
            raise ArgumentError("length: a mapping has at least one byte")
        request.fd = descriptor
        request.offset = self.offset
        request.length = 0 if length is None else length
        request.address = _number("address", address)
        request.writable = self.writable
        request.flags = sum([1 << _FLAGS[word] for word in self.flags])
        with nogil:
            status = mmrt_mapping_create(&request, &self.handle, &error)
        check(status, &error)
        self.has_file = mmrt_mapping_file(self.handle, &self.device, &self.inode)
        self.shape[0] = <Py_ssize_t> mmrt_mapping_size(self.handle)
        self.strides[0] = 1

    def __dealloc__(self):
        mmrt_mapping_close(self.handle)  # views hold references, so there are none left

    cdef int pin(self) except -1:
        if self.handle is NULL:
            raise ArgumentError(f"{self.path} is closed")
        self.check_read(0, 0)
        mmrt_guard_renew()
        self.pins += 1
        return 0

    cdef void unpin(self) noexcept:
        self.pins -= 1

    cdef pid_t begin(self) except -1:
        self.pin()
        self.unpin()
        return calls_begin(&self.calls)

    cdef void end(self, pid_t begun) noexcept:
        calls_end(&self.calls, begun)

    @property
    def views(self):
        return self.pins + calls_now(&self.calls)

    cdef int check_read(self, uint64_t offset, uint64_t length) except -1:
        cdef mmrt_error error
        return check(mmrt_mapping_check(self.handle, offset, length, NULL, &error), &error)

    def verify(self, offset=0, length=None):
        """Raises FileError, naming a byte that is missing, if the file has lost any of the
        range since it was mapped, or if any byte of the mapping was found missing before.

        Missing bytes read as zeros: after work on a raw view, this tells whether all was there.
        """
        cdef uint64_t start, size
        start, size = _checked(self, offset, length)
        self.pin()
        self.unpin()
        self.check_read(start, size)

    def close(self):
        """Unmaps the bytes; closing twice is allowed.

        Raises InUseError while `views` is not 0: while arrays, memoryviews or DLPack tensors of
        the file are alive, or another thread is inside a call on it. It can be closed again later.

        Raises FileError, after closing, if bytes were found missing that no call has told of.
        """
        cdef mmrt_error error
        cdef mmrt_status status = MMRT_OK
        if self.views:
            raise InUseError(f"cannot close {self.path}: views of it are alive ({self.views})")
        handle, self.handle = self.handle, NULL
        if handle is not NULL and mmrt_mapping_unreported(handle):
            status = mmrt_mapping_check(handle, 0, 0, NULL, &error)
        with nogil:
            mmrt_mapping_close(handle)
        check(status, &error)

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
        """Bytes mapped: of the whole file, those that it had when it was opened."""
        return self.shape[0]

    def __len__(self):
        return self.shape[0]

    @property
    def address(self):
        """Where in this process's address space the bytes begin."""
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
        """When the file was last changed before it was opened, in nanoseconds since 1970; 0 if
        there is no file."""
        self.pin()
        modified = mmrt_mapping_modified_ns(self.handle)
        self.unpin()
        return modified

    def fileno(self):
        """The descriptor of the mapping's own, open until close(); -1 if there is no file.

        Mappings keep no more of them than half of what RLIMIT_NOFILE allows: those beyond open
        theirs when it is asked for. Raises FileError where their path leads to the file no more.
        """
        cdef int code
        self.pin()
        fd = mmrt_mapping_fd(self.handle)
        code = errno
        self.unpin()
        if fd < 0 and self.has_file:
            raise FileError(code, os.strerror(code), self.absolute)
        return fd

    def __repr__(self):
        state = "closed" if self.handle is NULL else f"{self.size} bytes"
        return f"<Mapping of {self.path!r}, {state}>"

    def __reduce__(self):
        """Pickles as path, place in the file, inode and time of change: whoever unpickles it maps
        the same bytes, or gets a FileError that says that they are gone.

        Raises UnsupportedError for bytes that are in this process alone, FileError where the file
        has changed since it was mapped or its path leads to it no more.
        """
        return _reopen, self.identity()

    cdef tuple identity(self):
        """What _reopen() takes."""
        if not self.has_file or (self.writable and "private" in self.flags):
            raise UnsupportedError(f"{self.path}: what is in this process alone cannot be pickled")
        # Who may write a file changes it: then only its inode tells that it is the same.
        modified_ns = None if self.writable else self.modified_ns
        self.pin()  # no other thread closes it meanwhile
        try:
            about = os.stat(self.absolute)
        except OSError as error:
            why = "it has been deleted" if self._is_deleted() else error.strerror
            raise FileError(
                error.errno, f"{self.absolute} cannot be opened again: {why}"
            ) from None
        finally:
            self.unpin()
        if (about.st_dev, about.st_ino) != (self.device, self.inode):
            raise FileError(f"{self.absolute} has been replaced since it was mapped")
        if modified_ns not in (None, about.st_mtime_ns):
            raise FileError(f"{self.absolute} has changed since it was mapped")
        protection = "rw" if self.writable else "r"
        place = (self.size, protection, self.flags, self.offset)
        return self.absolute, about.st_ino, modified_ns, *place

    cdef bint _is_deleted(self):
        try:
            return os.fstat(self.fileno()).st_nlink == 0
        except OSError:
            return False

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE and not self.writable:
            raise ViewError(f"{self.path} is mapped read-only")
        self.pin()
        buffer.buf = <void *> mmrt_mapping_data(self.handle)
        buffer.obj = self
        buffer.len = self.shape[0]
        buffer.itemsize = 1
        buffer.readonly = not self.writable
        buffer.ndim = 1
        buffer.format = _BYTES if flags & PyBUF_FORMAT else NULL
        buffer.shape = self.shape if flags & PyBUF_ND else NULL
        buffer.strides = self.strides if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer *buffer):
        self.unpin()

    def advise(self, advice, offset=0, length=None):
        """Advises the kernel on the pages of `length` bytes from `offset` (None: to the end).

        - How faults read: "normal" around what was touched, as far as the disk's read-ahead says;
          "sequential" far ahead; "random" the page alone.
        - Bringing in: "willneed" starts reading exactly this range and returns; "populate_read"
          reads and maps it before it returns; "populate_write" readies it for writing.
        - Letting go: "dontneed" unmaps the pages here, where they stay in the page cache (memory
          without a file is all zeros afterwards); "evict" asks the page cache to drop them too;
          "cold" has them dropped before others when memory is short, "pageout" now; "free" drops
          what was written to private memory when memory is short.
        - How they are held: "hugepage", "nohugepage", "collapse" (into huge pages, now);
          "mergeable", "unmergeable" (equal pages of private memory kept once).

        What lets go works on the pages that lie in the range whole, so that neighbours keep theirs;
        the rest on all that it touches. The kernel may leave undone what it is advised: see
        residency().

        Raises ArgumentError for other words, a range outside the mapping, and advice that it cannot
        take, such as to let go of locked pages; UnsupportedError where the kernel does not know it.
        """
        if not isinstance(advice, str) or advice not in _ADVICE:
            raise ArgumentError(f"advice is one of {', '.join(_ADVICE)}; not {advice!r:.60}")
        cdef mmrt_advice kind = _ADVICE[advice]
        cdef uint64_t start, size
        cdef mmrt_error error
        cdef mmrt_status status
        for start, size in _pieces(self, offset, length):
            with nogil:
                status = mmrt_mapping_advise(self.handle, start, size, kind, &error)
            check(status, &error)

    def advise_file(self, advice, offset=0, length=None):
        """Advises the kernel on the same bytes of the file, mapped or not.

        "willneed" and "readahead" (the same by another call) start reading exactly the range;
        "dontneed" drops the whole pages in it from the page cache, but for those that are mapped
        anywhere. "normal", "sequential", "random" and "noreuse" say how reads by descriptor will
        go; Linux takes them for the whole file, whatever the range, and the giver of a descriptor
        shares them.

        Raises ArgumentError for other words, a range outside the mapping, or memory without a file.
        """
        if not isinstance(advice, str) or advice not in _FILE_ADVICE:
            raise ArgumentError(
                f"advice on files is one of {', '.join(_FILE_ADVICE)}; not {advice!r:.60}"
            )
        cdef mmrt_file_advice kind = _FILE_ADVICE[advice]
        cdef uint64_t start, size
        cdef mmrt_error error
        cdef mmrt_status status
        for start, size in _pieces(self, offset, length):
            with nogil:
                status = mmrt_mapping_advise_file(self.handle, start, size, kind, &error)
            check(status, &error)

    def lock(self, offset=0, length=None, *, on_fault=False):
        """Reads the pages that the range touches and keeps them in memory; on_fault: keeps each
        from when it is touched, and reads none now.

        Raises OutOfMemoryError where RLIMIT_MEMLOCK (often 8 MiB) does not allow it, and then holds
        what it could lock before; UnsupportedError for on_fault before Linux 4.4.
        """
        cdef uint64_t start, size
        cdef bool_t lazily = on_fault
        cdef mmrt_error error
        cdef mmrt_status status
        for start, size in _pieces(self, offset, length):
            with nogil:
                status = mmrt_mapping_lock(self.handle, start, size, lazily, &error)
            check(status, &error)

    def unlock(self, offset=0, length=None):
        """Lets the pages that the range touches go again. Locks do not count."""
        cdef uint64_t start, size
        cdef pid_t begun
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        begun = self.begin()
        with nogil:
            status = mmrt_mapping_unlock(self.handle, start, size, &error)
        self.end(begun)
        check(status, &error)

    def flush(self, offset=0, length=None):
        """Returns when what was written to the pages that the range touches is on the disk."""
        cdef uint64_t start, size
        cdef pid_t begun
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        begun = self.begin()
        with nogil:
            status = mmrt_mapping_flush(self.handle, start, size, &error)
        self.end(begun)
        check(status, &error)

    def residency(self, offset=0, length=None):
        """Which pages of the range are in memory now: a Residency. Reads nothing in."""
        cdef uint64_t start, size
        cdef pid_t begun
        cdef unsigned char *flags
        cdef bool_t trusted = True
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        begun = self.begin()
        try:
            pages = bytearray(mmrt_mapping_pages(self.handle, start, size))
            flags = pages
            with nogil:
                status = mmrt_mapping_residency(self.handle, start, size, flags, &trusted, &error)
        finally:
            self.end(begun)
        check(status, &error)
        return Residency.of(bytes(pages), "mincore" if trusted else "pagemap")

    def mapped(self, offset=0, length=None):
        """Which pages of the range this process has in its page table: a Residency whose source is
        "pagemap". Fewer than residency() tells of: a page may be cached and not mapped here yet.
        """
        cdef uint64_t start, size
        cdef pid_t begun
        cdef unsigned char *flags
        cdef mmrt_error error
        cdef mmrt_status status
        start, size = _checked(self, offset, length)
        begun = self.begin()
        try:
            pages = bytearray(mmrt_mapping_pages(self.handle, start, size))
            flags = pages
            with nogil:
                status = mmrt_mapping_mapped(self.handle, start, size, flags, &error)
        finally:
            self.end(begun)
        check(status, &error)
        return Residency.of(bytes(pages), "pagemap")


cdef int _descriptor(file) except -2:
    """The descriptor that `file` is or has, else -1."""
    if hasattr(file, "fileno"):
        file = file.fileno()
    if isinstance(file, int) and not isinstance(file, bool):
        if not 0 <= file < 1 << 31:
            raise ArgumentError(f"{file} is no descriptor")
        return file
    return -1


cdef str _path(file, int descriptor):
    if file is None:
        return "[anonymous]"
    if descriptor < 0:
        return path("file", file)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return f"descriptor {descriptor}"


cdef tuple _words(flags):
    """The flags as words, each once, sorted."""
    given = flags.split("|") if isinstance(flags, str) else flags
    given = [text("flags", word) for word in instance("flags", given, Iterable, "words")]
    words = sorted({word.strip() for word in given} - {""})
    for word in words:
        if word not in _FLAGS:
            raise ArgumentError(f"flags are {', '.join(_FLAGS)}; not {word!r:.60}")
    return tuple(words)


cdef uint64_t _number(str name, value) except? 0:
    number = index(name, value)
    if not 0 <= number < 1 << 63:
        raise ArgumentError(f"{name}: {number} is not from 0 to 2^63 - 1")
    return number


cdef tuple _checked(Mapping mapping, offset, length):
    """The range as two numbers that fit uint64; a length of None ends with the mapping."""
    offset = index("offset", offset)
    length = mapping.size - offset if length is None else index("length", length)
    if offset < 0 or length < 0 or offset + length > mapping.size:
        raise ArgumentError(
            f"{length} bytes from {offset} lie outside {mapping.path}, of {mapping.size} bytes"
        )
    return offset, length


def _pieces(Mapping mapping, offset, length):
    """The range in pieces that begin and end with whole pages but for its own ends. The mapping is
    pinned; signals are seen to after each."""
    cdef uint64_t start, size, end, cut
    cdef pid_t begun
    start, size = _checked(mapping, offset, length)
    end = start + size
    begun = mapping.begin()
    try:
        while start < end:
            cut = min(end, (start // _PIECE + 1) * _PIECE)
            yield start, cut - start
            PyErr_CheckSignals()
            start = cut
    finally:
        mapping.end(begun)


def _reopen(name, inode, modified_ns, size, protection, flags, offset):
    """The Mapping that was pickled. Raises FileError if the file has changed since, or is gone."""
    cdef Mapping mapping
    try:
        mapping = Mapping(name, size, protection, flags, offset)
    except (ArgumentError, FormatError):  # shorter than it was, or empty
        raise FileError(f"{name} has changed since it was pickled") from None
    if mapping.inode != inode:
        raise FileError(f"{name} has been replaced since it was pickled")
    if modified_ns not in (None, mapping.modified_ns):
        raise FileError(f"{name} has changed since it was pickled")
    return mapping


# What reopen_shared() gave out, as long as something uses it.
_in_use = weakref.WeakValueDictionary()


def reopen_shared(*identity):
    """The same for a tensor: one Mapping for all tensors of a file that come one by one, so that a
    process maps it, and has page tables for it, once."""
    mapping = _in_use.get(identity)
    if mapping is None or mapping.closed:
        mapping = _in_use[identity] = _reopen(*identity)
    return mapping
