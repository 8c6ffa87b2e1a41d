"""One runtime that reads tokens 0, 1, 2 and so on, which bench.experts starts under a limit on
memory: `python -m bench.routed ENGINE MODEL.gguf WARM TOKENS SECONDS THREADS TRACE` prints JSON.

It stops after so many seconds, too. Between its tokens, now and then, it writes an empty line and
waits for one, so that the disk can be measured. TRACE receives our choices of experts.
"""

import json
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.limited import ENGINES
from bench.llama import llama_cpp
from mmrt import counters
from mmrt.sight import routing

_BETWEEN = 32  # tokens from one measurement of the disk to the next


def _read(first: int, n: int, until: float, read: Callable[[int], object]) -> list[float]:
    """Seconds of each token from `first` on: n, or as many as there is time for, but one."""
    seconds: list[float] = []
    while len(seconds) < n and (not seconds or time.monotonic() < until):
        began = time.perf_counter()
        read(first + len(seconds))
        seconds.append(time.perf_counter() - began)
        if len(seconds) % _BETWEEN == 0:
            print(flush=True)
            sys.stdin.readline()
    return seconds


def ours(path: str, warm: int, n: int, limit: float, threads: int, trace: str) -> dict[str, Any]:
    import mmrt

    sums = []
    with (
        mmrt.Model(path, threads=threads) as model,
        model.sequence() as sequence,
        routing.recording(model) as recorder,
    ):

        def read(token: int) -> None:
            # Sums of the logits' very bits: whatever is sampled, the same tokens follow.
            sums.append(zlib.crc32(sequence.extend([token]).tobytes()))

        until = time.monotonic() + limit
        warmed = len(_read(0, warm, until, read))
        before, reads = model.streaming, counters.reads()
        seconds = _read(warmed, n, until, read)
        after, done = model.streaming, counters.reads() - reads
        found = {
            "version": f"{mmrt.__version__} {model.isa}",
            "warm": warmed,
            "seconds": seconds,
            "process_read": done.read_bytes or 0,
            "answers": sums,
        }
        if before and after:
            since = after - before
            slots = {stats.slot_bytes: stats.slots for _, stats in model.program.demand}
            found |= {
                "reader": after.reader,
                "kept": after.kept,
                "slots": sorted(slots.items()),
                "wanted": since.experts.wanted,
                "found": since.experts.found,
                "experts_read": since.experts.read,
                "read": since.read,
                "stall": since.experts.stall_seconds / sum(seconds),
            }
        recorder.trace.write(Path(trace))
    return found


def llama(path: str, warm: int, n: int, limit: float, threads: int, **how: Any) -> dict[str, Any]:
    engine = llama_cpp(path, threads, **how)
    until = time.monotonic() + limit
    warmed = len(_read(0, warm, until - limit / 2, lambda token: engine.read([token])))
    reads = counters.reads()
    seconds = _read(warmed, n, until, lambda token: engine.read([token]))
    done = counters.reads() - reads
    return {
        "version": engine.version,
        "warm": warmed,
        "seconds": seconds,
        "process_read": done.read_bytes or 0,
    }


def main() -> None:
    name, path, warm, n, seconds, threads, trace = sys.argv[1:]
    numbers = int(warm), int(n), float(seconds), int(threads)
    how = ENGINES[name]
    print(json.dumps(llama(path, *numbers, **how) if how else ours(path, *numbers, trace)))


if __name__ == "__main__":
    main()
