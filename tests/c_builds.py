"""Builds the programs of tests/c: for this machine, or for another by a cross compiler."""

import ast
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@cache
def settings() -> dict[str, Any]:
    """The lists that setup.py spells out: the flags here are those of what is installed."""
    found = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign):
            with suppress(ValueError):  # no literal
                found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return found


@dataclass(frozen=True)
class Builder:
    compiler: list[str]
    machine: str  # what it compiles for, as platform.machine() names it
    flags: list[str]  # besides those of setup.py
    folder: Path  # where all that is built goes

    @cached_property
    def sets(self) -> dict[str, list[str]]:
        """The flags of each instruction set of the machine that the compiler knows."""
        probe = [*self.compiler, "-fsyntax-only", "-xc", os.devnull]
        return {
            name: flags
            for name, machines, flags in settings()["INSTRUCTION_SETS"]
            if self.machine in machines and subprocess.run([*probe, *flags]).returncode == 0
        }

    def compile(self, *what: object) -> None:
        command = [*self.compiler, *settings()["CORE_FLAGS"], "-Werror", "-Icsrc", "-Itests/c"]
        command += [f"-DMMRT_BUILD_{name.upper()}" for name in self.sets]
        command += [*self.flags, *map(str, what)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @cached_property
    def core(self) -> list[Path]:
        """The objects of all of csrc, the units of instruction sets with their flags."""

        def one(source: Path) -> Path:
            unit = self.folder / ("-".join(source.relative_to(ROOT).parts) + ".o")
            flags = self.sets[source.parent.name] if "isa" in source.parts else []
            self.compile(*flags, "-c", source, "-o", unit)
            return unit

        sources = [
            source
            for source in sorted((ROOT / "csrc").rglob("*.c"))
            if "isa" not in source.parts or source.parent.name in self.sets
        ]
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, sources))

    def program(self, name: str, *flags: str) -> Path:
        """tests/c/NAME.c with the core."""
        program = self.folder / name
        self.compile(ROOT / "tests/c" / f"{name}.c", *self.core, "-lm", *flags, "-o", program)
        return program


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
