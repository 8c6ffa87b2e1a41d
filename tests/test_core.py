"""The C tests and the fuzzer's fallback, built with sanitizers where the compiler has them."""

import ast
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def setting(name: str) -> Any:
    """A list that setup.py spells out: the flags here are those of what is installed."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


CC = os.environ.get("CC", "cc").split()
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = [*setting("CORE_FLAGS"), "-g1", "-O1", "-Werror", "-Icsrc", "-Itests/c"]
FOLDERS = ["base", "map", "stream", "quant", "gguf"]
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


def build(name: str, folder: Path, *parts: object) -> Path:
    try:
        subprocess.run([*CC, "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("no C compiler here")
    core = [path for part in FOLDERS for path in sorted((ROOT / "csrc" / part).glob("*.c"))]
    program = folder / name
    command = [*CC, *FLAGS, *sanitizers(folder), ROOT / "tests/c" / f"{name}.c"]
    command += [*core, *parts, "-lm", "-o", program]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture(scope="module")
def kernels(scratch: Path) -> list[object]:
    """What a test of kernels is built from: the unit of each instruction set, compiled with its own
    flags as in setup.py, and the macros that say which there are."""
    macros, units, compilers = [], [], []
    for name, machines, flags in setting("INSTRUCTION_SETS"):
        known = subprocess.run([*CC, *flags, "-fsyntax-only", "-xc", os.devnull]).returncode == 0
        if platform.machine() in machines and known:
            macros.append(f"-DMMRT_BUILD_{name.upper()}")
            for source in sorted((ROOT / "csrc/kernels/isa" / name).glob("*.c")):
                units.append(scratch / f"{name}-{source.stem}.o")
                command = [*CC, *FLAGS, *sanitizers(scratch), *flags, "-c", "-o", units[-1]]
                compilers.append(subprocess.Popen([*command, source], cwd=ROOT))
    assert not any([compiler.wait() for compiler in compilers])
    folder = ROOT / "csrc/kernels"
    common = [*sorted(folder.glob("*.c")), *sorted(folder.glob("ref/*.c"))]
    return [*macros, *common, *units]


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_gguf_parser(scratch: Path) -> None:
    run(build("test_gguf", scratch), ROOT / "tests/hostile/gguf/valid.gguf")


def test_the_mapping(scratch: Path) -> None:
    run(build("test_mapping", scratch), scratch / "file")


def test_memory_nodes(scratch: Path) -> None:
    run(build("test_numa", scratch), scratch)


def test_the_plan(scratch: Path) -> None:
    run(build("test_plan", scratch))


def test_the_stream(scratch: Path) -> None:
    run(build("test_stream", scratch), scratch / "streamed")


def test_the_encoders(scratch: Path) -> None:
    run(build("test_pack", scratch))


def test_files_that_are_cut_while_mapped(scratch: Path, kernels: list[object]) -> None:
    executor = [path for part in ("exec", "kv") for path in (ROOT / "csrc" / part).glob("*.c")]
    run(build("test_guard", scratch, *kernels, *executor), scratch / "cut")


@pytest.mark.parametrize("name", ["test_matrix", "test_vector"])
def test_kernels(name: str, scratch: Path, kernels: list[object]) -> None:
    run(build(name, scratch, *kernels))


def test_the_gguf_parser_survives_mutations(scratch: Path) -> None:
    run(build("fuzz_gguf", scratch), 1000, *CORPUS)
