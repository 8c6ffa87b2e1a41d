"""Tensors as arrays: without copies, never writable, alive as long as any view of them."""

import gc
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hostile import make_gguf as make

from mmrt import formats
from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.formats import TensorFile
from mmrt.mapping import Mapping
from mmrt.tensor import Tensor

PLAIN = {
    "F32": np.float32, "F16": np.float16, "F64": np.float64,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> TensorFile:
    """floats F32 (3, 2, 4), blocks Q4_K (3, 256), halves F16 (5,), brains BF16 (2, 3)."""
    path = tmp_path / "valid.gguf"
    path.write_bytes(make.VALID)
    return formats.open(path)


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
    path = tmp_path / "plain.bin"
    path.write_bytes(b"pad....." + values.tobytes())
    tensor = Tensor(Mapping(path), "t", type, (2, 3, 4), 8)
    for array in (np.asarray(tensor), tensor.__array__(), np.from_dlpack(tensor)):
        assert array.dtype == dtype and array.shape == (2, 3, 4)
        assert np.array_equal(array, values) and not array.flags.writeable
    with memoryview(tensor) as view:
        assert view.readonly and view.c_contiguous and view.shape == (2, 3, 4)
        assert view.format == np.dtype(dtype).char or view.itemsize == np.dtype(dtype).itemsize


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


def test_dlpack_device(file: TensorFile) -> None:
    assert file["floats"].__dlpack_device__() == (1, 0)


def test_dlpack_of_quantised_blocks(file: TensorFile) -> None:
    array = np.from_dlpack(file["blocks"])
    assert array.dtype == np.uint8 and array.shape == (3, 144)
    assert not array.flags.writeable and array.tobytes() == raw(file["blocks"])


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


def test_dequantize_says_what_it_cannot(file: TensorFile) -> None:
    tensor = Tensor(file.mappings[0], "t", "Q1_0", (256,), 0)
    with pytest.raises(UnsupportedError, match="Q1_0"):
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
