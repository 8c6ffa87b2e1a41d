"""Matrix products on mapped blocks, and what they run on."""

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

from mmrt.core._c cimport (
    MMRT_ISA_COUNT, mmrt_cpu_count, mmrt_error, mmrt_isa, mmrt_isa_choose,
    mmrt_isa_missing, mmrt_isa_name, mmrt_matmul, mmrt_matmul_isa, mmrt_pool_create,
    mmrt_pool_free, mmrt_pool_threads, mmrt_roof, mmrt_roof_kind, MMRT_ROOF_FLOAT32,
    MMRT_ROOF_INT8, MMRT_ROOF_READ, mmrt_status, mmrt_trim_heap, mmrt_weight,
)
from mmrt.core._status cimport check

from dataclasses import dataclass

from mmrt.core.arguments import checked, shape as shape_of, whole
from mmrt.errors import ArgumentError
from mmrt.core.quant import TYPES


cdef mmrt_isa chosen_isa() except *:
    """The best instruction set here, or the one that MMRT_ISA forces."""
    cdef mmrt_isa isa
    cdef mmrt_error error
    check(mmrt_isa_choose(&isa, &error), &error)
    return isa


cdef class Pool:
    """`threads` threads, the caller among them, that run one job together.

    None: one for each CPU that this process may use (its affinity mask, cut to the cgroup's
    quota). Callers queue. A child may be forked at any time, also amid a job of another thread; it
    starts its own threads when it first needs them.
    """

    def __cinit__(self, threads=None):
        cdef mmrt_error error
        if threads is None:
            threads = mmrt_cpu_count()
        threads = whole("threads", threads, 1, 1 << 20)
        check(mmrt_pool_create(threads, &self.handle, &error), &error)

    def __dealloc__(self):
        mmrt_pool_free(self.handle)

    def __repr__(self):
        return f"<Pool of {self.threads} threads>"

    @property
    def threads(self):
        return mmrt_pool_threads(self.handle)


cdef Pool _default_pool = None


cpdef Pool default_pool():
    """The Pool that multiplies where none is given: one thread on each CPU."""
    global _default_pool
    if _default_pool is None:
        _default_pool = Pool()
    return _default_pool


def float_array(x):
    """x, an array of numbers, what makes one, or a tensor, as float32. ArgumentError for anything
    else, complex numbers among it."""
    import numpy

    if hasattr(x, "dequantize"):
        return x.dequantize()
    try:
        given = numpy.asarray(x)
        if given.dtype.kind not in "cmMSUO":  # which NumPy would convert somehow
            return given.astype(numpy.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{x!r:.60} is no array of numbers: {error}") from None
    raise ArgumentError(f"an array of {given.dtype} holds no real numbers")


def into(out, product):
    """`out`, an array, with the values of `product`. ArgumentError: they are of two shapes."""
    import numpy

    if numpy.shape(out) != product.shape:
        raise ArgumentError(f"out: a product of {product.shape} is no {numpy.shape(out)}")
    numpy.copyto(out, product, casting="same_kind")
    return out


# Columns whose largest element is within 2^-88 to 2^88 in size multiply as they are. Sums of others
# may overflow, or lose bits, on the way to a product that float32 holds.
_RANGE = 88


def within_range(rows):
    """(`rows` of float32, each times a power of 2 where it is out of range; the exponents of these,
    or None if there are none)."""
    import numpy

    if not rows.size:
        return rows, None
    largest = numpy.maximum(rows.max(axis=-1), -rows.min(axis=-1))
    exponents = numpy.frexp(numpy.where(numpy.isfinite(largest), largest, 0))[1]
    exponents = numpy.clip(exponents, -_RANGE, _RANGE) - exponents
    if not exponents.any():
        return rows, None
    return numpy.ldexp(rows, exponents[..., None]), exponents


def out_of_range(products, exponents):
    """The products of rows that within_range() gave, with their powers of 2 taken back."""
    import numpy

    if exponents is None:
        return products
    with numpy.errstate(over="ignore", under="ignore"):
        return numpy.ldexp(products, -exponents[..., None])


@checked
def matmul(str type not None, blocks, shape, x, Pool pool=None):
    """W @ x for a matrix W of `shape` (rows, cols), float32.

    blocks: the rows of W one after another, in blocks of the tensor type `type` ("Q4_K", ...), any
    bytes-like object at any address; they are read where they lie. x: float32 (cols,) or (cols, n);
    the result is (rows,) or (rows, n). For quantised types x is rounded to int8 in groups of 32, as
    in inference; float types multiply in float32. pool: None for one thread on each CPU.

    ArgumentError where type or shapes do not fit, UnsupportedError for a type without kernels.
    """
    cdef const unsigned char[::1] data = memoryview(blocks).cast("B")
    cdef const unsigned char *at = &data[0] if data.shape[0] else NULL
    return multiply(type, at, data.shape[0], shape, x, pool)


cdef object multiply(str type, const unsigned char *blocks, Py_ssize_t n_bytes, shape, x,
                     Pool pool):
    import numpy

    cdef mmrt_weight weight
    cdef mmrt_error error
    cdef mmrt_status status
    cdef mmrt_isa isa = chosen_isa()
    if type not in TYPES:
        raise ArgumentError(f"there is no tensor type {type!r}")
    kind = TYPES[type]
    shape = shape_of("shape", shape)
    if len(shape) != 2 or min(shape) < 0 or shape[1] % kind.elements:
        raise ArgumentError(f"{shape} is not the shape of a matrix of {type}")
    if shape[0] * (shape[1] // kind.elements * kind.bytes) != n_bytes:
        raise ArgumentError(f"{n_bytes} bytes are not {shape} of {type}")
    given = float_array(x)
    if given.ndim not in (1, 2) or given.shape[0] != shape[1]:
        raise ArgumentError(f"a matrix of {shape} cannot multiply an array of {given.shape}")
    n_columns = 1 if given.ndim == 1 else given.shape[1]
    columns = numpy.ascontiguousarray(given.T).reshape(n_columns, shape[1])
    columns, exponents = within_range(columns)
    out = numpy.zeros((n_columns, shape[0]), numpy.float32)
    if out.size == 0 or columns.size == 0:
        return out[0] if given.ndim == 1 else out.T
    pool = pool or default_pool()
    cdef const float[:, ::1] from_ = columns
    cdef float[:, ::1] to = out
    cdef size_t n = n_columns
    name = type.encode()
    weight.data = blocks
    weight.type = kind.id
    weight.rows, weight.cols = shape
    weight.name = name
    with nogil:
        status = mmrt_matmul(pool.handle, isa, &weight, &from_[0, 0], n, &to[0, 0], &error)
    check(status, &error)
    out = out_of_range(out, exponents)
    return out[0] if given.ndim == 1 else out.T


@checked
def roof(str kind not None, data=None, Pool pool=None):
    """The most that this machine can do, measured once: take the best or the median of several.

    kind: "read", bytes a second read in order from `data`, any bytes-like object, which should be
    larger than the caches and in memory; "int8" or "float32", multiply-adds a second in registers.
    pool: None for one thread on each CPU. Measured with the instruction set in force.
    """
    import time

    cdef mmrt_error error
    cdef mmrt_status status
    cdef mmrt_isa isa = chosen_isa()
    cdef uint64_t done = 0, n = 1 << 31
    cdef const unsigned char[::1] bytes
    cdef const void *at = NULL
    kinds = {"read": MMRT_ROOF_READ, "int8": MMRT_ROOF_INT8, "float32": MMRT_ROOF_FLOAT32}
    if kind not in kinds:
        raise ArgumentError(f"kind: {kind!r} is not one of {', '.join(kinds)}")
    cdef mmrt_roof_kind roof_kind = kinds[kind]
    if roof_kind == MMRT_ROOF_READ:
        if data is None or not memoryview(data).nbytes:
            raise ArgumentError("data: there is nothing to read")
        bytes = memoryview(data).cast("B")
        at, n = &bytes[0], bytes.shape[0]
    elif isa == 0:
        n = 1 << 27  # plain C
    pool = pool or default_pool()
    start = time.perf_counter()
    with nogil:
        status = mmrt_roof(pool.handle, isa, roof_kind, at, n, &done, &error)
    check(status, &error)
    return done / (time.perf_counter() - start)


@dataclass(frozen=True)
class Variant:
    """The kernel that multiplies matrices of `type` when `isa` is in force comes from `source`."""

    type: str
    isa: str
    source: str


def variants():
    """What multiplies each type under each instruction set that can run here."""
    cdef int isa
    return [
        Variant(
            kind.name,
            mmrt_isa_name(<mmrt_isa> isa).decode(),
            mmrt_isa_name(mmrt_matmul_isa(<mmrt_isa> isa, kind.id)).decode(),
        )
        for isa in range(MMRT_ISA_COUNT)
        if mmrt_isa_missing(<mmrt_isa> isa) is NULL
        for kind in TYPES.values()
        if kind.has_unpack
    ]


def trim_heap():
    """Gives freed memory that the C library keeps for reuse back to the system, if it can."""
    with nogil:
        mmrt_trim_heap()


@dataclass(frozen=True)
class CpuInfo:
    """The processor as mmrt uses it: what was chosen and why."""

    model: str
    cpus: int  # that this process may use
    isa: str  # chosen
    forced: bool  # by MMRT_ISA
    isas: dict  # name -> "available" or why not

    def __str__(self):
        why = "forced by MMRT_ISA" if self.forced else "the best that can run here"
        lines = [f"{self.model}, {self.cpus} CPUs", f"kernels: {self.isa} ({why})"]
        lines += [f"  {name}: {state}" for name, state in self.isas.items()]
        return "\n".join(lines)


def cpu_info():
    """The processor, the instruction sets that kernels exist for, and the one in use.

    UnsupportedError or ArgumentError if MMRT_ISA forces one that cannot be used.
    """
    import os

    cdef int isa
    states = {}
    for isa in range(MMRT_ISA_COUNT):
        missing = mmrt_isa_missing(<mmrt_isa> isa)
        states[mmrt_isa_name(<mmrt_isa> isa).decode()] = (
            "available" if missing is NULL else missing.decode()
        )
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    model = line.split(":", 1)[1].strip()
                    break
    except OSError:
        pass
    chosen = mmrt_isa_name(chosen_isa()).decode()
    return CpuInfo(model, mmrt_cpu_count(), chosen, bool(os.environ.get("MMRT_ISA")), states)
