"""What opening costs: files of up to 18 GB, of which only the headers may be touched.

They are sparse (their weights are holes), the headers are real: run with -s to see the figures.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import make_gguf as make
from machine import evict

GIGABYTE = 10**9
N_LAYERS = 48
N_TOKENS = 128_000

# Opens the file in a fresh process and says what that took.
MEASURE = """
import json, resource, sys, time, zipfile
import mmrt.files.formats
def counters():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    return usage.ru_majflt, usage.ru_minflt, int(io["read_bytes"]), time.perf_counter()
before = counters()
f = mmrt.formats.open(sys.argv[1])
after = counters()
residency = f.mappings[0].residency()
major, minor, read, seconds = (b - a for a, b in zip(before, after))
print(json.dumps({
    "ms": 1e3 * seconds, "major faults": major, "minor faults": minor, "bytes read": read,
    "bytes resident": residency.resident * f.mappings[0].page_size, "source": residency.source,
    "tensors": len(f), "last resident": residency.pages.rfind(1) * f.mappings[0].page_size,
}))
"""


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A GGUF of 18 GB in 18 * 10^9 / 48 bytes a layer, and the size of its header."""
    path = tmp_path_factory.mktemp("open-cost") / "big.gguf"
    rows = 18 * GIGABYTE // N_LAYERS // (8192 // 32 * 18)
    size = rows * (8192 // 32 * 18)
    step = -(-size // 32) * 32
    tensors = tuple(
        make.tensor(f"blk.{i}.ffn_up.weight", (8192, rows), make.Q4_0, i * step)
        for i in range(N_LAYERS)
    )
    tokens = b"".join(make.string(f"token{i}") for i in range(N_TOKENS))
    scores = struct.pack(f"<{N_TOKENS}f", *range(N_TOKENS))
    header = make.gguf(
        (
            make.ARCHITECTURE,
            make.entry("tokens", make.ARRAY, make.array(make.STRING, N_TOKENS, tokens)),
            make.entry("scores", make.ARRAY, make.array(make.FLOAT32, N_TOKENS, scores)),
        ),
        tensors,
    )
    write_sparse(path, {0: header}, len(header) + N_LAYERS * step)
    return path, len(header)


def write_sparse(path: Path, pieces: dict[int, bytes], size: int) -> None:
    """Writes `pieces` at their offsets, and lets go of all pages; skips the test if it cannot."""
    try:
        with path.open("wb") as out:
            for offset, piece in pieces.items():
                out.seek(offset)
                out.write(piece)
            out.truncate(size)
            os.fsync(out.fileno())
    except OSError as refused:
        pytest.skip(f"no sparse file of {size} bytes here: {refused}")
    evict(path)


def big_safetensors(path: Path) -> int:
    """48 tensors of 375 MB; gives back the bytes of the header."""
    size = 18 * GIGABYTE // N_LAYERS
    entries = {
        f"blk.{i}.weight": {
            "dtype": "BF16",
            "shape": [size // 2],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(N_LAYERS)
    }
    text = json.dumps(entries).encode()
    write_sparse(path, {0: struct.pack("<Q", len(text)) + text}, 8 + len(text) + N_LAYERS * size)
    return 8 + len(text)


def npy_header(elements: int) -> bytes:
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({elements},), }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def big_npy(path: Path) -> int:
    header = npy_header(9 * GIGABYTE)
    write_sparse(path, {0: header}, len(header) + 18 * GIGABYTE)
    return len(header)


def big_npz(path: Path) -> int:
    """Three members of 1 GB, whose headers lie that far apart."""
    pieces, directory, at = {}, b"", 0
    header = npy_header(GIGABYTE // 2)
    size = len(header) + GIGABYTE
    for name in (b"a.npy", b"b.npy", b"c.npy"):
        common = struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, size, size, len(name), 0)
        pieces[at] = b"PK\3\4" + common + name + header
        directory += b"PK\1\2\x14\0" + common + struct.pack("<3H2I", 0, 0, 0, 0, at) + name
        at += 30 + len(name) + size
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(directory), at, 0)
    pieces[at] = directory + end
    write_sparse(path, pieces, at + len(directory + end))
    return sum(map(len, pieces.values()))


def measure(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs /proc/self/io")
def test_opening_touches_only_the_header(big_file: tuple[Path, int]) -> None:
    path, header = big_file
    cold, warm = measure(path), measure(path)
    print(f"\n{path.stat().st_size / GIGABYTE:.1f} GB file, header of {header} bytes")
    for name, figures in (("cold", cold), ("warm", warm)):
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))

    assert cold["tensors"] == N_LAYERS and cold["source"] == "mincore"
    # The header, and less than one window of the parser's read-ahead (at most 1 MiB) beyond it.
    beyond = 1 << 20
    assert cold["bytes resident"] <= header + beyond
    assert cold["last resident"] <= header + beyond
    assert cold["bytes read"] <= header + beyond
    # One fault maps 16 pages that are there already, if all goes well.
    assert cold["major faults"] + cold["minor faults"] <= header // 4096 + 200
    assert warm["bytes read"] == 0 and warm["major faults"] == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs /proc/self/io")
@pytest.mark.parametrize(
    ("name", "make", "n_tensors"),
    [
        ("big.safetensors", big_safetensors, N_LAYERS),
        ("big.npy", big_npy, 1),
        ("big.npz", big_npz, 3),
    ],
)
def test_opening_other_formats_touches_only_headers(
    tmp_path: Path, name: str, make: Callable[[Path], int], n_tensors: int
) -> None:
    path = tmp_path / name
    header = make(path)
    cold = measure(path)
    print(f"\n{name}, {header} bytes of headers: {cold}")
    assert cold["tensors"] == n_tensors and cold["source"] == "mincore"
    beyond = 64 << 10  # a page or two at each place
    assert cold["bytes resident"] <= header + beyond
    assert cold["bytes read"] <= header + beyond
