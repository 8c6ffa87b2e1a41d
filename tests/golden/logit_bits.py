"""Digests of logits, to show that a change of the core's structure changes no bit of them.

    python tests/golden/logit_bits.py record before.json    in the old state
    python tests/golden/logit_bits.py check before.json     in the new one

Both real models (tests/fetch_models.py), each instruction set that runs here: a prompt, single
tokens, several texts in one step, keys and values in both types, and a tight memory budget with
each reader. Digests depend on the C library's cosines, so they are compared on one machine.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from instruction_sets import ISAS

import mmrt
from mmrt.core.streaming import READERS

MODELS = {"smollm2": "MMRT_TEST_SMOLLM2", "gemma3": "MMRT_TEST_GEMMA3"}
PROMPT, SINGLE, TEXTS = 150, 40, (1, 7, 30, 2)


def tokens(n: int, seed: int, vocabulary: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(5, vocabulary, n).tolist()
    return found


def digest(rows: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, np.float32).tobytes()).hexdigest()[:16]


def cases(path: str, name: str) -> Iterator[tuple[str, str]]:
    """(what, digest) of everything that one model does under the instruction set in force."""
    from together import extend_together

    def prompt_and_steps(model: mmrt.Model) -> str:
        ids = tokens(PROMPT + SINGLE, 1, model.program.vocab_size)
        with model.sequence() as s:
            rows = [s.extend(ids[:PROMPT])]
            rows += [s.extend([token]) for token in ids[PROMPT:]]
        return digest(rows)

    for kv in ("f16", "q8_0"):
        with mmrt.Model(path, kv_k=kv, kv_v=kv) as model:
            yield f"{name} {kv}: prompt and single tokens", prompt_and_steps(model)
    with mmrt.Model(path) as model:
        vocabulary = model.program.vocab_size
        sequences = [model.sequence() for _ in TEXTS]
        given = [
            (s, tokens(n, i, vocabulary))
            for i, (s, n) in enumerate(zip(sequences, TEXTS, strict=True))
        ]
        yield f"{name}: several texts", digest(extend_together(given))
        for s in sequences:
            s.close()
    if name == "smollm2":
        for reader in READERS:
            with mmrt.Model(path, memory="110MiB", reader=reader) as model:
                yield f"{name}, 110 MiB, {reader}", prompt_and_steps(model)


def one_set() -> dict[str, str]:
    isa = os.environ["MMRT_ISA"]
    found = {}
    for name, variable in MODELS.items():
        for what, value in cases(os.environ[variable], name):
            found[f"{isa}: {what}"] = value
            print(f"{isa}: {what}", value, file=sys.stderr)
    return found


def all_sets() -> dict[str, str]:
    """Each in a process of its own: the set is chosen once."""
    found: dict[str, str] = {}
    for isa in ISAS:
        if isa == "ref":  # minutes a model
            continue
        done = subprocess.run(
            [sys.executable, __file__, "one"],
            env=os.environ | {"MMRT_ISA": isa},
            stdout=subprocess.PIPE,
            check=True,
        )
        found |= json.loads(done.stdout)
    return found


def main() -> None:
    action = sys.argv[1]
    if action == "one":
        json.dump(one_set(), sys.stdout)
        return
    found, path = all_sets(), Path(sys.argv[2])
    if action == "record":
        path.write_text(json.dumps(found, indent=1) + "\n")
        return
    before = json.loads(path.read_text())
    changed = [what for what in before if found.get(what) != before[what]]
    print("\n".join(f"CHANGED {what}" for what in changed) or f"{len(before)} digests are the same")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
