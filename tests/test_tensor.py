"""Tensors as arrays: without copies, never writable, alive as long as any view of them."""

import ctypes
import gc
import io
import operator
import pickle
import struct
import threading
import warnings
from array import array as machine_array
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
from hostile import make_gguf as make
from machine import evict
from numpy.typing import NDArray

from mmrt import formats
from mmrt.core.elements import ELEMENTS
from mmrt.core.mapping import Mapping
from mmrt.core.quant import TYPES
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError, NoArrayError, UnsupportedError
from mmrt.files.formats import TensorFile

PLAIN = {
    "F32": np.float32, "F16": np.float16, "F64": np.float64, "C64": np.complex64,
    "C128": np.complex128, "BOOL": np.bool_, "I8": np.int8, "I16": np.int16, "I32": np.int32,
    "I64": np.int64, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
}  # fmt: skip

# Types that NumPy lacks, and their names in ml_dtypes.
LACKED = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> TensorFile:
    """floats F32 (3, 2, 4), blocks Q4_K (3, 256), halves F16 (5,), brains BF16 (2, 3)."""
    path = tmp_path / "valid.gguf"
    path.write_bytes(make.VALID)
    return formats.open(path)


def placed(folder: Path, type: str, shape: tuple[int, ...], data: bytes, offset: int) -> Tensor:
    """A tensor of `data` at byte `offset` of a file of its own."""
    path = folder / "placed.bin"
    path.write_bytes(bytes(offset) + data)
    return Tensor(Mapping(path), "t", type, shape, offset)


def raw(tensor: Tensor) -> bytes:
    data = Path(tensor.mapping.path).read_bytes()
    return data[tensor.offset : tensor.offset + tensor.nbytes]


def test_attributes(file: TensorFile) -> None:
    blocks = file["blocks"]
    assert (blocks.name, blocks.type, blocks.shape) == ("blocks", "Q4_K", (3, 256))
    assert blocks.nbytes == 3 * 144 and blocks.mapping is file.mappings[0]
    assert repr(blocks) == "<Tensor 'blocks' Q4_K (3, 256), 432 bytes>"
    with pytest.raises(AttributeError):
        blocks.name = "other"  # type: ignore[misc]


# ---- buffers and arrays ----


@pytest.mark.parametrize(("type", "dtype"), PLAIN.items())
def test_plain_types_are_arrays_of_their_type(tmp_path: Path, type: str, dtype: type) -> None:
    values: NDArray[Any] = np.arange(24).astype(dtype).reshape(2, 3, 4)
    tensor = placed(tmp_path, type, (2, 3, 4), values.tobytes(), 16)
    assert tensor.nbytes == values.nbytes
    for array in (np.asarray(tensor), tensor.__array__(), np.from_dlpack(tensor)):
        assert array.dtype == dtype and array.shape == (2, 3, 4)
        assert np.array_equal(array, values) and not array.flags.writeable
    with memoryview(tensor) as view:
        assert view.readonly and view.c_contiguous and view.shape == (2, 3, 4)
        assert view.format == np.dtype(dtype).char or view.itemsize == np.dtype(dtype).itemsize


def test_every_plain_type_is_tested() -> None:
    assert {*PLAIN, *LACKED} == set(ELEMENTS)


@pytest.mark.parametrize("type", PLAIN)
def test_views_that_are_not_aligned(tmp_path: Path, type: str) -> None:
    values: NDArray[Any] = np.arange(24).astype(PLAIN[type]).reshape(4, 6)
    tensor = placed(tmp_path, type, (4, 6), values.tobytes(), 13)
    array = np.asarray(tensor)
    assert array.flags.aligned == (values.dtype.alignment == 1)
    assert np.array_equal(array, values) and np.array_equal(array.T @ array, values.T @ values)
    assert memoryview(tensor).tobytes() == values.tobytes()
    assert np.array_equal(np.from_dlpack(tensor, copy=True), values)
    if values.dtype.alignment > 1:
        with pytest.raises(BufferError, match=f"begins at byte 13, where no {type} may"):
            np.from_dlpack(tensor)
        assert not np.asarray(tensor).flags.aligned
    else:
        assert np.array_equal(np.from_dlpack(tensor), values)


@pytest.mark.parametrize(("type", "name"), LACKED.items())
def test_types_that_numpy_lacks(tmp_path: Path, type: str, name: str) -> None:
    dtype = pytest.importorskip("ml_dtypes").__dict__[name]
    codes = np.arange(256 if type != "BF16" else 65536).astype(f"u{np.dtype(dtype).itemsize}")
    tensor = placed(tmp_path, type, codes.shape, codes.tobytes(), 1)
    with np.errstate(invalid="ignore"):
        expected = codes.view(dtype).astype(np.float32)
    found = tensor.dequantize()
    numbers = ~np.isnan(expected)
    assert found.dtype == np.float32 and np.array_equal(np.isnan(found), ~numbers)
    assert found[numbers].tobytes() == expected[numbers].tobytes()
    scalar = Tensor(tensor.mapping, "t", type, (), 1)
    assert scalar.dequantize().shape == () and scalar.blocks().shape == (scalar.nbytes,)


@pytest.mark.parametrize(("type", "name"), LACKED.items())
def test_types_of_ml_dtypes_are_views(tmp_path: Path, type: str, name: str) -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").__dict__[name])
    data = bytes(range(24 * dtype.itemsize))
    tensor = placed(tmp_path, type, (4, 6), data, 1)
    view = np.asarray(tensor, dtype)
    assert view.dtype == dtype and view.shape == (4, 6) and view.tobytes() == data
    assert not view.flags.writeable and tensor.mapping.views == 1
    assert tensor.__array__(dtype, copy=False).tobytes() == data
    copy = np.array(tensor, dtype)
    assert copy.flags.writeable and copy.tobytes() == data
    assert np.asarray(tensor[1], dtype).tobytes() == data[6 * dtype.itemsize :][: len(data) // 4]
    assert np.asarray(Tensor(tensor.mapping, "t", type, (), 1), dtype).shape == ()
    assert np.asarray(Tensor(tensor.mapping, "t", type, (3, 0), 1), dtype).shape == (3, 0)
    # Of another type, it is rounded.
    for other in {"bfloat16", "float8_e4m3fn"} - {name}:
        found = np.asarray(tensor, pytest.importorskip("ml_dtypes").__dict__[other])
        expected = tensor.dequantize().astype(found.dtype)
        assert found.dtype.name == other and found.tobytes() == expected.tobytes()
        with pytest.raises(ArgumentError, match="without a copy"):
            tensor.__array__(found.dtype, copy=False)
    with pytest.raises(NoArrayError):
        np.asarray(tensor, pytest.importorskip("ml_dtypes").int4)


def test_blocks_are_the_bytes_of_any_type(file: TensorFile) -> None:
    shapes = {"blocks": (3, 144), "brains": (2, 6), "floats": (3, 2, 16), "halves": (10,)}
    whole = np.asarray(memoryview(file.mappings[0]))
    for name, shape in shapes.items():
        blocks = file[name].blocks()
        assert blocks.dtype == np.uint8 and blocks.shape == shape and not blocks.flags.writeable
        assert blocks.tobytes() == raw(file[name]) and np.shares_memory(blocks, whole)
    with pytest.raises(ValueError, match="read-only"):
        file["blocks"].blocks()[0, 0] = 1


# ---- never a wrong number ----

# All ways in which NumPy and others take what they are given for numbers.
TAKEN: dict[str, Callable[[Any], object]] = {
    "asarray": np.asarray,
    "array": np.array,
    "asanyarray": np.asanyarray,
    "ascontiguousarray": np.ascontiguousarray,
    "copy": np.copy,
    "of integers": lambda t: np.asarray(t, np.int32),
    "of bytes": lambda t: np.asarray(t, np.uint8),
    "of complex": lambda t: np.asarray(t, np.complex64),
    "of objects": lambda t: np.asarray(t, object),
    "list": lambda t: np.array([t, t]),
    "stack": lambda t: np.stack([t, t]),
    "concatenate": lambda t: np.concatenate([t, t]),
    "copyto": lambda t: np.copyto(np.zeros(t.shape), t),
    "frombuffer": np.frombuffer,
    "frombuffer of floats": lambda t: np.frombuffer(t, np.float32),
    "ndarray": lambda t: np.ndarray((2,), np.float32, t),
    "mean": np.mean,
    "sum": np.sum,
    "norm": np.linalg.norm,
    "dot": lambda t: np.dot(np.ones(2), t),
    "einsum": lambda t: np.einsum("ij->i", t),
    "where": lambda t: np.where(t, 1, 0),
    "save": lambda t: np.save(io.BytesIO(), t),
    "add": lambda t: np.add(t, 1),
    "exp": np.exp,
    "equal": lambda t: np.ones(t.shape) == t,
    "scaled": lambda t: np.float32(2) * t,
    "plus": lambda t: np.ones(t.shape) + t,
    "minus": lambda t: t - np.ones(t.shape),
    "in place": lambda t: operator.iadd(np.ones(t.shape), t),  # type: ignore[no-untyped-call]
    "reduced": np.add.reduce,
    "into": lambda t: np.add(1, 1, out=t),
    "matmul into integers": lambda t: np.matmul(np.ones(2), t, out=np.zeros(t.shape[1], int)),
    "matmul of a type": lambda t: np.matmul(np.ones(2), t, dtype=np.float64),
    "memoryview": memoryview,
    "bytes": bytes,
    "bytearray": bytearray,
    "struct": lambda t: struct.unpack_from("f", t),
    "array of array": lambda t: machine_array("B", t),
    "ctypes": lambda t: (ctypes.c_float * 2).from_buffer_copy(t),
    "float": float,
    "list of rows": lambda t: np.asarray(list(t)),
    "list of elements": lambda t: np.asarray([list(row) for row in t]),
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
@pytest.mark.filterwarnings("ignore:overflow encountered in matmul")
@pytest.mark.parametrize("type", ["Q4_K", "Q8_0", "BF16", "F8_E4M3"])
def test_what_numpy_lacks_is_never_taken_for_numbers(
    tmp_path: Path, type: str, take: Callable[[Any], object]
) -> None:
    tensor = placed(tmp_path, type, (2, 256), bytes(range(256)) * 8, 0)
    with pytest.raises((TypeError, BufferError, ArgumentError)):
        take(tensor)
    assert tensor.mapping.views == 0


def test_the_refusal_says_what_to_do(file: TensorFile) -> None:
    takers: list[Callable[[Any], object]]
    takers = [np.asarray, np.mean, np.exp, memoryview, np.from_dlpack, np.frombuffer]
    for take in takers:
        with pytest.raises(
            NoArrayError, match=r"'blocks' holds Q4_K.* dequantize\(\).* blocks\(\)"
        ):
            take(file["blocks"])


def test_floats_that_are_asked_for_are_the_right_ones(file: TensorFile) -> None:
    for name in ("blocks", "brains"):
        values = file[name].dequantize()
        for dtype in (np.float32, np.float64, "f8", np.float16):
            with np.errstate(over="ignore"):
                expected = values.astype(dtype)
                found = np.asarray(file[name], dtype)
            assert found.dtype == dtype and np.array_equal(found, expected, equal_nan=True)
        into = np.zeros(values.shape)
        into[...] = file[name]
        assert np.array_equal(into, values, equal_nan=True)
        with pytest.raises(ValueError, match="without a copy"):
            file[name].__array__(np.float32, copy=False)


@pytest.mark.parametrize(
    "x",
    [
        np.ones(256, np.complex64),
        [1j] * 256,
        ["1"] * 256,
        np.zeros(256, "datetime64[s]"),
        [None] * 256,
        "text",
        None,
        [[1, 2], [3]],
    ],
)
def test_what_is_no_array_of_numbers_multiplies_nothing(file: TensorFile, x: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for product in (lambda: file["blocks"] @ x, lambda: file["blocks"].__rmatmul__(x)):
            with pytest.raises(ArgumentError, match="tensor 'blocks': "):
                product()


# ---- views ----


def test_views_share_the_mapped_pages(file: TensorFile) -> None:
    floats = file["floats"]
    whole = np.asarray(memoryview(file.mappings[0]))
    for view in (np.asarray(floats), np.from_dlpack(floats), np.asarray(floats, copy=False)):
        assert np.shares_memory(view, whole)
    assert not np.shares_memory(np.array(floats), whole)
    assert not np.shares_memory(floats.__array__(copy=True), whole)


def test_buffers_of_every_request(file: TensorFile) -> None:
    floats = file["floats"]
    with pytest.raises(TypeError, match="read-only"), memoryview(floats) as view:
        view[0, 0, 0] = 1
    with pytest.raises((TypeError, BufferError)):
        struct.pack_into("f", floats, 0, 1.0)
    assert bytes(floats) == raw(floats)
    assert np.frombuffer(cast(Any, floats), np.float32).shape == (24,)
    assert file.mappings[0].views == 0


def test_array_converts_plain_types_only(file: TensorFile) -> None:
    doubles = file["floats"].__array__(np.float64)
    assert doubles.dtype == np.float64 and np.array_equal(doubles, np.asarray(file["floats"]))
    with pytest.raises(ValueError, match="without a copy"):
        file["floats"].__array__(np.float64, copy=False)


# ---- DLPack ----


def dlpack(capsule: object) -> tuple[tuple[int, int], tuple[int, int, int], list[int], list[int]]:
    """What a capsule says: version, (code, bits, lanes) of its type, shape and strides."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    at = pointer(capsule, b"dltensor_versioned")
    layout = "2I 2P Q P 2i i 2BH 2P Q"  # DLManagedTensorVersioned
    fields = struct.unpack(layout, ctypes.string_at(at, struct.calcsize(layout)))
    n, shape, strides = fields[8], fields[12], fields[13]
    arrays = [list((ctypes.c_int64 * n).from_address(address)) for address in (shape, strides)]
    return fields[:2], fields[9:12], arrays[0], arrays[1]


def test_dlpack_device(file: TensorFile) -> None:
    assert file["floats"].__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("type", LACKED)
def test_dlpack_of_types_that_numpy_lacks(tmp_path: Path, type: str) -> None:
    tensor = placed(tmp_path, type, (2, 3), bytes(range(12)), 0)
    bits = 8 * ELEMENTS[type].bytes
    found = dlpack(tensor.__dlpack__(max_version=(1, 1)))
    assert found == ((1, int(bits == 8)), (ELEMENTS[type].dlpack, bits, 1), [2, 3], [3, 1])
    if bits == 8:  # which DLPack has names for since 1.1
        with pytest.raises(NoArrayError, match=f"holds {type}"):
            tensor.__dlpack__(max_version=(1, 0))


def test_dlpack_has_no_name_for_blocks(file: TensorFile) -> None:
    for take in (np.from_dlpack, lambda t: t.__dlpack__(max_version=(1, 1))):
        with pytest.raises(NoArrayError, match="holds Q4_K"):
            take(file["blocks"])
    with pytest.raises((BufferError, RuntimeError)):  # NumPy lacks bfloat16
        np.from_dlpack(file["brains"])
    gc.collect()
    assert file.mappings[0].views == 0


def test_dlpack_of_scalars(tmp_path: Path) -> None:
    for type in ELEMENTS:
        tensor = placed(tmp_path, type, (), bytes(16), 0)
        assert dlpack(tensor.__dlpack__(max_version=(1, 1)))[2:] == ([], [])


def test_dlpack_copy_is_writable(file: TensorFile) -> None:
    array = np.from_dlpack(file["floats"], copy=True)
    array[:] = 0
    assert bytes(memoryview(file["floats"])) == raw(file["floats"])
    file.close()  # a copy is no view


def test_dlpack_refuses_what_it_cannot_say(file: TensorFile) -> None:
    floats = file["floats"]
    for arguments in (
        {},
        {"max_version": (0, 8)},
        {"max_version": (1, 0), "stream": 1},
        {"max_version": (1, 0), "dl_device": (2, 0)},
    ):
        with pytest.raises(BufferError):
            floats.__dlpack__(**arguments)
    assert file.mappings[0].views == 0


def test_an_unused_capsule_lets_go(file: TensorFile) -> None:
    capsule = file["brains"].__dlpack__(max_version=(1, 0), dl_device=(1, 0))
    assert file.mappings[0].views == 1
    with pytest.raises(BufferError):
        file.close()
    del capsule
    file.close()


# ---- lifetime ----


@pytest.mark.parametrize("view", [memoryview, np.asarray, np.from_dlpack, np.frombuffer])
def test_close_waits_for_views_of_every_kind(file: TensorFile, view: type) -> None:
    alive = view(file["floats"])
    with pytest.raises(BufferError, match="views of its tensors are alive"):
        file.close()
    assert not file.closed
    del alive
    gc.collect()
    file.close()
    with pytest.raises(ArgumentError, match="is closed"):
        memoryview(file["floats"])


@pytest.mark.parametrize("view", [memoryview, np.asarray, np.from_dlpack])
def test_views_outlive_every_handle(tmp_path: Path, view: type) -> None:
    path = tmp_path / "valid.gguf"
    path.write_bytes(make.VALID)
    maps = Path("/proc/self/maps")
    alive = view(formats.open(path)["floats"])
    gc.collect()
    assert alive.tobytes() == np.arange(24 * 4, dtype=np.uint8).tobytes()
    assert str(path) in maps.read_text()
    del alive
    gc.collect()
    assert str(path) not in maps.read_text()


def test_views_from_many_threads(file: TensorFile) -> None:
    def work() -> None:
        for _ in range(300):
            np.from_dlpack(file["floats"]).sum()
            file["blocks"].dequantize()
            file["blocks"].blocks().sum()
            file["halves"].residency()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.mappings[0].views == 0
    file.close()


# ---- dequantising ----


def test_dequantize_plain_and_brain_floats(file: TensorFile) -> None:
    assert np.array_equal(file["floats"].dequantize(), np.asarray(file["floats"]))
    halves = file["halves"].dequantize()
    assert halves.dtype == np.float32 and halves.flags.writeable
    assert np.array_equal(halves, np.asarray(file["halves"]).astype(np.float32), equal_nan=True)
    brains = file["brains"].blocks().view(np.uint16).astype(np.uint32) << 16
    assert np.array_equal(file["brains"].dequantize(), brains.view(np.float32), equal_nan=True)
    assert file["blocks"].dequantize().shape == (3, 256)


@pytest.mark.parametrize("type", PLAIN)
def test_dequantize_rounds_plain_types(tmp_path: Path, type: str) -> None:
    values: NDArray[Any] = np.array([1, 0, 77], PLAIN[type])
    if type == "F64":
        values[:] = np.pi, 1e300, -np.inf
    elif type[0] in "IU":
        values[:] = np.iinfo(values.dtype).max, np.iinfo(values.dtype).min, 77
    tensor = placed(tmp_path, type, (3,), values.tobytes(), 3)
    if type[0] == "C":
        with pytest.raises(UnsupportedError, match=f"{type} cannot become float32"):
            tensor.dequantize()
        return
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    found = tensor.dequantize()
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    found[:] = 0  # its own memory
    assert raw(tensor) == values.tobytes()


def test_dequantize_says_what_it_cannot(file: TensorFile) -> None:
    lacking = [kind.name for kind in TYPES.values() if not kind.has_unpack]
    for type in set(lacking) - set(ELEMENTS):
        tensor = Tensor(file.mappings[0], "t", type, (256,), 0)
        with pytest.raises(UnsupportedError, match=type):
            tensor.dequantize()


def test_dequantize_agrees_with_gguf_py(smollm2_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    with formats.open(smollm2_path) as f:
        seen = set()
        for tensor in f.values():
            if tensor.type in seen or tensor.nbytes > 4 << 20:
                continue
            seen.add(tensor.type)
            kind = gguf.GGMLQuantizationType[tensor.type]
            expected = gguf.dequantize(tensor.blocks(), kind).reshape(tensor.shape)
            np.testing.assert_allclose(tensor.dequantize(), expected, rtol=1e-6, atol=1e-7)
        assert len(seen) >= 2


# ---- multiplying ----


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4095])
@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_floats_multiply_wherever_they_lie(tmp_path: Path, type: str, offset: int) -> None:
    random = np.random.default_rng(offset)
    for shape in ((5, 7), (33, 100), (64, 256)):
        w = random.standard_normal(shape, np.float32)
        if type == "F16":
            w = w.astype(np.float16)
        elif type == "BF16":
            w = (w.view(np.uint32) >> 16).astype(np.uint16)
        tensor = placed(tmp_path, type, shape, w.tobytes(), offset)
        exact = tensor.dequantize().astype(np.float64)
        if type != "BF16":
            assert np.array_equal(exact, w)
        for columns in ((), (1,), (6,)):
            x = random.standard_normal((shape[1], *columns), np.float32)
            y = tensor @ x
            assert y.shape == (shape[0], *columns) and y.dtype == np.float32
            bound = 1e-4 + 1e-4 * abs(exact @ x)
            if type == "BF16" and columns == (6,):  # where units for bfloat16 round x as well
                bound += 2**-8 * (abs(exact) @ abs(x))
            assert (abs(y - exact @ x) <= bound).all()


# ---- tensors made by hand ----


@pytest.mark.parametrize(
    ("type", "shape", "offset", "words"),
    [
        ("Q9", (32,), 0, "no type 'Q9'"),
        ("Q4_K", (3, 255), 0, "rows of 255 elements are not whole blocks of 256"),
        ("F32", (-1,), 0, "cannot have the shape"),
        ("F32", (1,) * 9, 0, "cannot have the shape"),
        ("F32", (4,), -4, "outside"),
        ("F32", (10**6,), 0, "outside"),
        ("F32", (2**62, 2**62), 0, "outside"),
        ("F32", (2**62, 0), 0, "cannot have the shape"),
        ("I8", (0, 2**64), 0, "cannot have the shape"),
        ("I8", (1,), 2**70, "outside"),
    ],
)
def test_impossible_tensors(
    file: TensorFile, type: str, shape: tuple[int, ...], offset: int, words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        Tensor(file.mappings[0], "t", type, shape, offset)


def test_scalars_and_empty_tensors(file: TensorFile) -> None:
    mapping = file.mappings[0]
    assert np.asarray(Tensor(mapping, "t", "F32", (), 4)).shape == ()
    empty = Tensor(mapping, "t", "F32", (0, 4), mapping.size)
    assert np.asarray(empty).shape == (0, 4) and empty.residency().total == 0
    assert np.from_dlpack(empty).shape == (0, 4) and empty.dequantize().shape == (0, 4)


def test_it_pickles_as_its_place(file: TensorFile) -> None:
    copy = pickle.loads(pickle.dumps(file["blocks"]))
    assert (copy.name, copy.type, copy.shape) == ("blocks", "Q4_K", (3, 256))
    assert np.array_equal(copy.blocks(), file["blocks"].blocks())
    assert len(pickle.dumps(file["blocks"])) < 500


# ---- in memory ----


def test_residency_of_a_tensor(tmp_path: Path) -> None:
    path = tiny_models.llama(n_embd=512, n_ff=1024, type="F32").write(tmp_path / "model.gguf")
    evict(path)
    with formats.open(path) as f:
        tensor = max(f.values(), key=lambda t: t.nbytes)
        tensor.evict()
        fresh = tensor.residency()
        assert fresh.source == "mincore" and fresh.resident <= 2
        page = tensor.mapping.page_size
        first, last = tensor.offset // page, (tensor.offset + tensor.nbytes - 1) // page
        assert fresh.total == len(fresh.pages) == last - first + 1

        tensor.advise("populate_read")
        assert tensor.residency().fraction == 1
        tensor.evict()
        assert tensor.residency().resident <= 2  # edges, shared with neighbours

        tensor.prefetch()
        for _ in range(2000):
            if tensor.residency().fraction == 1:
                break
            threading.Event().wait(0.001)
        assert tensor.residency().fraction == 1


def test_locking_a_tensor(file: TensorFile) -> None:
    file["floats"].lock()
    assert file["floats"].residency().fraction == 1
    file["floats"].unlock()
    file.close()
