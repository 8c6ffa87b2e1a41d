"""The C tests and the fuzzer's fallback, built with sanitizers where the compiler has them."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CC = os.environ.get("CC", "cc").split()
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-Icsrc", "-Itests/c"]
FOLDERS = ["map", "quant", "gguf"]
CORPUS = sorted((ROOT / "tests/hostile/gguf").glob("*.gguf"))


@cache
def sanitizers(folder: Path) -> list[str]:
    """The sanitizer flags, or none where the compiler or its runtime lacks them."""
    source = folder / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    built = subprocess.run([*CC, *SANITIZE, source, "-o", folder / "probe"], capture_output=True)
    works = built.returncode == 0 and subprocess.run([folder / "probe"]).returncode == 0
    return SANITIZE if works else []


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("core")


def build(name: str, folder: Path) -> Path:
    try:
        subprocess.run([*CC, "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("no C compiler here")
    core = [path for part in FOLDERS for path in sorted((ROOT / "csrc" / part).glob("*.c"))]
    program = folder / name
    command = [*CC, *FLAGS, *sanitizers(folder), ROOT / "tests/c" / f"{name}.c"]
    command += [ROOT / "csrc/base/status.c", *core, "-lm", "-o", program]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_gguf_parser(scratch: Path) -> None:
    run(build("test_gguf", scratch), ROOT / "tests/hostile/gguf/valid.gguf")


def test_the_mapping(scratch: Path) -> None:
    run(build("test_mapping", scratch), scratch / "file")


def test_the_gguf_parser_survives_mutations(scratch: Path) -> None:
    run(build("fuzz_gguf", scratch), 1000, *CORPUS)
