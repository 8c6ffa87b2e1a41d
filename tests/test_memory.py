"""Zero copy: a model takes no memory of its own for weights, and of its file only what it reads.

Each figure is taken in a fresh process, as the kernel counts whole processes.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from command import HOME, STORY

import mmrt
from mmrt.memory.report import Memory
from mmrt.memory.sizes import human

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs /proc")

PAGE = os.sysconf("SC_PAGE_SIZE")

# Allowed beyond what a model states: Python, NumPy, the vocabulary and the logits.
ALLOWANCE = 32_000_000

# A fault maps what is cached of the 64 KiB around it (fault_around_bytes), in kernels of today.
AROUND = 65536

GENERATE = """
import json, sys
import mmrt

def numbers(path):
    lines = (line.partition(":") for line in open(path))
    return {key: int(value.split()[0]) * 1024 for key, _, value in lines if value.endswith("kB\\n")}

path, prompt, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
with mmrt.Model(path) as model, model.sequence() as sequence:
    pieces = list(model.stream(prompt, max_tokens=n, sequence=sequence))
    memory, status = model.memory, numbers("/proc/self/status")
    mapping = model.file.mappings[0]
    mapped = {"Rss": 0, "Anonymous": 0, "Private_Dirty": 0, "Swap": 0}
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            ours = line.rstrip().endswith(path)
        elif ours and words[0][:-1] in mapped:
            mapped[words[0][:-1]] += int(words[1]) * 1024
    print(json.dumps({
        "tokens": sum(piece.token is not None for piece in pieces),
        "read": len(sequence), "kv": memory.kv, "scratch": memory.scratch,
        "weights": memory.weights, "anonymous": status["RssAnon"], "mapped": mapped,
    }))
"""


def generated(path: Path, n_tokens: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, path.resolve(), STORY, str(n_tokens)],
        cwd=HOME, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def extents(path: Path, names: set[str] | None = None) -> list[tuple[int, int]]:
    """First and end byte of the header, and of the tensors of these names (None: all)."""
    with mmrt.open(path) as file:
        tensors = [t for name, t in file.items() if names is None or name in names]
        header = min(tensor.offset for tensor in file.values())
        return [(0, header)] + [(t.offset, t.offset + t.nbytes) for t in tensors]


def pages(extents: list[tuple[int, int]], unit: int) -> int:
    """Bytes of the pages that they touch, in pages of `unit` bytes."""
    touched: set[int] = set()
    for first, end in extents:
        touched.update(range(first // unit, -(-end // unit)))
    return len(touched) * unit


@pytest.mark.slow
def test_a_real_model_copies_none_of_its_weights(real_path: Path) -> None:
    found = generated(real_path, 72)
    assert found["tokens"] >= 64 and found["read"] > 64
    excess = found["anonymous"] - found["kv"] - found["scratch"]
    print(
        f"\n{real_path.name}: anonymous {found['anonymous'] / 1e6:.1f} MB, keys and values "
        f"{found['kv'] / 1e6:.1f} MB, scratch {found['scratch'] / 1e6:.1f} MB, beyond these "
        f"{excess / 1e6:.1f} MB; mapped {found['mapped']['Rss'] / 1e6:.1f} MB"
    )
    assert excess < ALLOWANCE
    mapped = found["mapped"]
    assert mapped["Anonymous"] == mapped["Private_Dirty"] == 0
    # Every weight is read, and the header.
    least, most = pages(extents(real_path), PAGE), pages(extents(real_path), AROUND)
    assert least <= mapped["Rss"] <= most


def test_only_what_is_read_comes_into_memory(tmp_path: Path) -> None:
    """Of a file whose tensors lie apart, between those of a tower for images."""
    model = tiny_models.llama(n_embd=256, n_ff=512, n_layers=3)
    unread = tiny_models.floats(np.random.default_rng(0), 500_000)
    tensors = dict(model.tensors)
    model.tensors.clear()
    for i, (name, blocks) in enumerate(tensors.items()):
        model.tensors |= {f"v.{i}": unread, name: blocks}
    path = model.write(tmp_path / "apart.gguf")
    found = generated(path, 40)
    weights = extents(path, set(tensors))
    assert found["weights"] == sum(blocks.data.nbytes for blocks in tensors.values())
    assert pages(weights, PAGE) <= found["mapped"]["Rss"] <= pages(weights, AROUND)
    assert found["mapped"]["Rss"] < path.stat().st_size // 4
    assert found["mapped"]["Anonymous"] == 0


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    path = tiny_models.llama(n_embd=512, n_ff=2048, n_layers=4).write(tmp_path / "model.gguf")
    script = """
import sys, mmrt
with mmrt.Model(sys.argv[1]) as model:
    model.tokenizer
    print(str(model.program)[:1])
    ours = False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            ours = line.rstrip().endswith(sys.argv[1])
        elif ours and words[0] == "Rss:":
            print(int(words[1]) * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path], cwd=HOME, capture_output=True, text=True, check=True
    )
    header = extents(path, set())
    assert int(done.stdout.split()[-1]) <= pages(header, AROUND) + AROUND
    assert path.stat().st_size > 20 * pages(header, AROUND)


def test_what_is_stated_is_what_is_taken(tmp_path: Path) -> None:
    """Keys and values: the process grows by what model.memory says, and shrinks again."""
    shape = {"n_layers": 2, "n_kv_heads": 4, "head_dim": 64, "context": 6000}
    path = tiny_models.llama(**shape).write(tmp_path / "model.gguf")
    script = """
import sys, mmrt
def anonymous():
    return [int(l.split()[1]) * 1024 for l in open("/proc/self/status") if "RssAnon" in l][0]
with mmrt.Model(sys.argv[1]) as model, model.sequence() as sequence:
    sequence.extend([5] * 1000)
    before, stated = anonymous(), model.memory.kv
    sequence.extend([5] * 4800)
    print(anonymous() - before, model.memory.kv - stated)
    sequence.truncate(1000)
    print(anonymous() - before, model.memory.kv - stated)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path], cwd=HOME, capture_output=True, text=True, check=True
    )
    grown, stated, left, none = map(int, done.stdout.split())
    assert stated == 4800 // 32 * 2 * 4 * 64 * 2 * 2 * 32 and none == 0
    assert abs(grown - stated) < 2 << 20 and abs(left) < 2 << 20


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.00 KiB"), (1610612736, "1.50 GiB")],
)
def test_sizes_for_people(n_bytes: int, expected: str) -> None:
    assert human(n_bytes) == expected


def test_a_memory_in_words() -> None:
    memory = Memory(weights=1 << 20, kept=1 << 20, kv=0, kv_logical=0, kv_page=4096, scratch=2048)
    assert memory.anonymous == 2048
    assert re.fullmatch(r"weights 1.00 MiB mapped; keys and values 0 bytes, .*", str(memory))
