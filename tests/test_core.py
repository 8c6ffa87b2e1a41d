"""The C tests and the fuzzer's fallback, built with sanitizers where the compiler has them."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
from c_builds import ROOT, Builder, run

pytestmark = pytest.mark.slow

CC = os.environ.get("CC", "cc").split()
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZE_THREADS = ["-fsanitize=thread", "-DWITHOUT_FORKS"]
# What tests/c/faults.h puts something in the place of.
WRAPPED = [
    "malloc", "calloc", "realloc", "aligned_alloc", "strdup", "free", "mmap", "munmap", "open",
    "fcntl", "fopen", "pread", "syscall", "pthread_create", "pthread_join", "pthread_timedjoin_np",
]  # fmt: skip
CORPUS = sorted((ROOT / "tests/hostile/gguf").glob("*.gguf"))


def works(flags: list[str], folder: Path) -> bool:
    """Whether the compiler and its runtime have these sanitizers."""
    source = folder / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    built = subprocess.run([*CC, *flags, source, "-o", folder / "probe"], capture_output=True)
    return built.returncode == 0 and subprocess.run([folder / "probe"]).returncode == 0


def builder(flags: list[str], folder: Path) -> Builder:
    return Builder(CC, platform.machine(), ["-g1", "-O1", *flags], folder)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        subprocess.run([*CC, "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("no C compiler here")
    return tmp_path_factory.mktemp("core")


@pytest.fixture(scope="module")
def core(scratch: Path) -> Builder:
    return builder(SANITIZE if works(SANITIZE, scratch) else [], scratch)


@pytest.fixture(scope="module")
def threaded(scratch: Path) -> Builder:
    """The same under ThreadSanitizer, which ends a program that has a race with an exit code."""
    if not works(SANITIZE_THREADS, scratch):
        pytest.skip("this compiler has no ThreadSanitizer")
    folder = scratch / "threaded"
    folder.mkdir()
    return builder(SANITIZE_THREADS, folder)


def test_the_gguf_parser(core: Builder) -> None:
    run(core.program("test_gguf"), ROOT / "tests/hostile/gguf/valid.gguf")


def test_the_mapping(core: Builder, scratch: Path) -> None:
    run(core.program("test_mapping"), scratch / "file")


def test_files_that_are_cut_while_mapped(core: Builder, scratch: Path) -> None:
    run(core.program("test_guard"), scratch / "cut")


def test_memory_nodes(core: Builder, scratch: Path) -> None:
    run(core.program("test_numa"), scratch)


def test_the_order_of_keeping(core: Builder) -> None:
    run(core.program("test_order"))


def test_the_source(core: Builder, scratch: Path) -> None:
    run(core.program("test_source"), scratch / "streamed")


def test_units_on_demand(core: Builder, scratch: Path) -> None:
    run(core.program("test_demand"), scratch / "demand")


def test_rows_on_demand(core: Builder, scratch: Path) -> None:
    run(core.program("test_neurons"), scratch / "neurons")


def test_the_state_of_sequences(core: Builder) -> None:
    run(core.program("test_state"))


def test_states_in_files(core: Builder, scratch: Path) -> None:
    run(core.program("test_saved"), scratch / "saved")


def test_draws(core: Builder) -> None:
    run(core.program("test_sample"))


def test_threads(core: Builder, scratch: Path) -> None:
    run(core.program("test_threads"), scratch / "small")


@pytest.mark.parametrize(
    "name",
    [
        *("test_threads", "test_source", "test_demand", "test_neurons", "test_state"),
        *("test_mapping", "test_guard"),
    ],
)
def test_threads_without_races(name: str, threaded: Builder, scratch: Path) -> None:
    run(threaded.program(name), scratch / f"{name}.file")


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
