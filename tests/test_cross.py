"""The core for aarch64: compiled as setup.py does there, run by qemu on several processors."""

import shutil
from pathlib import Path

import pytest
from c_builds import ROOT, Builder, run

COMPILER = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

# One with matrix products of bytes, one with dot products only, one with neither, and what is
# chosen there.
PROCESSORS = {"max": "neon_i8mm", "neoverse-n1": "neon", "cortex-a72": "ref"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPILER, reason="no aarch64-linux-gnu-gcc here"),
    pytest.mark.skipif(not QEMU, reason="no qemu-aarch64 here"),
]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    folder = tmp_path_factory.mktemp("aarch64")
    return Builder([str(COMPILER)], "aarch64", ["-g1", "-static"], folder)


def emulate(processor: str, *command: object) -> None:
    run(str(QEMU), "-cpu", processor, *command)


@pytest.mark.parametrize("name", ["test_matrix", "test_vector"])
def test_kernels(name: str, core: Builder) -> None:
    """A third of the cases where all sets run, and some where qemu would catch their mixing."""
    program = core.program(name)
    emulate("max", program, 3)
    emulate("neoverse-n1", program, 5)


def test_the_choice_of_an_instruction_set(core: Builder) -> None:
    program = core.program("test_isa")
    for processor, chosen in PROCESSORS.items():
        emulate(processor, program, chosen)


def test_all_but_kernels(core: Builder, tmp_path: Path) -> None:
    emulate("cortex-a72", core.program("test_gguf"), ROOT / "tests/hostile/gguf/valid.gguf")
    emulate("cortex-a72", core.program("test_mapping"), tmp_path / "file")
    emulate("cortex-a72", core.program("test_order"))
    emulate("cortex-a72", core.program("test_source"), tmp_path / "streamed")
    emulate("cortex-a72", core.program("test_pack"))
