"""What opening costs: an 18 GB file, of which only the header may be touched.

The file is sparse (its weights are holes), the header is real: run with -s to see the figures.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import make_gguf as make

from mmrt.mapping import Mapping

GIGABYTE = 10**9
N_LAYERS = 48
N_TOKENS = 128_000

# Opens the file in a fresh process and says what that took.
MEASURE = """
import json, resource, sys, time
import mmrt.formats
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
    try:
        with path.open("wb") as out:
            out.write(header)
            out.truncate(len(header) + N_LAYERS * step)
            os.fsync(out.fileno())
    except OSError as refused:
        pytest.skip(f"no sparse file of 18 GB here: {refused}")
    with Mapping(path) as mapping:
        mapping.advise("evict")
        if mapping.residency().resident:
            pytest.skip("this file system does not let pages go")
    return path, len(header)


def measure(path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout)
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
