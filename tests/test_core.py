"""The C tests and the fuzzer's fallback, built with sanitizers where the compiler has them."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
from c_builds import ROOT, Builder, run

CC = os.environ.get("CC", "cc").split()
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# What tests/c/faults.h puts something in the place of.
WRAPPED = [
    "malloc", "calloc", "realloc", "aligned_alloc", "strdup", "free", "mmap", "munmap", "open",
    "fcntl", "fopen", "pread", "syscall", "pthread_create", "pthread_join", "pthread_timedjoin_np",
]  # fmt: skip
CORPUS = sorted((ROOT / "tests/hostile/gguf").glob("*.gguf"))


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


@pytest.fixture(scope="module")
def core(scratch: Path) -> Builder:
    try:
        subprocess.run([*CC, "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("no C compiler here")
    return Builder(CC, platform.machine(), ["-g1", "-O1", *sanitizers(scratch)], scratch)


def test_the_gguf_parser(core: Builder) -> None:
    run(core.program("test_gguf"), ROOT / "tests/hostile/gguf/valid.gguf")


def test_the_mapping(core: Builder, scratch: Path) -> None:
    run(core.program("test_mapping"), scratch / "file")


def test_files_that_are_cut_while_mapped(core: Builder, scratch: Path) -> None:
    run(core.program("test_guard"), scratch / "cut")


def test_memory_nodes(core: Builder, scratch: Path) -> None:
    run(core.program("test_numa"), scratch)


def test_the_plan(core: Builder) -> None:
    run(core.program("test_plan"))


def test_the_stream(core: Builder, scratch: Path) -> None:
    run(core.program("test_stream"), scratch / "streamed")


def test_draws(core: Builder) -> None:
    run(core.program("test_sample"))


def test_the_encoders(core: Builder) -> None:
    run(core.program("test_pack"))


def test_every_call_that_can_fail(core: Builder, scratch: Path) -> None:
    program = core.program("test_faults", *(f"-Wl,--wrap={name}" for name in WRAPPED))
    run(program, scratch / "weights", ROOT / "tests/hostile/gguf/valid.gguf")


@pytest.mark.parametrize("name", ["test_isa", "test_matrix", "test_vector"])
def test_kernels(name: str, core: Builder) -> None:
    run(core.program(name))


def test_the_gguf_parser_survives_mutations(core: Builder) -> None:
    run(core.program("fuzz_gguf"), 1000, *CORPUS)
