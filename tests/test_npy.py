"""NumPy's files: against NumPy, hostile ones, truncated ones."""

import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmrt import formats
from mmrt.core.elements import ELEMENTS
from mmrt.errors import FormatError, MmrtError, UnsupportedError

DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "C128": "<c16", "BOOL": "|b1",
    "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip

examples = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, data: bytes, name: str = "weights.npy") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def saved(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def npy(header: str | bytes, data: bytes = bytes(8), version: tuple[int, int] = (1, 0)) -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def described(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}")


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


ONES = saved(np.ones(3, np.float32))


# ---- .npy ----


@pytest.mark.parametrize(("type", "descr"), DTYPES.items())
def test_every_type_reads_as_numpy_reads_it(tmp_path: Path, type: str, descr: str) -> None:
    values = np.arange(6).astype(descr).reshape(2, 3)
    path = write(tmp_path, saved(values))
    with formats.open(path) as f:
        (tensor,) = f.values()
        assert (f.format, list(f), dict(f.metadata)) == ("npy", ["weights"], {})
        assert (tensor.type, tensor.shape, tensor.nbytes) == (type, (2, 3), values.nbytes)
        array = np.asarray(tensor)
        assert array.dtype == values.dtype and np.array_equal(array, np.load(path))
        assert not array.flags.writeable
        assert np.shares_memory(array, np.asarray(memoryview(tensor.mapping)))
        del array


def test_a_matrix_multiplies(tmp_path: Path) -> None:
    w = np.random.default_rng(1).standard_normal((33, 70)).astype(np.float16)
    path = write(tmp_path, saved(w))
    x = np.ones(70, np.float32)
    with formats.open(path) as f:
        np.testing.assert_allclose(f["weights"] @ x, w.astype(np.float32) @ x, rtol=1e-3, atol=1e-3)


def test_any_name_is_taken_for_its_content(tmp_path: Path) -> None:
    with formats.open(write(tmp_path, ONES, "weights.bin")) as f:
        assert list(f) == ["weights.bin"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(tmp_path: Path, version: tuple[int, int]) -> None:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(out, np.arange(5.0), version)
    with formats.open(write(tmp_path, out.getvalue())) as f:
        assert np.array_equal(np.asarray(f["weights"]), np.arange(5.0))


def test_rows_and_columns_that_are_the_same_thing(tmp_path: Path) -> None:
    for shape in ("()", "(2,)", "(1, 2)", "(2, 1)", "(1, 2, 1)"):
        data = bytes(4 if shape == "()" else 8)
        text = f"{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}}}"
        with formats.open(write(tmp_path, npy(text, data))) as f:
            assert str(f["weights"].shape) == shape


HOSTILE = {
    "magic": (b"\x93NUMPX" + ONES[6:], "like no format"),
    "length past the end": (npy(b"{}")[:8] + b"\xff\xff{}", "it ends within its header"),
    "length of 2^32 - 1": (b"\x93NUMPY\2\0\xff\xff\xff\xff{}", "it ends within its header"),
    "not a dict": (npy("[]"), "its header is no dict of descr, fortran_order, shape: b'"),
    "not Python": (npy("{"), "its header is no dict"),
    "a call": (npy("__import__('os').abort()"), "its header is no dict"),
    "bytes": (npy(b"\xff\0\x1b"), "its header is no dict"),
    "not UTF-8": (npy(b"\xff", version=(3, 0)), "its header is no dict"),
    "unhashable": (npy("{[]: 1}"), "its header is no dict"),
    "parentheses": (npy("(" * 9000), "its header is no dict"),
    "signs": (npy("-" * 9000 + "1"), "its header is no dict"),
    "sums": (npy("1" + "+1" * 4000), "its header is no dict"),
    "digits": (npy("{'shape': (" + "9" * 9000 + ",)}"), "its header is no dict"),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}"), "its header is no dict"),
    "one more": (
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}"),
        "its header is no dict",
    ),
    "order number": (described(order="0"), "fortran_order is no bool, or shape no tuple"),
    "shape list": (described(shape="[2]"), "fortran_order is no bool, or shape no tuple"),
    "shape number": (described(shape="2"), "fortran_order is no bool, or shape no tuple"),
    "shape fraction": (described(shape="(2.0,)"), "its header is no dict"),
    "shape bool": (described(shape="(2, True)"), "dimension 1 of its shape is no whole number"),
    "shape negative": (described(shape="(-2,)"), "its header is no dict"),
    "shape of 2^63": (described(shape=f"({2**63},)"), "dimension 0 of its shape is no whole"),
    "shape of many digits": (described(shape=f"({'9' * 4000},)"), "dimension 0 of its shape"),
    "shape of more digits": (described(shape=f"({'9' * 9000},)"), "its header is no dict"),
    "shape to be worked out": (described(shape="(2**0, 2)"), "its header is no dict"),
    "escape": (described(r"'\d'"), "its header is no dict"),
    "number and keyword": (described(shape="(1if 1 else 2,)"), "its header is no dict"),
    "shape that wraps": (described(shape=f"({2**62}, {2**62})"), "lie outside"),
    "empty and huge": (described(shape=f"({2**62}, 0)"), "cannot have the shape"),
    "too few bytes": (described(shape="(3,)"), "its 12 bytes from .* lie outside"),
}

UNSUPPORTED = {
    "version": (npy("{}", version=(4, 0)), r"version 4\.0 of the format"),
    "version 1.1": (npy("{}", version=(1, 1)), r"version 1\.1 of the format"),
    "long header": (npy(b" " * 10_001), "a header of 10001 bytes"),
    "objects": (saved(np.array([{}, 1], object), allow_pickle=True), "pickled Python objects"),
    "structure": (saved(np.zeros(2, "<f4,<i4")), "a structure is no tensor"),
    "text": (saved(np.array(["ab"])), "does not know the dtype '<U2'"),
    "bytes": (saved(np.array([b"ab"])), r"does not know the dtype '\|S2'"),
    "dates": (saved(np.array(["2001-01-01"], "M8[D]")), r"does not know the dtype '<M8\[D\]'"),
    "void": (saved(np.zeros(2, "V2")), r"does not know the dtype '\|V2'"),
    "big-endian": (saved(np.arange(3, dtype=">f4")), r"big-endian; save array.astype\('<f4'\)"),
    "columns": (saved(np.asfortranarray(np.ones((2, 3)))), "fortran_order: .*ascontiguousarray"),
    "dtype number": (described("4"), "a structure is no tensor"),
    "dtype control": (described("'\x1b[2J'"), r"dtype '\\x1b\[2J'"),
    "two arrays": (ONES + ONES, "140 bytes follow the array"),
    "nine dimensions": (described(shape="(2, 1, 1, 1, 1, 1, 1, 1, 1)"), "has 9 dimensions"),
}  # fmt: skip


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
    with pytest.raises(UnsupportedError, match=words) as caught:
        formats.open(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


def test_a_file_cut_short_is_refused_at_every_byte(tmp_path: Path) -> None:
    for n in range(len(ONES)):
        path = write(tmp_path, ONES[:n])
        with pytest.raises(FormatError, match=r"weights\.npy: "):
            formats.open(path)


# ---- .npz ----


def test_an_archive_reads_as_numpy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    random = np.random.default_rng(1)
    values: dict[str, Any] = {
        "w": random.standard_normal((5, 7), np.float32),
        "layer/b": np.arange(4, dtype=np.int16),
        "naïve": np.float64(3).reshape(()),
        "none": np.zeros((0, 3), np.float16),
    }
    np.savez(path, **values)
    with formats.open(path) as f, np.load(path) as reference:
        assert (f.format, list(f)) == ("npz", reference.files)
        for name, tensor in f.items():
            assert np.asarray(tensor).dtype == reference[name].dtype
            assert np.array_equal(np.asarray(tensor), reference[name])
        # Members begin at any byte.
        x = random.standard_normal(7).astype(np.float32)
        np.testing.assert_allclose(f["w"] @ x, values["w"] @ x, rtol=1e-5, atol=1e-5)


def test_archives_of_other_writers(tmp_path: Path) -> None:
    with formats.open(write(tmp_path, zipped({}), "none.npz")) as f:
        assert len(f) == 0 and f.nbytes == 0
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = b"made by hand"
        with archive.open("a.npy", "w", force_zip64=True) as member:
            member.write(ONES)
        archive.writestr("b.npy", ONES)
    prefixed = b"PK\3\4" + bytes(60) + out.getvalue()  # as in an archive that extracts itself
    for data in (out.getvalue(), prefixed):
        with formats.open(write(tmp_path, data, "made.npz")) as f:
            assert {name: np.asarray(t).tolist() for name, t in f.items()} == {
                "a": [1, 1, 1], "b": [1, 1, 1],
            }  # fmt: skip

    # Sizes that follow the bytes, as they must where the writer cannot go back.
    class Pipe(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("a.npy", ONES)
    with formats.open(write(tmp_path, pipe.data, "piped.npz")) as f:
        assert np.asarray(f["a"]).tolist() == [1, 1, 1]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


ONE = zipped({"a.npy": ONES})
TWO = zipped({"a.npy": ONES, "b.npy": ONES})
DIRECTORY = ONE.rindex(b"PK\1\2")
SECOND = TWO.rindex(b"PK\1\2")
END = len(ONE) - 22

HOSTILE_ARCHIVES = {
    "cut": (ONE[:-1], "no sound ZIP archive"),
    "no directory": (ONE[:DIRECTORY], "no sound ZIP archive"),
    "directory elsewhere": (patched(ONE, END + 16, b"\xff" * 4), "ZIP archive|cannot be at byte"),
    "directory huge": (patched(ONE, END + 12, b"\xff\xff\xff\x7f"), "no sound ZIP archive"),
    "no npy": (zipped({"a.txt": b"text"}), "member 'a.txt' is no .npy"),
    "empty member": (zipped({"a.npy": b""}), "member 'a.npy': it begins with b''"),
    "member of text": (zipped({"a.npy": b"text"}), "member 'a.npy': it begins with b'text'"),
    "cut member": (zipped({"a.npy": ONES[:-1]}), "its shape takes 12 bytes, and 11"),
    "twice": (zipped({"a.npy": ONES, "a": ONES}), "member 'a' is no .npy"),
    "the same": (TWO.replace(b"b.npy", b"a.npy"), "member 'a.npy' is there twice"),
    "header not there": (patched(ONE, DIRECTORY + 42, b"\1"), "is not that of the directory's"),
    "header past the end": (patched(ONE, DIRECTORY + 42, b"\xff\xff"), "cannot be at byte 65535"),
    "other name": (patched(ONE, 30, b"b"), "is not that of the directory's entry"),
    "other size": (patched(ONE, 22, b"\1"), "is not that of the directory's entry"),
    "other method": (patched(ONE, 8, b"\x08"), "is not that of the directory's entry"),
    "extra past the end": (patched(ONE, 28, b"\xff\xff"), "is not that of the directory's entry"),
    "size past the end": (
        patched(ONE, DIRECTORY + 20, struct.pack("<2I", 2**31, 2**31)),
        "is not that of the directory's entry",
    ),
    "sizes differ": (
        patched(patched(ONE, DIRECTORY + 20, b"\0\0\0\0"), 18, b"\0\0\0\0"),
        "140 bytes, 0 stored, do not fit",
    ),
    "overlap": (
        patched(patched(TWO, SECOND + 42, bytes(4)), SECOND + 46, b"a"),
        "member 'a.npy' overlaps the one before it",
    ),
}  # fmt: skip

UNSUPPORTED_ARCHIVES = {
    "deflate": (zipped({"a.npy": ONES}, zipfile.ZIP_DEFLATED), "is compressed, .*numpy.savez"),
    "bzip2": (zipped({"a.npy": ONES}, zipfile.ZIP_BZIP2), "is compressed"),
    "encrypted": (patched(ONE, DIRECTORY + 8, b"\1"), "is encrypted"),
    "two arrays": (zipped({"a.npy": ONES + ONES}), "'a.npy': 140 bytes follow the array"),
}


@pytest.mark.parametrize("case", HOSTILE_ARCHIVES)
def test_archives_that_break_the_format_are_refused(tmp_path: Path, case: str) -> None:
    data, words = HOSTILE_ARCHIVES[case]
    path = write(tmp_path, data, "weights.npz")
    with pytest.raises(FormatError, match=words) as caught:
        formats.open(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


@pytest.mark.parametrize("case", UNSUPPORTED_ARCHIVES)
def test_members_that_mmrt_does_not_know_are_named(tmp_path: Path, case: str) -> None:
    data, words = UNSUPPORTED_ARCHIVES[case]
    path = write(tmp_path, data, "weights.npz")
    with pytest.raises(UnsupportedError, match=words) as caught:
        formats.open(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("array", "type", "words"),
    [
        (np.array([1, "a"], object), "objects", "pickled Python objects"),
        (np.ones(2, ">i2"), ">i2", "big-endian"),
        (np.zeros(2, "<f4,<i4"), "structure", "a structure is no tensor"),
        (np.array(["ab", "c"]), "<U2", "the dtype '<U2'"),
        (np.array(["2001-01-01"] * 2, "M8[D]"), "<M8[D]", "the dtype '<M8"),
        (np.asfortranarray(np.ones((2, 3))), "F64", "column by column"),
    ],
)
def test_a_member_that_cannot_be_read_hides_no_other(
    tmp_path: Path, array: Any, type: str, words: str
) -> None:
    odd = saved(array, allow_pickle=True)
    data = zipped({"a.npy": ONES, "odd.npy": odd, "b.npy": ONES})
    with formats.open(write(tmp_path, data, "weights.npz")) as f:
        assert np.asarray(f["a"]).sum() == np.asarray(f["b"]).sum() == 3
        assert (f["odd"].type, f["odd"].shape) == (type, array.shape)
        assert len(odd) - 128 == f["odd"].nbytes
        with pytest.raises(UnsupportedError, match=f"tensor 'odd': .*{words}"):
            np.asarray(f["odd"])


def test_an_archive_cut_short_is_refused_at_every_byte(tmp_path: Path) -> None:
    for n in range(len(TWO)):
        with pytest.raises(FormatError, match=r"weights\.npz: "):
            formats.open(write(tmp_path, TWO[:n], "weights.npz"))


def test_savez_compressed_is_refused_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "weights.npz", a=np.ones(3))
    with pytest.raises(UnsupportedError, match="not savez_compressed"):
        formats.open(tmp_path / "weights.npz")


def test_other_archives_are_not_taken_for_arrays(tmp_path: Path) -> None:
    """PyTorch's files are ZIP archives too."""
    with pytest.raises(FormatError, match="like no format"):
        formats.open(write(tmp_path, ONE, "model.pt"))


def test_a_directory_that_memory_could_not_hold(tmp_path: Path) -> None:
    """The end says that a directory of 2 GB stands before it, in a sparse file."""
    path = tmp_path / "weights.npz"
    size = 2 << 30
    with path.open("wb") as out:
        out.write(b"PK\3\4")
        out.seek(size)
        out.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0))
    with pytest.raises(FormatError, match=f"a directory of {size} bytes"):
        formats.open(path)


# ---- fuzzing ----

TYPES = st.sampled_from(sorted(DTYPES.values())).map(np.dtype)
NAMES = st.from_regex(r"[a-zé/]{1,9}", fullmatch=True)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3)


def test_the_fuzzer_knows_every_type() -> None:
    assert set(DTYPES) == {name for name, element in ELEMENTS.items() if element.letter}


@examples
@given(st.dictionaries(NAMES, arrays.arrays(TYPES, SHAPES), max_size=4))
def test_what_numpy_writes_is_read(tmp_path: Path, values: dict[str, Any]) -> None:
    path = write(tmp_path, zipped({f"{name}.npy": saved(a) for name, a in values.items()}), "w.npz")
    with formats.open(path) as f:
        assert list(f) == list(values)
        for name, expected in values.items():
            found = f[name].__array__(copy=True)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()


@st.composite
def mutations(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with a few pieces overwritten, taken out, repeated or put in."""
    data = valid
    for _ in range(draw(st.integers(1, 3))):
        at, n = draw(st.integers(0, len(data))), draw(st.integers(0, 8))
        piece = draw(st.binary(max_size=4) | st.just(data[at : at + n]))
        if draw(st.booleans()):
            n = len(piece)  # no length changes
        data = data[:at] + piece + data[at + n :]
    return data


@examples
@given(mutations(saved(np.arange(6, dtype=np.float32).reshape(2, 3))))
def test_mutations_are_read_as_numpy_reads_them_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weights.npy"
    path.write_bytes(data)
    try:
        f = formats.open(path)
    except MmrtError as refused:
        assert str(path) in str(refused) and str(refused).isprintable()
        return
    with f:
        expected = np.load(path)
        assert np.asarray(f["weights"]).dtype == expected.dtype
        assert np.asarray(f["weights"]).tobytes() == expected.tobytes()


@examples
@given(mutations(TWO))
def test_mutated_archives_are_read_as_numpy_reads_them_or_refused(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(data)
    try:
        f = formats.open(path)
    except MmrtError as refused:
        assert str(path) in str(refused) and str(refused).isprintable()
        return
    with f, np.load(path) as reference:
        for name, tensor in f.items():
            try:
                expected = reference[name]
            except zipfile.BadZipFile as wrong:  # mmrt does not compare check sums
                assert "CRC" in str(wrong)
                continue
            assert np.asarray(tensor).tobytes() == expected.tobytes()
