"""safetensors files: against the safetensors package, hostile ones, truncated ones, and sets."""

import json
import math
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrt import formats
from mmrt.core.elements import ELEMENTS
from mmrt.errors import FileError, FormatError, MmrtError, UnsupportedError
from mmrt.files.formats import TensorFile

package = pytest.importorskip("safetensors")

# Types of the format; the last three are newer than some versions of the package.
NEWER = ["F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"]
TYPES = sorted(set(ELEMENTS) - {*NEWER, "C128"})

examples = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    """A file with this header, a value for JSON or its text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


VALID = file(
    {
        "__metadata__": {"format": "pt", "naïve": "☃"},
        "matrix": entry("F32", [2, 3], 7, 31),
        "bytes": entry("U8", [7], 0, 7),
        "nothing": entry("F64", [0, 4], 31, 31),
        "scalar": entry("BF16", [], 31, 33),
    },
    bytes(range(33)),
)


def write(folder: Path, data: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def told(f: TensorFile) -> dict[str, tuple[str, list[int], bytes]]:
    """All that a file holds."""
    return {name: (t.type, list(t.shape), t.blocks().tobytes()) for name, t in f.items()}


def as_package(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in package.deserialize(data)
    }


# ---- single files ----


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    with formats.open(path) as f:
        assert repr(f) == f"<safetensors file {str(path)!r}, 4 tensors, 33 bytes>"
        assert f.metadata == {"format": "pt", "naïve": "☃"}
        assert list(f) == ["bytes", "matrix", "nothing", "scalar"]  # as they lie in the file
        matrix = f["matrix"]
        assert (matrix.type, matrix.shape, matrix.offset) == ("F32", (2, 3), len(VALID) - 26)
        assert np.asarray(f["matrix"]).tobytes() == bytes(range(7, 31))
        assert np.asarray(f["nothing"]).shape == (0, 4)
        assert f["scalar"].shape == () and f["scalar"].nbytes == 2
        assert told(f) == as_package(VALID)


def one_of(type: str) -> bytes:
    size = 6 * ELEMENTS[type].bytes
    return file({"t": entry(type, [2, 3], 0, size)}, bytes(size))


@pytest.mark.parametrize("type", TYPES)
def test_every_type_reads_as_the_package_reads_it(tmp_path: Path, type: str) -> None:
    with formats.open(write(tmp_path, one_of(type))) as f:
        assert told(f) == as_package(one_of(type)) and f["t"].type == type


@pytest.mark.parametrize("type", NEWER)
def test_types_that_only_newer_packages_know(tmp_path: Path, type: str) -> None:
    with formats.open(write(tmp_path, one_of(type))) as f:
        assert told(f) == {"t": (type, [2, 3], bytes(6 * ELEMENTS[type].bytes))}


def test_numpy_sees_what_safe_open_gives(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    random = np.random.default_rng(2)
    arrays: dict[str, Any] = {
        "weight": random.standard_normal((64, 48), np.float32),
        "half": random.standard_normal((5, 48)).astype(np.float16),
        "odd": np.arange(3, dtype=np.uint8),
        "mask": np.array([True, False]),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path)
    x = random.standard_normal(48).astype(np.float32)
    with formats.open(path) as f, safe_open(path, "numpy") as reference:
        assert set(f) == set(reference.keys())
        for name in f:
            expected = reference.get_tensor(name)
            assert np.asarray(f[name]).dtype == expected.dtype
            assert np.array_equal(np.asarray(f[name]), expected)
        for name in ("weight", "half"):
            np.testing.assert_allclose(f[name] @ x, arrays[name] @ x, rtol=1e-3, atol=1e-3)


def test_it_pickles(tmp_path: Path) -> None:
    with formats.open(write(tmp_path, VALID)) as f, pickle.loads(pickle.dumps(f)) as copy:
        assert told(copy) == told(f) and copy.metadata == f.metadata


# ---- what is refused ----

HOSTILE = {
    "no brace": (file(b"[]"), "like no format"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "like no format .* Git LFS"),
    "not UTF-8": (file(b'{"\xff": 1}'), "the header is no sound JSON"),
    "half a character": (file(b'{"\\ud800": 1}'), "the header is no sound JSON"),
    "half a character in metadata": (
        file(b'{"__metadata__": {"k": "\\udfff"}}', b""),
        "the header is no sound JSON",
    ),
    "deep": (file(b'{"a":' * 100_000), "the header is no sound JSON"),
    "long number": (file(b'{"a": ' + b"1" * 5000 + b"}"), "a number of 5000 digits"),
    "cut JSON": (file(b'{"a": {'), "the header is no sound JSON"),
    "two values": (file(b"{}{}"), "the header is no sound JSON: Extra data"),
    "length of 2^64 - 1": (file({}, length=2**64 - 1), "a header of 18446744073709551615 bytes"),
    "length of 101 MB": (file({}, length=101_000_000), "a header of 101000000 bytes"),
    "length past the end": (file({}, length=11), "the header's 11 bytes from 8 do not lie within"),
    "key twice": (
        file(b'{"a": {"dtype": "F32"}, "b": 1, "a": 2}'),
        "no sound JSON: the key 'a' is there twice",
    ),
    "field twice": (file(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "key 'dtype' is there twice"),
    "metadata twice": (
        file(b'{"__metadata__": {}, "__metadata__": {}}', b""),
        "the key '__metadata__' is there twice",
    ),
    "metadata list": (file({"__metadata__": []}, b""), "__metadata__ is no object of strings"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}}, b""), "is no object of strings"),
    "entry list": (file({"a": []}), "tensor 'a': its entry is no object"),
    "no dtype": (file({"a": {"shape": [2], "data_offsets": [0, 8]}}), "'a': dtype is missing"),
    "dtype number": (file({"a": entry(3)}), "'a': dtype is missing or no str"),
    "shape number": (file({"a": entry(shape=2)}), "'a': shape is missing or no list"),
    "no offsets": (file({"a": {"dtype": "F32", "shape": [2]}}), "data_offsets is missing"),
    "three offsets": (
        file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}),
        "data_offsets are not two whole numbers",
    ),
    "offset bool": (file({"a": entry(begin=False)}), "data_offsets are not two whole numbers"),
    "offset fraction": (file({"a": entry(end=8.0)}), "data_offsets are not two whole numbers"),
    "offset negative": (file({"a": entry(begin=-4, end=4)}), "data_offsets -4 to 4 do not lie"),
    "offsets reversed": (file({"a": entry(begin=8, end=0)}), "data_offsets 8 to 0 do not lie"),
    "offset past the end": (file({"a": entry(end=9)}), "do not lie within the 8 bytes after"),
    "offset of 2^64": (file({"a": entry(end=2**64)}), "data_offsets 0 to 18446744073709551616"),
    "shape fraction": (file({"a": entry(shape=[2.0])}), "dimension 0 of its shape is no whole"),
    "shape bool": (file({"a": entry(shape=[2, True])}), "dimension 1 of its shape is no whole"),
    "shape negative": (file({"a": entry(shape=[-2])}), "dimension 0 of its shape is no whole"),
    "shape of 2^63": (file({"a": entry(shape=[2**63])}), "dimension 0 of its shape is no whole"),
    "shape that overflows": (file({"a": entry(shape=[2**62, 2**62])}), "'a': its .* lie outside"),
    "shape that wraps": (file({"a": entry(shape=[2**31, 2**33 + 1])}), "'a': its .* lie outside"),
    "empty and huge": (file({"a": entry(shape=[2**62, 0], end=0)}), "cannot have the shape"),
    "shape too small": (file({"a": entry(shape=[1])}), "give it 8 bytes, but F32 .* takes 4"),
    "shape too large": (file({"a": entry(shape=[2], end=4)}), "it 4 bytes, but F32 .* takes 8"),
    "overlap": (
        file({"a": entry("U8", [5], 0, 5), "b": entry("U8", [4], 4, 8)}),
        "tensor 'b': data_offsets: it begins at 4, expected 5: it overlaps the one before it",
    ),
    "the same twice": (file({"a": entry(), "b": entry()}), "tensor 'b': .* overlaps the one"),
    "one inside another": (
        file({"a": entry("U8", [8], 0, 8), "b": entry("U8", [2], 2, 4)}),
        "tensor 'b': .* overlaps",
    ),
    "nothing inside another": (
        file({"a": entry("U8", [8], 0, 8), "b": entry("U8", [0], 2, 2)}),
        "tensor 'b': .* overlaps",
    ),
    "hole": (
        file({"a": entry("U8", [3], 0, 3), "b": entry("U8", [4], 4, 8)}),
        "tensor 'b': data_offsets: it begins at 4, expected 3: it follows a hole",
    ),
    "hole in front": (file({"a": entry("U8", [4], 4, 8)}), "begins at 4, expected 0"),
    "hole at the end": (file({"a": entry("U8", [4], 0, 4)}), "4 bytes after the last tensor"),
    "bytes of nobody": (file({}), "8 bytes after the last tensor belong to none"),
}  # fmt: skip

UNSUPPORTED = {
    "dtype unknown": (file({"a": entry("F99")}), "mmrt does not know its dtype, 'F99'"),
    "dtype C128": (file({"a": entry("C128", [], 0, 8)}), "mmrt does not know its dtype, 'C128'"),
    "dtype of GGUF": (file({"a": entry("Q4_0")}), "mmrt does not know its dtype, 'Q4_0'"),
    "dtype control": (file({"a": entry("\x1b[2J")}), r"dtype, '\\x1b\[2J'"),
    "nine dimensions": (file({"a": entry(shape=[2] + [1] * 8)}), "9 dimensions, .* up to 8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_breaks_the_format_is_refused(tmp_path: Path, case: str) -> None:
    data, words = HOSTILE[case]
    path = write(tmp_path, data)
    with pytest.raises(FormatError, match=words) as caught:
        formats.open(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_mmrt_does_not_know_is_said(tmp_path: Path, case: str) -> None:
    data, words = UNSUPPORTED[case]
    path = write(tmp_path, data)
    with formats.open(path) as f:
        assert f["a"].nbytes == 8
        with pytest.raises(UnsupportedError, match=f"tensor 'a': .*{words}") as caught:
            np.asarray(f["a"])
    assert str(caught.value).isprintable()


def test_what_mmrt_does_not_know_hides_nothing_else(tmp_path: Path) -> None:
    data = file(
        {"q": entry("F4", [8], 4, 8), "w": entry("F32", [1], 0, 4)}, b"\0\0\0\x40" + b"ABCD"
    )
    with formats.open(write(tmp_path, data)) as f:
        assert np.asarray(f["w"]) == [2]
        assert (f["q"].type, f["q"].shape, f["q"].nbytes) == ("F4", (8,), 4)


def test_a_file_cut_short_is_refused_at_every_byte(tmp_path: Path) -> None:
    for n in range(len(VALID)):
        path = write(tmp_path, VALID[:n])
        with pytest.raises(FormatError, match=r"model\.safetensors: "):
            formats.open(path)


def test_refused_files_are_not_kept_open(tmp_path: Path) -> None:
    path = write(tmp_path, file({"a": entry(end=9)}))
    with pytest.raises(FormatError):
        formats.open(path)
    assert str(path) not in Path("/proc/self/maps").read_text()


# ---- sets of shards ----


def write_set(folder: Path, weight_map: Any = None, **more: Any) -> Path:
    """Two shards, "a" in the first and "b" in the second, and their index, the path to which is
    given back."""
    for i, name in enumerate("ab"):
        header = {"__metadata__": {"shard": str(i)}, name: entry()}
        write(folder, file(header, bytes([i]) * 8), f"model-0000{i + 1}-of-00002.safetensors")
    if weight_map is None:
        weight_map = {n: f"model-0000{i + 1}-of-00002.safetensors" for i, n in enumerate("ab")}
    index = {"metadata": {"total_size": 16}, "weight_map": weight_map, **more}
    return write(folder, json.dumps(index).encode(), "model.safetensors.index.json")


def test_a_set_opens_by_its_index(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    with formats.open(index) as f:
        assert told(f) == {"a": ("F32", [2], bytes(8)), "b": ("F32", [2], b"\1" * 8)}
        assert f.metadata == {"shard": "0", "total_size": 16}
        assert f.path == str(index) and len(f.paths) == 3
        assert {Path(path).name for path in f.paths[1:]} == {
            f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
        }
        with pickle.loads(pickle.dumps(f)) as copy:
            assert told(copy) == told(f)
    assert f.closed and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_shards_may_be_links(tmp_path: Path) -> None:
    """As in the cache of huggingface_hub, where all names lead to files named by their hashes."""
    blobs, names = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    names.mkdir()
    index = write_set(blobs)
    for i, target in enumerate(sorted(blobs.iterdir())):
        target.rename(blobs / str(i))
        (names / target.name).symlink_to(blobs / str(i))
    with formats.open(names / index.name) as f:
        assert set(f) == {"a", "b"}


def test_shards_may_hold_what_the_index_does_not_name(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    write(tmp_path, file({"a": entry(), "c": entry("U8", [1], 8, 9)}, bytes(9)),
          "model-00001-of-00002.safetensors")  # fmt: skip
    with formats.open(index) as f:
        assert set(f) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\0b"]
)
def test_an_index_leads_only_to_files_beside_it(tmp_path: Path, name: str) -> None:
    write(tmp_path, VALID)
    (tmp_path / "sub").mkdir()
    index = write_set(tmp_path / "sub", {"a": name})
    with pytest.raises(FormatError, match="is no name of a file beside the index"):
        formats.open(index)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ([], "weight_map is missing or no object"),
        ({"a": 3}, "weight_map: 'a' is in no file"),
        ({"c": "model-00001-of-00002.safetensors"}, "tensor 'c' is not in 'model-00001"),
        ({"b": "model-00001-of-00002.safetensors"}, "tensor 'b' is not in 'model-00001"),
        ({"a": "model.safetensors.index.json"}, "not with a length and the brace"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, weight_map: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        formats.open(write_set(tmp_path, weight_map))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.write_bytes(file({"a": entry(), "b": entry("U8", [0], 8, 8)}))
    with pytest.raises(FormatError, match=r"00002-of-00002.safetensors: tensor 'a' is in .*00001"):
        formats.open(index)
    second.write_bytes(VALID[:40])
    with pytest.raises(FormatError, match=r"00002-of-00002\.safetensors: the header's"):
        formats.open(index)
    second.unlink()
    with pytest.raises(FileError, match=r"00002-of-00002.safetensors is missing: .*index.json"):
        formats.open(index)
    second.mkdir()
    with pytest.raises(FileError, match="a directory"):
        formats.open(index)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "the index is no sound JSON"),
        (b"[1]", "like no format"),
        (b'{"weight_map": {"a": "b", "a": "c"}}', "the key 'a' is there twice"),
        (b'{"weight_map": {}, "metadata": [["\\ud800"]]}', "the index is no sound JSON"),
        (b"{}", "weight_map is missing"),
        (b"{" * 100_000, "the index is no sound JSON"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    path = write(tmp_path, text, "model.safetensors.index.json")
    with pytest.raises(FormatError, match=words) as caught:
        formats.open(path)
    assert str(path) in str(caught.value)


def test_an_index_cut_short_is_refused_at_every_byte(tmp_path: Path) -> None:
    index = write_set(tmp_path)
    data = index.read_bytes()
    for n in range(len(data)):
        index.write_bytes(data[:n])
        with pytest.raises(FormatError, match=r"index\.json: "):
            formats.open(index)


# ---- fuzzing ----


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name in draw(st.sets(TEXT, max_size=5)) - {"__metadata__"}:
        type, shape = draw(st.sampled_from(TYPES)), draw(st.lists(st.integers(0, 4), max_size=8))
        size = math.prod(shape) * ELEMENTS[type].bytes
        header[name] = entry(type, shape, len(data), len(data) + size)
        data += os.urandom(size)
    metadata = draw(st.none() | st.dictionaries(TEXT, TEXT, max_size=3))
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode()
    return file(text + b" " * draw(st.integers(0, 8)), data)


@examples
@given(files())
def test_any_file_is_read_as_the_package_reads_it(tmp_path: Path, data: bytes) -> None:
    with formats.open(write(tmp_path, data)) as f:
        assert told(f) == as_package(data)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """VALID with a few pieces overwritten, taken out, repeated or put in."""
    data = VALID
    for _ in range(draw(st.integers(1, 4))):
        at, n = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        piece = draw(
            st.binary(max_size=4)
            | st.sampled_from([b"-", b"0", b"9" * 18, b".5", b"e9", b"null", b"[]", b"{}", b'"'])
            | st.just(data[at : at + n])
        )
        data = data[:at] + piece + data[at + (n if draw(st.booleans()) else 0) :]
    if draw(st.booleans()) and len(data) > 8:  # a length that fits, so that more is looked at
        end = data.rfind(b"}") + 1
        data = struct.pack("<Q", max(end - 8, 0)) + data[8:]
    return data


@examples
@given(mutations())
def test_mutations_are_read_as_the_package_reads_them_or_refused(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        expected = as_package(data)
    except package.SafetensorError:
        expected = None
    try:
        with formats.open(path) as f:
            if not any(tensor.unreadable for tensor in f.values()):
                assert told(f) == expected
    except MmrtError as refused:
        assert str(path) in str(refused) and str(refused).isprintable()
        assert expected is None or "there twice" in str(refused), data
