"""Tensors that lie in mapped files, as zero-copy buffers."""

from cpython.buffer cimport (
    PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE,
)
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from mmrt.core cimport _dlpack as dl
from mmrt.core._c cimport (
    mmrt_error, mmrt_format_find, mmrt_mapping_data, mmrt_quantize, mmrt_status, mmrt_weight,
)
from mmrt.core._calls cimport pid_t
from mmrt.core._status cimport check
from mmrt.core.kernels cimport Pool, default_pool, multiply
from mmrt.core.mapping cimport Mapping
from mmrt.core.quant cimport unpack

import math
import operator
import sys
from contextlib import contextmanager

from mmrt.core.arguments import checked, index, instance, shape as shape_of, text, whole
from mmrt.core.elements import COMPLEX, E4M3FN, ELEMENTS
from mmrt.errors import (
    ArgumentError, MmrtError, NoArrayError, NotFoundError, OutOfMemoryError, UnsupportedError,
    ViewError,
)
from mmrt.core.kernels import float_array, into, out_of_range, within_range
from mmrt.core.mapping import reopen_shared
from mmrt.core.quant import TYPES

MOST_DIMENSIONS = MAX_DIMENSIONS

_PIECE = 1 << 20  # elements that are dequantised at a time


cdef class Tensor:
    """The tensor `name` of `type` ("F32", "Q4_K", ...) and `shape`, at byte `offset` of a mapping.

    The shape counts elements, in NumPy's order: (rows, columns) for a matrix. `nbytes` is what the
    tensor takes in the file.

    Types are called as GGUF and safetensors call them; "C128" is complex128.

    Types that NumPy has are arrays to all who ask, of this type and shape, read-only and without a
    copy: through the buffer protocol, `__array__` and DLPack. BF16, the 8-bit floats and quantised
    types are none, and their bytes are never taken for numbers: NoArrayError. dequantize(), or an
    array asked for with a floating dtype, makes numbers of them; DLPack knows BF16 and, since 1.1,
    the 8-bit floats; blocks() has the bytes of any type. A view keeps the file mapped.

    t[3] and t[5:7] are Tensors too, of some of the rows, on the same pages.

    Formats other than GGUF may place a tensor at any byte. NumPy works with arrays that are not
    aligned to their elements, and says so in their flags; DLPack cannot say so and is refused.

    A file may hold tensors that mmrt cannot read. These have a name, a place and `unreadable`, the
    reason (else ""): all that would read their elements raises UnsupportedError with it. What
    makes one gives `nbytes`, which no known type tells then, and any word as `type`.

    Raises ArgumentError for an unknown type, a shape that the type cannot have, or a place outside
    the file.
    """

    def __cinit__(self, mapping, name, type, shape, offset, *, nbytes=None, unreadable=""):
        text("name", name), text("type", type), text("unreadable", unreadable)
        kind = None if unreadable else TYPES.get(type)
        element = None if unreadable else ELEMENTS.get(type)
        if kind is None and element is None and not unreadable:
            raise ArgumentError(f"tensor {name!r}: there is no type {type!r}")
        self.unreadable = unreadable
        if kind is not None:
            self.format = mmrt_format_find(kind.id)
        self.mapping = instance("mapping", mapping, Mapping, "a Mapping")
        self.name = name
        self.type = type
        self.shape = shape_of("shape", shape)
        offset = index("offset", offset)
        if unreadable:
            self._place(offset, index("nbytes", nbytes))
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
        self._place(offset, nbytes)

        self.block_elements, self.item_size = block_elements, block_bytes
        self.letter = element.letter.encode() if element and element.letter else None
        # No array can have strides beyond this, even one that is empty.
        if math.prod(max(n, 1) for n in self.shape) * block_bytes > sys.maxsize:
            raise ArgumentError(f"tensor {name!r}: it cannot have the shape {self.shape}")
        self.n_dims = len(self.shape)
        cdef Py_ssize_t stride = self.item_size
        cdef int d
        for d in range(self.n_dims - 1, -1, -1):
            self.array_shape[d] = self.shape[d]
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

    @property
    def ndim(self):
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self):
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self):
        """NumPy's dtype of the elements; None for a type that NumPy lacks."""
        import numpy

        return None if self.letter is None else numpy.asarray(self).dtype

    def __len__(self):
        if not self.shape:
            raise ArgumentError(f"tensor {self.name!r} is a single element, without a length")
        return self.shape[0]

    def __bool__(self):
        return True  # whatever its length: `file.get(name) or other`

    def __getitem__(self, rows):
        """The Tensor of one row, t[3], or of some in order, t[5:7], on the same pages: a row of a
        matrix has one dimension. Raises NotFoundError beyond the last row, ArgumentError for a step
        other than 1 and for parts of blocks."""
        self.check_readable()
        n = len(self)
        if isinstance(rows, slice):
            with self._named():
                first, end, step = rows.indices(n)
            if step != 1:
                raise ArgumentError(f"tensor {self.name!r}: rows have to be in order, step 1")
            end = max(first, end)
            shape = (end - first, *self.shape[1:])
        else:
            if isinstance(rows, bool) or not hasattr(rows, "__index__"):
                raise ArgumentError(
                    f"tensor {self.name!r}: rows are a number or a range, not {rows!r:.60}"
                )
            number = operator.index(rows)
            if not -n <= number < n:
                raise NotFoundError(f"tensor {self.name!r} has {n} rows, and none of number {rows}")
            first = number % n
            end, shape = first + 1, self.shape[1:]
        width = math.prod(self.shape[1:])
        if first * width % self.block_elements or end * width % self.block_elements:
            raise ArgumentError(
                f"tensor {self.name!r}: elements {first} to {end - 1} are not whole blocks of "
                f"{self.block_elements}, as {self.type} needs"
            )
        offset = self.offset + first * width // self.block_elements * self.item_size
        place = f"{first}:{end}" if isinstance(rows, slice) else first
        return Tensor(self.mapping, f"{self.name}[{place}]", self.type, shape, offset)

    def blocks(self):
        """The bytes as they lie in the file, of any type: a read-only uint8 array of the tensor's
        shape, but with the bytes in a row as its last dimension; on the mapped pages."""
        import numpy

        self.check_readable()
        row = (self.shape[-1] if self.shape else 1) // self.block_elements * self.item_size
        with memoryview(self.mapping) as file:
            view = file[self.offset:self.offset + self.nbytes].toreadonly()
        return numpy.asarray(view).reshape(*self.shape[:-1], row)

    cdef _no_array(self):
        return NoArrayError(
            f"tensor {self.name!r} holds {self.type}, a type that NumPy lacks: dequantize() makes "
            "float32 of it, blocks() shows its bytes"
        )

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check_readable()
        if self.letter is None:
            raise self._no_array()
        if flags & PyBUF_WRITABLE:
            raise ViewError(f"tensor {self.name!r} is read-only")
        if self.n_dims > 1 and (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS:
            raise ViewError(f"tensor {self.name!r} lies row by row, not column by column")
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

        Types that NumPy lacks are dequantised if `dtype` is a floating one, of NumPy or of the
        package ml_dtypes, whose types of the same name are views too; otherwise a NoArrayError.
        """
        import numpy

        self.check_readable()
        with self._named():
            dtype = None if dtype is None else numpy.dtype(dtype)
        element = ELEMENTS.get(self.type)
        if self.letter is not None:
            view = numpy.asarray(memoryview(self))
        elif dtype is None or not dtype.name.startswith(("float", "bfloat")):
            raise self._no_array()
        elif element is not None and dtype.name == element.ml_dtype:
            view = self.blocks().view(dtype).reshape(self.shape)
        else:
            view = None
        as_it_is = view is not None and (dtype is None or dtype == view.dtype)
        if copy is False and not as_it_is:
            raise ArgumentError(
                f"tensor {self.name!r}: {self.type} cannot become {dtype} without a copy"
            )
        if view is None:
            return self.dequantize().astype(dtype, copy=False)
        if not as_it_is:
            return self.checked_whole(view.astype(dtype))
        return self.checked_whole(view.copy()) if copy else view

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        """NumPy's operators and functions of elements, `x @ t` among them."""
        import numpy

        if any(isinstance(array, Tensor) for array in out):
            raise ViewError("tensors of files are read-only")
        if ufunc is numpy.matmul and method == "__call__" and not options:
            if any(isinstance(x, Tensor) and (<Tensor> x).letter is None for x in inputs):
                left, right = inputs
                product = left @ right if isinstance(left, Tensor) else right.__rmatmul__(left)
                with self._named():
                    return into(out[0], product) if out else product
        if out:
            options["out"] = out
        arrays = [numpy.asarray(x) if isinstance(x, Tensor) else x for x in inputs]
        with self._named():
            return getattr(ufunc, method)(*arrays, **options)

    cdef object checked_whole(self, object copy):
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
        cdef pid_t begun = self.mapping.begin()
        try:
            values = unpack(self.type, self.data(), self.nbytes, math.prod(self.shape))
        finally:
            self.mapping.end(begun)
        return values.reshape(self.shape)

    cdef _converted(self, element):
        # What the core does not unpack.
        import numpy

        if element.dlpack == COMPLEX:
            raise UnsupportedError(f"tensor {self.name!r}: {self.type} cannot become float32")
        if element.value is not None:
            values = [element.value(code) for code in range(256)]
            found = numpy.array(values, numpy.float32)[self.blocks()]
            return self.checked_whole(found).reshape(self.shape)
        with numpy.errstate(over="ignore"):
            return self.__array__("float32")

    def __matmul__(self, x):
        """The matrix times x, float32: (cols,) -> (rows,), or (cols, n) -> (rows, n).

        The blocks are multiplied where they lie in the file, on all CPUs of this process: see
        mmrt.kernels.matmul, also for what is raised. 8-bit floats are dequantised, some rows at a
        time; integers, float64 and complex numbers multiply as NumPy has it.
        """
        self.check_readable()
        if self.format is NULL or self.format.unpack is NULL:
            return self._product(x)
        cdef pid_t begun = self.mapping.begin()
        try:
            with self._named():
                x = float_array(x)
                return multiply(self.type, self.data(), self.nbytes, self.shape, x, None)
        finally:
            self.mapping.end(begun)

    def _product(self, x):
        # Of a type that no kernel multiplies.
        import numpy

        with self._named():
            if self.letter is not None:
                return numpy.asarray(self) @ _array(x)
            if self.type not in ELEMENTS:
                raise UnsupportedError(f"no kernel multiplies {self.type}")
            given = float_array(x)
            if len(self.shape) != 2 or given.ndim not in (1, 2) or len(given) != self.shape[1]:
                raise ArgumentError(
                    f"a matrix of {self.shape} cannot multiply an array of {given.shape}"
                )
            given, exponents = within_range(given.T)
        product = numpy.empty((len(self), *given.shape[:-1]), numpy.float32)
        for first, rows in self._rows():
            product[first:first + len(rows)] = rows @ given.T
        return out_of_range(product.T, exponents).T

    def __rmatmul__(self, x):
        """x times the matrix, float32: (rows,) -> (cols,), or (n, rows) -> (n, cols).

        Its rows are dequantised some at a time, but where `@` from the other side leaves it to
        NumPy. Raises as that does.
        """
        import numpy

        self.check_readable()
        with self._named():
            if self.letter is not None and (self.format is NULL or self.format.unpack is NULL):
                return _array(x) @ numpy.asarray(self)
            given = float_array(x)
            if len(self.shape) != 2 or given.ndim not in (1, 2) or given.shape[-1] != len(self):
                raise ArgumentError(
                    f"an array of {given.shape} cannot multiply a tensor of {self.shape}"
                )
            given, exponents = within_range(given)
        product = numpy.zeros((*given.shape[:-1], self.shape[1]), numpy.float32)
        for first, rows in self._rows():
            product += given[..., first:first + len(rows)] @ rows
        return out_of_range(product, exponents)

    def _rows(self):
        """(the first of them, a part of the matrix's rows as float32), one part after another."""
        step = max(_PIECE // max(self.shape[1], 1), 1)
        for first in range(0, len(self), step):
            yield first, self[first:first + step].dequantize()

    @contextmanager
    def _named(self):
        try:
            yield
        except (ArgumentError, UnsupportedError) as error:
            raise type(error)(f"tensor {self.name!r}: {error}") from None
        except MmrtError:
            raise
        except (TypeError, ValueError) as error:  # of NumPy
            raise ArgumentError(f"tensor {self.name!r}: {error}") from None

    @checked
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
        rows = whole("rows", max(weight.rows - first, 0) if rows is None else rows, 0)
        if first < 0:
            raise ArgumentError(f"tensor {self.name!r}: {rows} rows from {first} make no sense")
        begin, count, number = first, rows, kind.id
        blocks = numpy.empty((rows, weight.cols // kind.elements * kind.bytes), numpy.uint8)
        cdef unsigned char[:, ::1] out = blocks
        cdef unsigned char *to = &out[0, 0] if blocks.size else NULL
        pool = pool or default_pool()
        cdef pid_t begun = self.mapping.begin()
        try:
            weight.data = self.data()
            with nogil:
                status = mmrt_quantize(pool.handle, &weight, begin, count, number, to, &error)
        finally:
            self.mapping.end(begun)
        check(status, &error)
        return self.checked_whole(blocks)

    def __dlpack_device__(self):
        """(kDLCPU, 0)."""
        return dl.CPU, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """The tensor as a DLPack capsule, read-only and without a copy unless `copy` is true.

        Raises NoArrayError for quantised types, and for 8-bit floats where the consumer does not
        speak DLPack 1.1, which has names for them; ViewError where it does not speak DLPack 1.0,
        which alone can say that memory is read-only, or asks for another device, and for a tensor
        that is not aligned to its elements, unless it is copied.
        """
        self.check_readable()
        element = ELEMENTS.get(self.type)
        if element is None or (element.dlpack >= E4M3FN and tuple(max_version or ()) < (1, 1)):
            raise self._no_array()
        if max_version is None or max_version[0] < 1:
            raise ViewError("only DLPack 1.0 and later can say that a tensor is read-only")
        if stream is not None or (dl_device is not None and dl_device != (dl.CPU, 0)):
            raise ViewError("the tensor is in the memory of the CPU")
        if not copy and self.offset % (element.bytes // (2 if element.dlpack == COMPLEX else 1)):
            raise ViewError(
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
            self.checked_whole(capsule)
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


def _array(x):
    import numpy

    lacks = isinstance(x, Tensor) and (<Tensor> x).letter is None
    return x.dequantize() if lacks else numpy.asarray(x)


def _reopen(identity, place, about):
    """The Tensor that was pickled. Raises FileError if the file has changed since, or is gone."""
    return Tensor(reopen_shared(*identity), *place, **about)


# ---- DLPack's managed tensors: a view owns a reference to its Tensor and a pin of the mapping ----

cdef dl.DLManagedTensorVersioned *_new_managed(Tensor tensor, element, bint copy) except NULL:
    # One allocation for the structure and its shape and strides; the caller has pinned the mapping.
    cdef dl.DLManagedTensorVersioned *managed = <dl.DLManagedTensorVersioned *> calloc(
        1, sizeof(dl.DLManagedTensorVersioned) + 2 * MAX_DIMENSIONS * sizeof(int64_t)
    )
    if managed is NULL:
        raise OutOfMemoryError("no memory for a DLPack tensor")
    cdef int64_t *shape = <int64_t *> (managed + 1)
    cdef int64_t *strides = shape + MAX_DIMENSIONS
    cdef int64_t stride = 1
    cdef int d
    for d in range(tensor.n_dims - 1, -1, -1):
        shape[d] = tensor.array_shape[d]
        strides[d] = stride
        stride *= shape[d]

    managed.version.major = 1
    managed.version.minor = 1 if element.dlpack >= E4M3FN else 0
    managed.deleter = _delete_managed
    managed.dl_tensor.device.device_type = dl.CPU
    managed.dl_tensor.ndim = tensor.n_dims
    managed.dl_tensor.shape = shape
    managed.dl_tensor.strides = strides
    managed.dl_tensor.dtype.lanes = 1
    managed.dl_tensor.dtype.bits = 8 * element.bytes
    managed.dl_tensor.dtype.code = element.dlpack

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
