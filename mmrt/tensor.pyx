"""Tensors that lie in mapped files, as zero-copy buffers."""

from cpython.buffer cimport (
    PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE,
)
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from mmrt cimport _dlpack as dl
from mmrt._c cimport (
    mmrt_error, mmrt_format, mmrt_format_find, mmrt_mapping_data, mmrt_quantize, mmrt_status,
    mmrt_weight,
)
from mmrt._status cimport check
from mmrt.kernels cimport Pool, default_pool
from mmrt.mapping cimport Mapping

import math
import operator
import sys

from mmrt.elements import COMPLEX, E4M3FN, ELEMENTS, UINT
from mmrt.errors import ArgumentError, OutOfMemoryError, UnsupportedError
from mmrt.kernels import matmul
from mmrt.mapping import reopen_shared
from mmrt.quant import TYPES, dequantize


cdef class Tensor:
    """The tensor `name` of `type` ("F32", "Q4_K", ...) and `shape`, at byte `offset` of a mapping.

    The shape counts elements, in NumPy's order: (rows, columns) for a matrix. `nbytes` is what the
    tensor takes in the file.

    Types are called as GGUF and safetensors call them; "C128" is complex128.

    It exports its bytes read-only and without a copy, through the buffer protocol, `__array__` and
    DLPack. Types that NumPy has appear as arrays of their type and shape. BF16, the 8-bit floats
    and quantised types appear as the bytes of their blocks: uint8, with the last dimension replaced
    by the bytes in a row. Nothing is dequantised unasked. A view keeps the file mapped.

    Formats other than GGUF may place a tensor at any byte. NumPy works with arrays that are not
    aligned to their elements, and says so in their flags; DLPack cannot say so and is refused.

    A file may hold tensors that mmrt cannot read. These have a name, a place and `unreadable`, the
    reason (else ""): all that would read their elements raises UnsupportedError with it. What
    makes one gives `nbytes`, which no known type tells then, and any word as `type`.

    Raises ArgumentError for an unknown type, a shape that the type cannot have, or a place outside
    the file.
    """

    def __cinit__(self, Mapping mapping not None, str name not None, str type not None, shape,
                  offset, *, nbytes=None, str unreadable not None=""):
        kind = None if unreadable else TYPES.get(type)
        element = None if unreadable else ELEMENTS.get(type)
        if kind is None and element is None and not unreadable:
            raise ArgumentError(f"tensor {name!r}: there is no type {type!r}")
        self.unreadable = unreadable
        self.format = NULL if kind is None else mmrt_format_find(kind.id)
        self.mapping = mapping
        self.name = name
        self.type = type
        self.shape = tuple(operator.index(n) for n in shape)
        if unreadable:
            self._place(operator.index(offset), operator.index(nbytes))
            return

        block_elements, block_bytes = (1, element.bytes) if element else (kind.elements, kind.bytes)
        row = self.shape[-1] if self.shape else 1
        if len(self.shape) > MAX_DIMENSIONS or min(self.shape, default=0) < 0:
            raise ArgumentError(f"tensor {name!r}: it cannot have the shape {self.shape}")
        if row % block_elements:
            raise ArgumentError(
                f"tensor {name!r}: rows of {row} elements are not whole blocks of "
                f"{block_elements}, as {type} needs"
            )
        nbytes = math.prod(self.shape) // block_elements * block_bytes
        self._place(operator.index(offset), nbytes)

        letter = element.letter if element else None
        self.letter = (letter or "B").encode()
        self.item_size = block_bytes if letter else 1
        row_items = row if letter else row // block_elements * block_bytes
        exported = (*self.shape[:-1], row_items) if self.shape or self.item_size < block_bytes else ()
        # No array can have strides beyond this, even one that is empty.
        if math.prod(max(n, 1) for n in exported) * self.item_size > sys.maxsize:
            raise ArgumentError(f"tensor {name!r}: it cannot have the shape {self.shape}")
        self.n_dims = len(exported)
        cdef Py_ssize_t stride = self.item_size
        cdef int d
        for d in range(self.n_dims - 1, -1, -1):
            self.array_shape[d] = exported[d]
            self.array_strides[d] = stride
            stride *= self.array_shape[d]

    cdef _place(self, offset, nbytes):
        if offset < 0 or nbytes < 0 or offset + nbytes > self.mapping.size:
            raise ArgumentError(
                f"tensor {self.name!r}: its {nbytes} bytes from {offset} lie outside "
                f"{self.mapping.path}, of {self.mapping.size} bytes"
            )
        self.offset, self.nbytes = offset, nbytes

    cdef int check_readable(self) except -1:
        if self.unreadable:
            raise UnsupportedError(f"tensor {self.name!r}: {self.unreadable}")
        return 0

    cdef const unsigned char *data(self) noexcept:
        return <const unsigned char *> mmrt_mapping_data(self.mapping.handle) + self.offset

    def __repr__(self):
        return f"<Tensor {self.name!r} {self.type} {self.shape}, {self.nbytes} bytes>"

    def __reduce__(self):
        """Pickles as the mapping's path and the tensor's place in it, without its bytes: see
        Mapping. Raises what pickling the mapping does."""
        place = (self.name, self.type, self.shape, self.offset)
        about = {"nbytes": self.nbytes, "unreadable": self.unreadable} if self.unreadable else {}
        return _reopen, (self.mapping.identity(), place, about)

    # ---- as an array ----

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check_readable()
        if flags & PyBUF_WRITABLE:
            raise BufferError(f"tensor {self.name!r} is read-only")
        if self.n_dims > 1 and (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS:
            raise BufferError(f"tensor {self.name!r} lies row by row, not column by column")
        self.mapping.pin()
        buffer.buf = <void *> self.data()
        buffer.obj = self
        buffer.len = self.nbytes
        buffer.itemsize = self.item_size
        buffer.readonly = 1
        buffer.ndim = self.n_dims
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = self.letter
        buffer.shape = self.array_shape if flags & PyBUF_ND else NULL
        buffer.strides = (
            self.array_strides if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        )
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer *buffer):
        self.mapping.unpin()

    def __array__(self, dtype=None, copy=None):
        """The tensor as a NumPy array: a read-only view unless `copy` or `dtype` ask for more.

        Types that NumPy lacks give the uint8 blocks; asking these for another dtype raises
        TypeError, for it would turn the blocks' bytes into numbers: see dequantize().
        """
        import numpy

        self.check_readable()
        view = numpy.asarray(memoryview(self))
        if dtype is not None and numpy.dtype(dtype) != view.dtype:
            if self.type not in ELEMENTS or ELEMENTS[self.type].letter is None:
                raise TypeError(
                    f"tensor {self.name!r} holds {self.type} blocks, which are not {dtype}: "
                    "dequantize() makes float32 of them"
                )
            if copy is False:
                raise ValueError(f"{self.type} cannot become {dtype} without a copy")
            return self.whole(view.astype(dtype))
        return self.whole(view.copy()) if copy else view

    cdef object whole(self, object copy):
        self.mapping.check_read(self.offset, self.nbytes)
        return copy

    def dequantize(self):
        """The elements as a new float32 array of the tensor's shape, rounded where float32 is less.

        Raises UnsupportedError for complex numbers, and for types that the core cannot unpack yet.
        """
        self.check_readable()
        element = ELEMENTS.get(self.type)
        if element is not None and (self.format is NULL or self.format.unpack is NULL):
            return self._converted(element)
        n = math.prod(self.shape)
        with memoryview(self.mapping) as file, file[self.offset:self.offset + self.nbytes] as blocks:
            return dequantize(self.type, blocks, n).reshape(self.shape)

    cdef _converted(self, element):
        # What the core does not unpack.
        import numpy

        if element.dlpack == COMPLEX:
            raise UnsupportedError(f"tensor {self.name!r}: {self.type} cannot become float32")
        if element.value is not None:
            values = [element.value(code) for code in range(256)]
            return self.whole(numpy.array(values, numpy.float32)[self.__array__()])
        with numpy.errstate(over="ignore"):
            return self.__array__("float32")

    def __matmul__(self, x):
        """The matrix times x, float32: (cols,) -> (rows,), or (cols, n) -> (rows, n).

        The blocks are multiplied where they lie in the file, on all CPUs of this process: see
        mmrt.kernels.matmul, also for what is raised.
        """
        self.check_readable()
        if self.format is NULL or self.format.unpack is NULL:
            raise UnsupportedError(f"tensor {self.name!r}: no kernel multiplies {self.type}")
        with memoryview(self.mapping) as file, file[self.offset:self.offset + self.nbytes] as blocks:
            try:
                return matmul(self.type, blocks, self.shape, x)
            except (ArgumentError, UnsupportedError) as error:
                raise type(error)(f"tensor {self.name!r}: {error}") from None

    def quantize(self, str type not None, Py_ssize_t first=0, rows=None, Pool pool=None):
        """Rows first to first + rows (None: to the last) as blocks of another type.

        The result is uint8, (rows, bytes in a row); a tensor of more than two dimensions counts as
        the matrix of all its rows. Each block comes as near to its values as `type` does in the
        sense of least squares. pool: None for one thread on each CPU; any gives the same bytes.

        Raises UnsupportedError for a type that cannot be written, ArgumentError where rows are not
        whole blocks of it or not in the tensor, FormatError for a value that is NaN or larger than
        65504 in size.
        """
        import numpy

        cdef mmrt_weight weight
        cdef mmrt_error error
        cdef mmrt_status status
        cdef uint64_t begin, count
        cdef uint32_t number
        self.check_readable()
        if type not in TYPES:
            raise ArgumentError(f"tensor {self.name!r}: there is no type {type!r}")
        kind = TYPES[type]
        if not self.shape or not self.shape[-1]:
            raise ArgumentError(f"tensor {self.name!r}: {self.shape} has no rows to quantize")
        name = self.name.encode()
        weight.type = self.format.id
        weight.rows = math.prod(self.shape[:-1])
        weight.cols = self.shape[-1]
        weight.name = name
        if rows is None:
            rows = max(weight.rows - first, 0)
        if first < 0 or rows < 0:
            raise ArgumentError(f"tensor {self.name!r}: {rows} rows from {first} make no sense")
        begin, count, number = first, rows, kind.id
        blocks = numpy.empty((rows, weight.cols // kind.elements * kind.bytes), numpy.uint8)
        cdef unsigned char[:, ::1] out = blocks
        cdef unsigned char *to = &out[0, 0] if blocks.size else NULL
        pool = pool or default_pool()
        self.mapping.pin()
        try:
            weight.data = self.data()
            with nogil:
                status = mmrt_quantize(pool.handle, &weight, begin, count, number, to, &error)
        finally:
            self.mapping.unpin()
        check(status, &error)
        return self.whole(blocks)

    def __dlpack_device__(self):
        """(kDLCPU, 0)."""
        return dl.CPU, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """The tensor as a DLPack capsule, read-only and without a copy unless `copy` is true.

        BF16 appears as bfloat16, quantised types as their uint8 blocks; so do 8-bit floats where
        the consumer does not speak DLPack 1.1, which has names for them.

        Raises BufferError where the consumer does not speak DLPack 1.0, which alone can say that
        memory is read-only, or asks for another device, and for a tensor that is not aligned to its
        elements, unless it is copied.
        """
        if max_version is None or max_version[0] < 1:
            raise BufferError("only DLPack 1.0 and later can say that a tensor is read-only")
        self.check_readable()
        if stream is not None or dl_device not in (None, (dl.CPU, 0)):
            raise BufferError("the tensor is in the memory of the CPU")

        element = ELEMENTS.get(self.type)
        if element is None or (element.dlpack >= E4M3FN and tuple(max_version) < (1, 1)):
            element = None
        elif not copy and self.offset % (element.bytes // (2 if element.dlpack == COMPLEX else 1)):
            raise BufferError(
                f"tensor {self.name!r} begins at byte {self.offset}, where no {self.type} may for "
                "DLPack; copy=True gives one in place"
            )

        cdef dl.DLManagedTensorVersioned *managed
        self.mapping.pin()
        try:
            managed = _new_managed(self, element, bool(copy))
        except BaseException:
            self.mapping.unpin()
            raise
        capsule = PyCapsule_New(managed, "dltensor_versioned", _drop_capsule)
        if copy:
            self.mapping.unpin()
            self.whole(capsule)
        return capsule

    def verify(self):
        """Raises FileError if the file has lost any of the tensor's bytes: see Mapping.verify()."""
        self.mapping.verify(self.offset, self.nbytes)

    # ---- in memory ----

    def advise(self, advice):
        """Advises the kernel on the tensor's bytes: see Mapping.advise()."""
        self.mapping.advise(advice, self.offset, self.nbytes)

    def advise_file(self, advice):
        """Advises the kernel on the tensor's bytes in the file: see Mapping.advise_file()."""
        self.mapping.advise_file(advice, self.offset, self.nbytes)

    def prefetch(self):
        """Starts reading the tensor into memory, and returns."""
        self.advise("willneed")

    def evict(self):
        """Drops the tensor from memory, but for edge pages that it shares with its neighbours.

        A request: the page cache keeps what other processes map. residency() says what came of it.
        """
        self.advise("evict")

    def lock(self, *, on_fault=False):
        """Reads the tensor and keeps its pages in memory: see Mapping.lock()."""
        self.mapping.lock(self.offset, self.nbytes, on_fault=on_fault)

    def unlock(self):
        """Lets the tensor's pages, and edge pages shared with neighbours, go again."""
        self.mapping.unlock(self.offset, self.nbytes)

    def residency(self):
        """Which of the tensor's pages are in memory now: a Residency. Reads nothing in."""
        return self.mapping.residency(self.offset, self.nbytes)


def _reopen(identity, place, about):
    """The Tensor that was pickled. Raises FileError if the file has changed since, or is gone."""
    return Tensor(reopen_shared(*identity), *place, **about)


# ---- DLPack's managed tensors: a view owns a reference to its Tensor and a pin of the mapping ----

cdef dl.DLManagedTensorVersioned *_new_managed(Tensor tensor, element, bint copy) except NULL:
    # `element` says of what kind the elements are; None: the blocks are bytes. One allocation for
    # the structure and its shape and strides; the caller has pinned the mapping.
    cdef int n = tensor.n_dims if element is None else <int> len(tensor.shape)
    cdef dl.DLManagedTensorVersioned *managed = <dl.DLManagedTensorVersioned *> calloc(
        1, sizeof(dl.DLManagedTensorVersioned) + 2 * MAX_DIMENSIONS * sizeof(int64_t)
    )
    if managed is NULL:
        raise OutOfMemoryError("no memory for a DLPack tensor")
    cdef int64_t *shape = <int64_t *> (managed + 1)
    cdef int64_t *strides = shape + MAX_DIMENSIONS
    cdef int64_t stride = 1
    cdef int d
    for d in range(n - 1, -1, -1):
        shape[d] = tensor.array_shape[d] if element is None else tensor.shape[d]
        strides[d] = stride
        stride *= shape[d]

    managed.version.major = 1
    managed.version.minor = 1 if element is not None and element.dlpack >= E4M3FN else 0
    managed.deleter = _delete_managed
    managed.dl_tensor.device.device_type = dl.CPU
    managed.dl_tensor.ndim = n
    managed.dl_tensor.shape = shape
    managed.dl_tensor.strides = strides
    managed.dl_tensor.dtype.lanes = 1
    managed.dl_tensor.dtype.bits = 8 if element is None else 8 * element.bytes
    managed.dl_tensor.dtype.code = UINT if element is None else element.dlpack

    if copy:
        managed.flags = dl.COPIED
        managed.dl_tensor.data = malloc(tensor.nbytes or 1)
        if managed.dl_tensor.data is NULL:
            free(managed)
            raise OutOfMemoryError(f"no memory for a copy of tensor {tensor.name!r}")
        memcpy(managed.dl_tensor.data, tensor.data(), tensor.nbytes)
    else:
        managed.flags = dl.READ_ONLY
        managed.dl_tensor.data = <void *> tensor.data()
        managed.manager_ctx = <void *> tensor
        Py_INCREF(tensor)
    return managed


cdef void _delete_managed(dl.DLManagedTensorVersioned *managed) noexcept with gil:
    # Consumers call this from any thread.
    if managed.manager_ctx is NULL:
        free(managed.dl_tensor.data)
    else:
        tensor = <Tensor> managed.manager_ctx
        tensor.mapping.unpin()
        Py_DECREF(tensor)
    free(managed)


cdef void _drop_capsule(object capsule) noexcept:
    # A consumer renames the capsule and deletes the tensor itself.
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        _delete_managed(
            <dl.DLManagedTensorVersioned *> PyCapsule_GetPointer(capsule, "dltensor_versioned")
        )
