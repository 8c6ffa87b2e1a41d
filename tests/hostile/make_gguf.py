"""Makes the small GGUF files of tests/hostile/gguf: valid ones, and ones that must be refused.

Remake them with `python tests/hostile/make_gguf.py`; a test holds that the files on disk are what
this script makes. They also seed the fuzzer (tests/c/fuzz_gguf.c). A new case is one line in
CASES: the file's name, its bytes, and what the error says of it (None: the file is valid).
"""

import struct
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "gguf"

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = (
    range(13)
)
F32, F16, Q4_0, Q4_K, BF16 = 0, 1, 2, 12, 30
HUGE = 2**64 - 1


class Case(NamedTuple):
    name: str
    data: bytes
    refusal: str | None  # a part of the message; None for a valid file
    unsupported: bool = False  # sound, but beyond this version: UnsupportedError, not FormatError


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data) if length is None else length) + data


def entry(key: str | bytes, value_type: int, value: bytes) -> bytes:
    return string(key) + u32(value_type) + value


def array(element_type: int, count: int, elements: bytes) -> bytes:
    return u32(element_type) + u64(count) + elements


def within(depth: int, value: bytes) -> bytes:
    """The array `value` in so many others, of one element each."""
    for _ in range(depth):
        value = array(ARRAY, 1, value)
    return value


def tensor(
    name: str | bytes, dims: tuple[int, ...] = (32,), type_: int = F32, offset: int = 0
) -> bytes:
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(type_) + u64(offset)


def gguf(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int | bytes = 0,
    *,
    magic: bytes = b"GGUF",
    version: bytes = u32(3),
    n_entries: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these parts, with `data` bytes after its header."""
    header = (
        magic
        + version
        + u64(len(tensors) if n_tensors is None else n_tensors)
        + u64(len(entries) if n_entries is None else n_entries)
        + b"".join(entries)
        + b"".join(tensors)
    )
    if tensors:
        header += bytes(-len(header) % alignment)
    return header + (bytes(i % 251 for i in range(data)) if isinstance(data, int) else data)


def every_value_type() -> tuple[bytes, ...]:
    """An entry of each value type, and an array of each."""
    values = {
        UINT8: b"\xff",
        INT8: b"\x80",
        UINT16: b"\xff\xff",
        INT16: b"\x00\x80",
        UINT32: b"\xff\xff\xff\xff",
        INT32: b"\x00\x00\x00\x80",
        FLOAT32: struct.pack("<f", 1.5),
        BOOL: b"\x01",
        STRING: string("naïve ☃"),
        UINT64: u64(HUGE),
        INT64: struct.pack("<q", -(2**63)),
        FLOAT64: struct.pack("<d", 0.1),
    }
    singles = [entry(f"one.{t}", t, value) for t, value in values.items()]
    arrays = [entry(f"two.{t}", ARRAY, array(t, 2, value * 2)) for t, value in values.items()]
    empty = entry("none", ARRAY, array(STRING, 0, b""))
    return (*singles, *arrays, empty)


ARCHITECTURE = entry("general.architecture", STRING, string("llama"))


def alignment_entry(value: int) -> bytes:
    return entry("general.alignment", UINT32, u32(value))


VALID = gguf(
    every_value_type(),
    (
        tensor("floats", (4, 2, 3), F32, 0),
        tensor("blocks", (256, 3), Q4_K, 96),
        tensor("halves", (5,), F16, 544),
        tensor("brains", (3, 2), BF16, 576),
    ),
    588,
)
ALIGNED = gguf(
    (ARCHITECTURE, alignment_entry(64)),
    (tensor("a", (2,), F32, 0), tensor("b", (2,), F32, 64)),
    72,
    alignment=64,
)

CASES = [
    Case("valid", VALID, None),
    Case("valid-version-2", gguf((ARCHITECTURE,), (tensor("a"),), 128, version=u32(2)), None),
    Case("valid-alignment-64", ALIGNED, None),
    Case("valid-nothing", gguf(), None),
    Case("valid-no-tensors", gguf((ARCHITECTURE,)), None),
    Case("valid-string-not-utf8", gguf((entry("a", STRING, string(b"\xff\xfe")),)), None),
    # What is cut off. A test cuts the valid file at every byte; these seed the fuzzer.
    *(
        Case(f"truncated-{n:04}", VALID[:n], "")
        for n in (1, 3, 6, 11, 20, 24, 30, 40, 100, 300, 600, 900, 1100, 1300, len(VALID) - 1)
    ),
    # The header.
    Case("magic", gguf(magic=b"GGML"), "magic at byte 0: found 47 47 4d 4c"),
    Case("magic-reversed", gguf(magic=b"FUGG"), "magic at byte 0: found 46 55 47 47"),
    Case("version-0", gguf(version=u32(0)), "version at byte 4: found 0, expected 2 or 3"),
    Case("version-1", gguf(version=u32(1)), "version at byte 4: found 1", True),
    Case("version-4", gguf(version=u32(4)), "version at byte 4: found 4", True),
    Case("big-endian", gguf(version=struct.pack(">I", 3)), "the file is big-endian", True),
    Case("tensor-count-huge", gguf(n_tensors=HUGE), "tensor count at byte 8: found 18446744073709"),
    Case("tensor-count-wraps", gguf(n_tensors=2**59), "tensor count at byte 8"),
    Case("tensor-count-plus-1", gguf((), (tensor("a"),), 128, n_tensors=2), "tensor 1"),
    Case("entry-count-huge", gguf(n_entries=HUGE), "metadata count at byte 16: found 18446744073"),
    Case("entry-count-wraps", gguf(n_entries=2**61), "metadata count at byte 16"),
    Case("entry-count-plus-1", gguf((ARCHITECTURE,), (), 32, n_entries=2), "metadata entry 1"),
    # Keys.
    Case(
        "key-length-huge",
        gguf((string("k", HUGE) + u32(UINT8) + b"\x00",), (), 8),
        "metadata entry 0 key at byte 24: found a length of 18446744073709551615",
    ),
    Case(
        "key-length-past-end",
        gguf((string("key", 64) + u32(UINT8) + b"\x00",)),
        "metadata entry 0 key at byte 24: found a length of 64, but only 8 bytes are left",
    ),
    Case("key-not-utf8", gguf((entry(b"k\xff", UINT8, b"\0"),), (), 8), "key at byte 32: found"),
    Case("key-overlong", gguf((entry(b"\xc0\xaf", UINT8, b"\0"),), (), 8), "not UTF-8"),
    Case("key-surrogate", gguf((entry(b"\xed\xa0\x80", UINT8, b"\0"),), (), 8), "not UTF-8"),
    Case("key-nul", gguf((entry(b"a\0b", UINT8, b"\0"),), (), 8), "not UTF-8 text without NUL"),
    Case(
        "key-twice",
        gguf((ARCHITECTURE, entry("a", UINT8, b"\0"), ARCHITECTURE)),
        "metadata entry 2 'general.architecture' key at byte 91: found that of metadata entry 0",
    ),
    # Values.
    Case(
        "value-type-13",
        gguf((entry("k", 13, u64(0)),)),
        "metadata entry 0 'k' value type at byte 33: found 13, expected 0 to 12",
    ),
    Case("value-type-huge", gguf((entry("k", 2**32 - 1, u64(0)),)), "value type at byte 33"),
    Case("string-length-huge", gguf((entry("k", STRING, u64(HUGE)),), (), 8), "string at byte 37"),
    Case("array-count-huge", gguf((entry("k", ARRAY, array(UINT8, HUGE, b"")),)), "element count"),
    Case(
        "array-count-wraps",
        gguf((entry("k", ARRAY, array(UINT64, 2**61 + 1, u64(0))),)),
        "element count at byte 41: found 2305843009213693953, but the bytes left hold 1 at most",
    ),
    Case(
        "array-string-past-end",
        gguf((entry("k", ARRAY, array(STRING, 2, string("a") + u64(9))),), (), 8),
        "string in array at byte 58: found a length of 9, but only 8 bytes are left",
    ),
    Case(
        "array-of-arrays",
        gguf((entry("k", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"\0"))),)),
        None,
    ),
    Case(
        "array-of-arrays-count",
        gguf((entry("k", ARRAY, array(ARRAY, 2, array(UINT8, 1, b"\0"))),)),
        "element count at byte 41: found 2, but the bytes left hold 1 at most",
    ),
    Case(
        "array-within-seventeen",
        gguf((entry("k", ARRAY, within(17, array(UINT8, 1, b"\0"))),)),
        "element type at byte 229: found an array within more than 16 others",
        True,
    ),
    Case(
        "array-of-unknown", gguf((entry("k", ARRAY, array(77, 1, u64(0))),)), "element type at byte"
    ),
    # Alignment.
    *(
        Case(
            f"alignment-{value}",
            gguf((alignment_entry(value),)),
            f"'general.alignment' value at byte 53: found {value}, expected a power of two",
        )
        for value in (0, 3, 4, 2**31)
    ),
    Case(
        "alignment-uint64",
        gguf((entry("general.alignment", UINT64, u64(32)),)),
        "'general.alignment' value at byte 53: found a value of type uint64, expected uint32",
    ),
    # Tensors.
    Case(
        "name-twice",
        gguf((), (tensor("a"), tensor("b", offset=128), tensor("a", offset=256)), 384),
        "tensor 2 'a' name at byte 98: found that of tensor 0",
    ),
    Case("name-not-utf8", gguf((), (tensor(b"\xe2\x82"),), 128), "tensor 0 name at byte 32"),
    Case("name-length-huge", gguf((), (u64(HUGE) + tensor("a"),), 128), "tensor 0 name at byte 24"),
    Case("dimensions-0", gguf((), (tensor("a", ()),), 128), None),
    Case("dimensions-5", gguf((), (tensor("a", (32, 1, 1, 1, 1)),), 128), None),
    Case(
        "dimensions-65",
        gguf((), (tensor("a", (32, *[1] * 64)),), 128),
        "tensor 0 'a' dimension count at byte 33: found 65, expected 64 at most",
    ),
    Case("dimension-zero", gguf((), (tensor("a", (32, 0)),), 128), None),
    Case("dimension-huge", gguf((), (tensor("a", (HUGE,)),), 128), "dimensions at byte 37"),
    Case(
        "dimensions-overflow",
        gguf((), (tensor("a", (2**32, 2**16, 2**16)),), 128),
        "dimensions at byte 37: their product passes 2^64 bytes",
    ),
    Case(
        "dimensions-wrap-to-few",
        gguf((), (tensor("a", (2**31, 2**31 + 1)),), 128),
        "dimensions at byte 37: their product passes 2^64 bytes",
    ),
    Case(
        "row-not-whole-blocks",
        gguf((), (tensor("a", (33, 2), Q4_0),), 128),
        "dimension 0 at byte 37: found rows of 33 elements, expected a multiple of the block of 32",
    ),
    Case("type-unknown", gguf((), (tensor("a", (32,), 99),), 128), None),
    Case("type-gap", gguf((), (tensor("a", (32,), 4),), 128), None),
    Case("type-huge", gguf((), (tensor("a", (32,), 2**31),), 128), None),
    Case(
        "offset-misaligned",
        gguf((), (tensor("a", offset=16),), 256),
        "tensor 0 'a' offset at byte 49: found 16, expected a multiple of the alignment, 32",
    ),
    Case(
        "offset-misaligned-64",
        gguf((alignment_entry(64),), (tensor("a", offset=32),), 256, alignment=64),
        "expected a multiple of the alignment, 64",
    ),
    Case(
        "offset-past-end",
        gguf((), (tensor("a", offset=32),), 128),
        "tensor 0 'a' offset at byte 49: its 128 bytes from 32 pass the end of the file",
    ),
    Case(
        "offset-huge", gguf((), (tensor("a", offset=2**64 - 32),), 128), "pass the end of the file"
    ),
    Case("offset-wraps", gguf((), (tensor("a", offset=2**64 - 128),), 128), "pass the end of the"),
    Case(
        "overlap",
        gguf((), (tensor("a", offset=96), tensor("b", offset=0)), 256),
        "tensor 0 'a' offset at byte 49: its data overlaps that of tensor 1",
    ),
    Case("overlap-same", gguf((), (tensor("a"), tensor("b")), 128), "overlaps that of tensor"),
    # Not GGUF at all.
    Case("text", b"version https://git-lfs.github.com/spec/v1\n", "magic at byte 0"),
    Case("zeros", bytes(64), "magic at byte 0: found 00 00 00 00"),
]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.gguf"):
        old.unlink()
    for case in CASES:
        (FOLDER / f"{case.name}.gguf").write_bytes(case.data)
    print(f"{len(CASES)} files, {sum(len(case.data) for case in CASES)} bytes in {FOLDER}")


if __name__ == "__main__":
    main()
