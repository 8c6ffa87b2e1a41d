"""How fast a disk reads pieces of each size, by how many are asked for at once:
`python -m bench.disk FILE`, a file of several GB on that disk.

Pieces lie all over the file and are read past the page cache (O_DIRECT), by as many threads as are
to be in flight, into memory of their own. Figures are medians of rounds. From them follows how
few of a layer's neurons a token may ask for that reading these alone beats reading all in order:
a neuron is a row of `up` and a column of `down` side by side (and a row of `gate`, where there is
one), read in whole blocks of 4 KiB.
"""

import argparse
import json
import os
import platform
import random
import statistics
import threading
import time
from contextlib import suppress
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

import mmrt
from bench.limits import markdown

KIB = 1 << 10
SIZES = [4 * KIB << i for i in range(11)]  # to 4 MiB
DEPTHS = [1, 4, 8, 32, 128]
BITS = {"16": 16.0, "8 (Q8_0)": 8.5, "4 (Q4_0)": 4.5}


def speed(file: int, n_bytes: int, piece: int, depth: int, seconds: float) -> float:
    """Bytes a second."""
    counts, started, stop = [0] * depth, threading.Barrier(depth + 1), threading.Event()

    def read(number: int) -> None:
        draw = random.Random(number * 7919 + time.monotonic_ns())
        with mmap(-1, piece, MAP_PRIVATE | MAP_ANONYMOUS) as buffer:
            with suppress(OSError):  # a kernel without huge pages, which take less to be filled
                buffer.madvise(MADV_HUGEPAGE)
            buffer.write(bytes(piece))
            into, places, done = [buffer], n_bytes // piece, 0
            started.wait()
            while not stop.is_set():
                os.preadv(file, into, draw.randrange(places) * piece)
                done += 1
            counts[number] = done

    threads = [threading.Thread(target=read, args=(i,)) for i in range(depth)]
    for thread in threads:
        thread.start()
    started.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) * piece / (time.perf_counter() - began)


def measure(path: str, rounds: int, seconds: float) -> dict[int, dict[int, float]]:
    """[bytes of a piece][depth]: medians."""
    file, n_bytes = os.open(path, os.O_RDONLY | os.O_DIRECT), os.path.getsize(path)
    pairs = [(size, depth) for size in SIZES for depth in DEPTHS]
    found: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for number in range(rounds):
        for pair in random.Random(number).sample(pairs, len(pairs)):
            found[pair].append(speed(file, n_bytes, *pair, seconds))
    os.close(file)
    return {
        size: {depth: statistics.median(found[size, depth]) for depth in DEPTHS} for size in SIZES
    }


def break_even(found: dict[int, dict[int, float]], width: int, bits: float, gated: bool) -> float:
    """What part of the neurons may be read that this takes as long as reading all in order."""
    needed = width * (3 if gated else 2) * bits / 8
    blocks = 4 * KIB * -(-int(needed) // (4 * KIB))
    best = {size: max(by_depth.values()) for size, by_depth in found.items()}
    smaller = max((size for size in SIZES if size <= blocks), default=SIZES[0])
    larger = min((size for size in SIZES if size >= blocks), default=SIZES[-1])
    part = (blocks - smaller) / (larger - smaller) if larger > smaller else 0.0
    seconds = blocks / (best[smaller] + part * (best[larger] - best[smaller]))
    return needed / max(best.values()) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.disk", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="of several GB, on the disk to be measured")
    parser.add_argument("-r", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for a figure (default 0.3)")
    parser.add_argument("-o", type=Path, help="also write the figures as JSON to this file")
    a = parser.parse_args()
    cpu = mmrt.cpu_info()
    load = os.getloadavg()[0]
    found = measure(a.file, a.r, a.seconds)
    print(f"{cpu.model}, {cpu.cpus} CPUs, load {load:.1f}; median of {a.r}, GB/s\n")
    head = ("piece", *(f"{depth} at once" for depth in DEPTHS))
    rows = [
        (f"{size // KIB} KiB", *(f"{found[size][depth] / 1e9:.2f}" for depth in DEPTHS))
        for size in SIZES
    ]
    print(markdown([head, *rows]))
    print("\nneurons that a token may read, at most, that this beats reading all in order:\n")
    widths = (2048, 4096, 8192)
    names = [f"{width}{', gated' if gated else ''}" for width in widths for gated in (False, True)]
    parts = [
        (name, *(f"{break_even(found, w, bits, g):.0%}" for w in widths for g in (False, True)))
        for name, bits in BITS.items()
    ]
    print(markdown([("bits", *names), *parts]))
    if a.o:
        document = {
            "machine": {"cpu": cpu.model, "cpus": cpu.cpus, "system": platform.platform()},
            "load": load,
            "rounds": a.r,
            "bytes_a_second": found,
        }
        a.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
