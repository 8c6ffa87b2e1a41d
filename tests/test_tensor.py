"""Tensors as arrays: without copies, never writable, alive as long as any view of them."""

import ctypes
import gc
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hostile import make_gguf as make

from mmrt import formats
from mmrt.elements import ELEMENTS, UINT
from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.formats import TensorFile
from mmrt.mapping import Mapping
from mmrt.quant import TYPES
from mmrt.tensor import Tensor

PLAIN = {
    "F32": np.float32, "F16": np.float16, "F64": np.float64, "C64": np.complex64,
    "C128": np.complex128, "BOOL": np.bool_, "I8": np.int8, "I16": np.int16, "I32": np.int32,
    "I64": np.int64, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
}  # fmt: skip

# Types that NumPy lacks, and their names in ml_dtypes.
BYTES = {
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
    values = np.arange(24).astype(dtype).reshape(2, 3, 4)
    tensor = placed(tmp_path, type, (2, 3, 4), values.tobytes(), 16)
    assert tensor.nbytes == values.nbytes
    for array in (np.asarray(tensor), tensor.__array__(), np.from_dlpack(tensor)):
        assert array.dtype == dtype and array.shape == (2, 3, 4)
        assert np.array_equal(array, values) and not array.flags.writeable
    with memoryview(tensor) as view:
        assert view.readonly and view.c_contiguous and view.shape == (2, 3, 4)
        assert view.format == np.dtype(dtype).char or view.itemsize == np.dtype(dtype).itemsize


def test_every_plain_type_is_tested() -> None:
    assert {*PLAIN, *BYTES} == set(ELEMENTS)


@pytest.mark.parametrize("type", PLAIN)
def test_views_that_are_not_aligned(tmp_path: Path, type: str) -> None:
    values = np.arange(24).astype(PLAIN[type]).reshape(4, 6)
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


@pytest.mark.parametrize(("type", "name"), BYTES.items())
def test_types_that_numpy_lacks(tmp_path: Path, type: str, name: str) -> None:
    dtype = pytest.importorskip("ml_dtypes").__dict__[name]
    codes = np.arange(256 if type != "BF16" else 65536).astype(f"u{np.dtype(dtype).itemsize}")
    tensor = placed(tmp_path, type, codes.shape, codes.tobytes(), 1)
    assert np.array_equal(np.asarray(tensor), codes.view(np.uint8))
    with np.errstate(invalid="ignore"):
        expected = codes.view(dtype).astype(np.float32)
    found = tensor.dequantize()
    numbers = ~np.isnan(expected)
    assert found.dtype == np.float32 and np.array_equal(np.isnan(found), ~numbers)
    assert found[numbers].tobytes() == expected[numbers].tobytes()
    scalar = Tensor(tensor.mapping, "t", type, (), 1)
    assert scalar.dequantize().shape == () and np.asarray(scalar).nbytes == scalar.nbytes


@pytest.mark.parametrize(("name", "shape"), [("blocks", (3, 144)), ("brains", (2, 6))])
def test_other_types_are_their_bytes(file: TensorFile, name: str, shape: tuple[int, int]) -> None:
    array = np.asarray(file[name])
    assert array.dtype == np.uint8 and array.shape == shape and not array.flags.writeable
    assert array.tobytes() == raw(file[name])
    assert np.array_equal(file[name].__array__(), array)


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
        view[0, 0, 0] = 1.0
    with pytest.raises((TypeError, BufferError)):
        struct.pack_into("f", floats, 0, 1.0)
    assert bytes(floats) == raw(floats)
    assert np.frombuffer(floats, np.float32).shape == (24,)
    assert file.mappings[0].views == 0


def test_array_converts_plain_types_only(file: TensorFile) -> None:
    doubles = file["floats"].__array__(np.float64)
    assert doubles.dtype == np.float64 and np.array_equal(doubles, np.asarray(file["floats"]))
    with pytest.raises(ValueError, match="without a copy"):
        file["floats"].__array__(np.float64, copy=False)
    for name in ("blocks", "brains"):
        with pytest.raises(TypeError, match="dequantize"):
            file[name].__array__(np.float32)
        assert file[name].__array__(np.uint8).dtype == np.uint8


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


def test_dlpack_of_quantised_blocks(file: TensorFile) -> None:
    array = np.from_dlpack(file["blocks"])
    assert array.dtype == np.uint8 and array.shape == (3, 144)
    assert not array.flags.writeable and array.tobytes() == raw(file["blocks"])


@pytest.mark.parametrize("type", BYTES)
def test_dlpack_of_types_that_numpy_lacks(tmp_path: Path, type: str) -> None:
    tensor = placed(tmp_path, type, (2, 3), bytes(range(12)), 0)
    bits = 8 * ELEMENTS[type].bytes
    found = dlpack(tensor.__dlpack__(max_version=(1, 1)))
    assert found == ((1, int(bits == 8)), (ELEMENTS[type].dlpack, bits, 1), [2, 3], [3, 1])
    if bits == 8:  # before DLPack 1.1, which names them, they are bytes
        found = dlpack(tensor.__dlpack__(max_version=(1, 0)))
        assert found == ((1, 0), (UINT, 8, 1), [2, 3], [3, 1])
        assert np.array_equal(np.from_dlpack(tensor), [[0, 1, 2], [3, 4, 5]])


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
            np.asarray(file["blocks"]).sum()
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
    brains = np.asarray(file["brains"]).view(np.uint16).astype(np.uint32) << 16
    assert np.array_equal(file["brains"].dequantize(), brains.view(np.float32), equal_nan=True)
    assert file["blocks"].dequantize().shape == (3, 256)


@pytest.mark.parametrize("type", PLAIN)
def test_dequantize_rounds_plain_types(tmp_path: Path, type: str) -> None:
    values = np.array([1, 0, 77], PLAIN[type])
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
            expected = gguf.dequantize(np.asarray(tensor), kind).reshape(tensor.shape)
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


@pytest.mark.parametrize("type", sorted(set(ELEMENTS) - {"F32", "F16", "BF16"}))
def test_what_does_not_multiply_says_so(tmp_path: Path, type: str) -> None:
    tensor = placed(tmp_path, type, (1, 1), bytes(16), 0)
    with pytest.raises(UnsupportedError, match=f"tensor 't': no kernel multiplies {type}"):
        tensor @ [1]


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
    assert np.array_equal(np.asarray(copy), np.asarray(file["blocks"]))
    assert len(pickle.dumps(file["blocks"])) < 500


# ---- in memory ----


def test_residency_of_a_tensor(smollm2_path: Path) -> None:
    with formats.open(smollm2_path) as f:
        tensor = max(f.values(), key=lambda t: t.nbytes)
        tensor.evict()
        fresh = tensor.residency()
        if fresh.source != "mincore" or fresh.resident > 2:
            pytest.skip("this file system does not let pages go")
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
