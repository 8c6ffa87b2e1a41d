"""GGUF files: against gguf-py on real models, hostile ones, truncated ones, and split ones."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import make_gguf as make

from mmrt import formats
from mmrt.core.gguf import Beginning, Header, Metadata
from mmrt.core.mapping import Mapping
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError, FileError, FormatError, UnsupportedError

HOSTILE = [case for case in make.CASES if case.refusal is not None]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ---- real models ----


@pytest.mark.slow
def test_a_model_reads_as_gguf_py_reads_it(real_path: Path) -> None:
    reference = pytest.importorskip("gguf").GGUFReader(real_path)
    with formats.open(real_path) as f:
        fields = {k: v for k, v in reference.fields.items() if not k.startswith("GGUF.")}
        assert list(f.metadata) == list(fields)
        for key, field in fields.items():
            assert f.metadata[key] == field.contents(), key

        assert list(f) == [tensor.name for tensor in reference.tensors]
        for tensor in reference.tensors:
            ours = f[tensor.name]
            assert ours.type == tensor.tensor_type.name
            assert ours.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert (ours.offset, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert np.array_equal(ours.blocks(), tensor.data.view(np.uint8))


def test_metadata_is_decoded_anew_and_not_kept(real_path: Path) -> None:
    with formats.open(real_path) as f:
        tokens = f.metadata["tokenizer.ggml.tokens"]
        assert sys.getrefcount(tokens) == 2
        assert f.metadata["tokenizer.ggml.tokens"] is not tokens
        assert "tokenizer.ggml.tokens" in f.metadata and "no.such.key" not in f.metadata
        assert f.metadata.get("no.such.key", 7) == 7
        assert repr(f.metadata) == f"<Metadata of {str(real_path)!r}, {len(f.metadata)} keys>"


# ---- every value type, and every tensor type that a view has its own way with ----


def test_values_of_every_type(tmp_path: Path) -> None:
    with formats.open(write(tmp_path, "valid.gguf", make.VALID)) as f:
        values = [255, -128, 65535, -32768, 2**32 - 1, -(2**31), 1.5, True, "naïve ☃"]
        values += [2**64 - 1, -(2**63), 0.1]
        numbers = [n for n in range(13) if n != make.ARRAY]
        for number, value in zip(numbers, values, strict=True):
            assert f.metadata[f"one.{number}"] == value
            assert type(f.metadata[f"one.{number}"]) is type(value)
            assert f.metadata[f"two.{number}"] == [value, value]
        assert f.metadata["none"] == []
        assert {name: (t.type, t.shape) for name, t in f.items()} == {
            "floats": ("F32", (3, 2, 4)),
            "blocks": ("Q4_K", (3, 256)),
            "halves": ("F16", (5,)),
            "brains": ("BF16", (2, 3)),
        }


def test_a_header_knows_its_version_and_size(tmp_path: Path) -> None:
    path = write(tmp_path, "two.gguf", make.gguf(version=make.u32(2)))
    with Mapping(path) as mapping:
        header = Header(mapping)
        assert (header.version, header.size) == (2, 24)
        with pytest.raises(IndexError):
            header.value(0)


def test_strings_that_are_not_utf8_are_shown_as_such(tmp_path: Path) -> None:
    data = make.gguf((make.entry("a", make.STRING, make.string(b"\xffok")),))
    with formats.open(write(tmp_path, "bad.gguf", data)) as f:
        assert f.metadata["a"] == "\N{REPLACEMENT CHARACTER}ok"


def test_metadata_ends_with_the_file(tmp_path: Path) -> None:
    f = formats.open(write(tmp_path, "valid.gguf", make.VALID))
    f.close()
    assert f.closed and "closed" in repr(f)
    with pytest.raises(ArgumentError, match="is closed"):
        f.metadata["one.0"]


def test_a_header_that_changes_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    data = make.gguf((make.entry("a", make.STRING, make.string("text")),))
    path = write(tmp_path, "changing.gguf", data)
    with formats.open(path) as f:
        with path.open("r+b") as out:
            out.seek(24 + 8 + 1 + 4)
            out.write(make.u64(2**40))
        with pytest.raises(FormatError, match="changed while it was open"):
            f.metadata["a"]


# ---- oddities that close no file ----


def test_a_tensor_without_elements_or_dimensions(tmp_path: Path) -> None:
    tensors = (
        make.tensor("before", (0,)),  # where the next one begins
        make.tensor("a", (32,)),
        make.tensor("mark", (3, 0, 5), offset=2**40),  # has no place, so that any will do
        make.tensor("scalar", (), offset=128),
    )
    data = np.arange(32, dtype=np.float32).tobytes() + np.float32(7).tobytes()
    with formats.open(write(tmp_path, "odd.gguf", make.gguf((), tensors, data))) as f:
        assert (f["mark"].shape, f["mark"].nbytes) == ((5, 0, 3), 0)
        assert np.asarray(f["mark"]).shape == (5, 0, 3)
        assert f["mark"].dequantize().size == f["before"].dequantize().size == 0
        assert np.array_equal(np.asarray(f["a"]), np.arange(32))
        assert f["scalar"].shape == () and f["scalar"].dequantize() == 7
        assert f["mark"].residency().total == 0


@pytest.mark.parametrize(
    ("number", "whose"),
    [(4, "given up"), (43, "later ggml"), (99, "ik_llama"), (157, "ik_llama"), (2**31, "type, 2")],
)
def test_a_type_that_is_unknown_is_said_by_its_tensor(
    tmp_path: Path, number: int, whose: str
) -> None:
    tensors = (
        make.tensor("a", (8, 2)),
        make.tensor("odd", (40,), number, 64),
        make.tensor("b", (8,), offset=128),
    )
    path = write(tmp_path, "odd.gguf", make.gguf((), tensors, np.ones(40, np.float32).tobytes()))
    with formats.open(path) as f:
        assert np.asarray(f["a"]).sum() == 16 and np.asarray(f["b"]).sum() == 8
        odd = f["odd"]
        assert (odd.type, odd.shape, odd.nbytes) == (f"type {number}", (40,), 64)
        assert f.residency().tensors["odd"].total == 1
        for use in (
            np.asarray, memoryview, Tensor.dequantize, np.from_dlpack,
            lambda t: t @ np.ones(40), lambda t: t.quantize("Q8_0"),
            lambda t: pickle.loads(pickle.dumps(t)).dequantize(),
        ):  # fmt: skip
            with pytest.raises(UnsupportedError, match=f"tensor 'odd': .*{number}") as caught:
                use(odd)
            assert whose in str(caught.value)


def test_tensors_of_many_dimensions(tmp_path: Path) -> None:
    tensors = (
        make.tensor("six", (4, 1, 2, 1, 1, 3)),
        make.tensor("none", (4, 1, 2, 1, 1, 1, 0), offset=2**40),
        make.tensor("nine", (*[1] * 8, 8), offset=96),
        make.tensor("strange", (8, *[1] * 63), 99, offset=128),
        make.tensor("last", (8,), offset=160),
    )
    data = np.arange(48, dtype=np.float32).tobytes()
    with formats.open(write(tmp_path, "odd.gguf", make.gguf((), tensors, data))) as f:
        assert (f["six"].shape, f["six"].nbytes) == ((3, 1, 1, 2, 1, 4), 96)
        expected = np.arange(24).reshape(3, 1, 1, 2, 1, 4)
        assert np.array_equal(np.asarray(f["six"]), expected)
        assert np.array_equal(f["six"][1].dequantize(), expected[1])
        assert (f["none"].shape, f["none"].nbytes) == ((0, 1, 1, 1, 2, 1, 4), 0)
        assert (f["nine"].type, f["nine"].shape, f["nine"].nbytes) == ("F32", (8, *[1] * 8), 32)
        assert (f["strange"].type, f["strange"].shape) == ("type 99", (*[1] * 63, 8))
        assert np.array_equal(np.asarray(f["last"]), np.arange(40, 48))
        for name, n in (("nine", 9), ("strange", 64)):
            for use in (np.asarray, Tensor.dequantize, lambda t: t @ np.ones(8), Tensor.blocks):
                with pytest.raises(UnsupportedError, match=f"'{name}': it has {n} dimensions"):
                    use(f[name])


def test_arrays_of_arrays(tmp_path: Path) -> None:
    words = make.array(make.STRING, 2, make.string("a") + make.string("naïve"))
    none = make.array(make.ARRAY, 0, b"")
    mixed = make.array(make.ARRAY, 3, make.array(make.UINT8, 2, b"\1\2") + words + none)
    entries = (
        make.entry("mixed", make.ARRAY, mixed),
        make.entry("deep", make.ARRAY, make.within(16, make.array(make.BOOL, 1, b"\1"))),
        make.entry("after", make.UINT8, b"\5"),
    )
    with formats.open(write(tmp_path, "odd.gguf", make.gguf(entries))) as f:
        assert f.metadata["mixed"] == [[1, 2], ["a", "naïve"], []]
        value = f.metadata["deep"]
        for _ in range(16):
            [value] = value
        assert value == [True] and f.metadata["after"] == 5


def test_only_the_beginning_of_a_list_is_decoded(tmp_path: Path) -> None:
    inner = make.array(make.UINT16, 3, b"\1\0\2\0\3\0")
    entries = (
        make.entry("words", make.ARRAY, make.array(make.STRING, 3, make.string("a") * 3)),
        make.entry("lists", make.ARRAY, make.array(make.ARRAY, 2, inner * 2)),
    )
    with formats.open(write(tmp_path, "long.gguf", make.gguf(entries))) as f:
        metadata = f.metadata
        assert isinstance(metadata, Metadata)
        assert metadata.beginning("words", 2) == Beginning(3, ["a", "a"])
        assert metadata.beginning("words", 3) == ["a", "a", "a"]
        assert metadata.beginning("lists", 2) == [Beginning(3, [1, 2]), Beginning(3, [1, 2])]


# ---- hostile files ----


def test_the_corpus_is_what_its_script_makes() -> None:
    on_disk = {path.stem: path.read_bytes() for path in make.FOLDER.glob("*.gguf")}
    assert on_disk == {case.name: case.data for case in make.CASES}
    assert sum(map(len, on_disk.values())) < 150_000


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_a_hostile_file_is_refused_by_name(case: make.Case) -> None:
    path = make.FOLDER / f"{case.name}.gguf"
    expected = UnsupportedError if case.unsupported else FormatError
    with Mapping(path) as mapping, pytest.raises(expected) as caught:
        Header(mapping)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and " at byte " in message and "\n" not in message
    assert case.refusal is not None and case.refusal in message
    with pytest.raises((FormatError, UnsupportedError), match=path.name):
        formats.open(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for size in range(1, len(make.VALID)):
        path.write_bytes(make.VALID[:size])
        with pytest.raises(FormatError, match=r"cut\.gguf: "):
            formats.open(path)


def test_a_name_cannot_break_the_line_of_a_message(tmp_path: Path) -> None:
    data = make.gguf((), (make.tensor("a\nb\x1b[31m" + "x" * 500, (33,), make.Q4_0),), 128)
    with pytest.raises(FormatError) as caught:
        formats.open(write(tmp_path, "name.gguf", data))
    assert "tensor 0 'a?b?[31mxxx" in str(caught.value) and len(str(caught.value)) < 400


def test_many_names_take_no_quadratic_time(tmp_path: Path) -> None:
    entries = tuple(make.entry(f"{i:06}", make.UINT8, b"\0") for i in range(100_000))
    with formats.open(write(tmp_path, "many.gguf", make.gguf(entries))) as f:
        assert len(f.metadata) == 100_000
    with pytest.raises(FormatError, match="metadata entry 100000 '000042' key"):
        formats.open(write(tmp_path, "twice.gguf", make.gguf((*entries, entries[42]))))


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"zip: it begins with b'PK.*like no format.*GGUF"):
        formats.open(write(tmp_path, "weights.zip", b"PK\3\4" + bytes(30)))
    with pytest.raises(FormatError, match="Git LFS pointer"):
        formats.open(make.FOLDER / "text.gguf")
    with pytest.raises(FileError, match="missing"):
        formats.open(tmp_path / "missing.gguf")


# ---- files as mappings of names ----


def test_a_missing_name_suggests_near_ones(tmp_path: Path) -> None:
    with formats.open(write(tmp_path, "valid.gguf", make.VALID)) as f:
        with pytest.raises(KeyError, match="did you mean 'blocks'"):
            f["block"]
        with pytest.raises(KeyError, match=r"has no tensor 'zzzzzzzz'$"):
            f["zzzzzzzz"]
        assert "blocks" in f and "block" not in f and f.get("block") is None
        assert len(f) == 4 and f.nbytes == 96 + 432 + 10 + 12
        assert repr(f) == f"<GGUF file {f.path!r}, 4 tensors, 550 bytes>"


def test_a_file_pickles_as_its_path(tmp_path: Path) -> None:
    with formats.open(write(tmp_path, "valid.gguf", make.VALID)) as f:
        copy, tensor = pickle.loads(pickle.dumps((f, f["blocks"])))
        assert list(copy) == list(f) and copy.metadata["one.0"] == 255
        copy.close()  # a tensor that came by itself does not depend on it
        assert tensor.blocks().tobytes() == f["blocks"].blocks().tobytes()


# ---- models in parts ----


def part(number: int, count: int, total: int, *tensors: str, extra: bytes = b"") -> bytes:
    entries = [
        make.entry("split.no", make.UINT16, number.to_bytes(2, "little")),
        make.entry("split.count", make.UINT16, count.to_bytes(2, "little")),
        make.entry("split.tensors.count", make.INT32, make.u32(total)),
    ]
    if number == 0:
        entries.append(make.ARCHITECTURE)
    records = tuple(make.tensor(name, offset=128 * i) for i, name in enumerate(tensors))
    return make.gguf(tuple(entries), records, bytes([number]) * 128 * len(tensors))


def write_parts(folder: Path, *parts: bytes, count: int | None = None) -> list[Path]:
    count = count or len(parts)
    return [
        write(folder, f"model-{i:05}-of-{count:05}.gguf", data) for i, data in enumerate(parts, 1)
    ]


def test_any_part_opens_all(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, part(0, 3, 4, "a", "b"), part(1, 3, 4, "c"), part(2, 3, 4, "d"))
    for path in paths:
        with formats.open(path) as f:
            assert f.paths == tuple(map(str, paths)) and f.path == str(paths[0])
            assert list(f) == ["a", "b", "c", "d"]
            assert f.metadata["general.architecture"] == "llama"
            assert [memoryview(f[name]).tobytes()[0] for name in f] == [0, 0, 1, 2]
            view = memoryview(f["d"])
            with pytest.raises(BufferError):
                f.close()
            assert not any(mapping.closed for mapping in f.mappings)
            view.release()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, part(0, 2, 2, "a"), part(1, 2, 2, "b"))
    paths[1].unlink()
    with pytest.raises(FileError, match=r"model-00002-of-00002.gguf is missing: part 2 of 2"):
        formats.open(paths[0])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((part(0, 2, 2, "a"), part(1, 3, 2, "b")), r"00002-of-00002.gguf: split.count is 3"),
        ((part(0, 2, 2, "a"), part(0, 2, 2, "b")), r"00002-of-00002.gguf: split.no is 0"),
        ((part(1, 2, 2, "a"), part(1, 2, 2, "b")), r"00001-of-00002.gguf: split.no is 1"),
        ((part(0, 2, 2, "a"), make.gguf()), r"00002-of-00002.gguf: split.count is None"),
        ((part(0, 2, 3, "a"), part(1, 2, 3, "b")), r"split.tensors.count is 3.*hold 2 tensors"),
        ((part(0, 2, 2, "a"), part(1, 2, 2, "a")), r"tensor 'a' is in .*00001-of-00002.gguf too"),
    ],
)
def test_parts_that_do_not_belong_together(
    tmp_path: Path, parts: tuple[bytes, ...], words: str
) -> None:
    paths = write_parts(tmp_path, *parts)
    with pytest.raises(FormatError, match=words):
        formats.open(paths[0])


def test_a_part_under_another_name_says_what_it_needs(tmp_path: Path) -> None:
    path = write(tmp_path, "renamed.gguf", part(0, 2, 2, "a"))
    with pytest.raises(FormatError, match="has to end in -00001-of-00002"):
        formats.open(path)


def test_refused_files_are_unmapped(tmp_path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    paths = write_parts(tmp_path, part(0, 2, 2, "a"), part(1, 2, 2, "a"))
    for _ in range(3):
        with pytest.raises(FormatError):
            formats.open(paths[0])
        with pytest.raises(FormatError):
            formats.open(write(tmp_path, "cut.gguf", make.VALID[:100]))
    assert mapped() == 0
