"""One runtime, measured in a process of its own, which bench.limits starts under a limit on memory:
`python -m bench.limited ENGINE MODEL.gguf PROMPT TOKENS THREADS` prints JSON.

After every other token it writes an empty line and waits for one, so that the disk can be measured
meanwhile.
"""

import json
import sys
import time
import zlib
from dataclasses import asdict
from typing import Any

from bench.engine import tokens
from bench.llama import Llama, llama_cpp
from mmrt import counters

_BETWEEN = 2  # tokens from one measurement of the disk to the next


def _pause(done: int) -> None:
    if done % _BETWEEN == 0:
        print(flush=True)
        sys.stdin.readline()


WARM_UP = 2
"""Tokens that are not counted: the first brings in what is to be kept."""


def bundle_of(path: str) -> str:
    """Where the bundle of a model is expected."""
    return f"{path}.bundle"


def predictor_of(path: str) -> str:
    """Where the predictor of a model is expected."""
    return f"{path}.predictor"


def ours(
    path: str,
    prompt: int,
    n: int,
    threads: int,
    bundled: bool = False,
    forgets: bool = False,
    predicts: bool = False,
) -> dict[str, Any]:
    """forgets: each token reads its neurons anew, as if none before it had."""
    import mmrt

    bundle = bundle_of(path) if bundled else None
    predictor = predictor_of(path) if predicts else None
    with (
        mmrt.Model(path, threads=threads, bundle=bundle, predictor=predictor) as model,
        model.sequence() as sequence,
    ):
        answers = [sequence.extend([token]) for token in tokens(WARM_UP)]
        seconds, prefill = [], None
        before, read = model.streaming, counters.reads()
        for token in tokens(n):
            if forgets and model.streaming:
                model.program.forget_columns()
            began = time.perf_counter()
            answers.append(sequence.extend([token]))
            seconds.append(time.perf_counter() - began)
            _pause(len(seconds))
        after, reads = model.streaming, counters.reads() - read
        found: dict[str, Any] = {"version": f"{mmrt.__version__} {model.isa}", "seconds": seconds}
        found["read"] = (reads.read_bytes or 0) / max(n, 1)
        found["weights"] = model.program.plan(0).total
        found |= {"kept": found["weights"], "ring": 0, "stall": 0.0, "reader": None}
        if before and after:
            found |= {
                "kept": after.kept,
                "ring": after.ring,
                "stall": (after.stall_seconds - before.stall_seconds) / sum(seconds or [1]),
                "reader": after.reader,
                "neurons": asdict(after.columns - before.columns),
            }
        if prompt:
            sequence.truncate(0)
            began = time.perf_counter()
            answers.append(sequence.extend(tokens(prompt)))
            prefill = time.perf_counter() - began
        # Sums of the logits' very bits: whatever is sampled, the same tokens follow.
        sums = [zlib.crc32(logits.tobytes()) for logits in answers]
        return found | {"prefill": prefill, "answers": sums}


def llama(path: str, prompt: int, n: int, threads: int, **how: Any) -> dict[str, Any]:
    engine: Llama = llama_cpp(path, threads, **how)
    for token in tokens(WARM_UP):
        engine.read([token])
    seconds, read = [], counters.reads()
    for token in tokens(n):
        began = time.perf_counter()
        engine.read([token])
        seconds.append(time.perf_counter() - began)
        _pause(len(seconds))
    reads = counters.reads() - read
    return {
        "version": engine.version,
        "seconds": seconds,
        "read": (reads.read_bytes or 0) / max(n, 1),
        "prefill": engine.prefill(prompt) if prompt else None,
    }


# Ours, and the ways in which llama.cpp loads a model. Those that copy it need room for the copy.
ENGINES: dict[str, dict[str, Any]] = {
    "mmrt": {},
    "mmrt with a bundle": {"bundled": True},
    "mmrt without a window": {"bundled": True, "forgets": True},
    "mmrt with a predictor": {"bundled": True, "predicts": True},
    "llama.cpp mmap": {"repack": False, "load_mode": "MMAP"},
    "llama.cpp mmap, repacked": {"repack": True, "load_mode": "MMAP"},
    "llama.cpp direct_io": {"repack": False, "load_mode": "DIRECT_IO"},
    "llama.cpp no mmap": {"repack": False, "load_mode": "NONE"},
    "llama.cpp mlock": {"repack": False, "load_mode": "MMAP_MLOCK"},
}
OURS, BUNDLED, PEER = "mmrt", "mmrt with a bundle", "llama.cpp mmap"
NAIVE, PREDICTED = "mmrt without a window", "mmrt with a predictor"


def main() -> None:
    name, path, *numbers = sys.argv[1:]
    prompt, n, threads = map(int, numbers)
    how = ENGINES[name]
    engine = ours if name in (OURS, BUNDLED, NAIVE, PREDICTED) else llama
    found = engine(path, prompt, n, threads, **how)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
