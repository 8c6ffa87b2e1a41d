"""Builds the C core as one shared library, and thin Cython modules against it.

The core is one static library for what every machine runs and one for each instruction set, each
with its own flags (never -march=native: the set is chosen at run time). All go into
mmrt/core/libmmrt.so, so that the Cython modules share one copy of its state.
"""

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

# -ffp-contract=off: a fused multiply-add happens only where the source says so, so that every
# compiler gives the same bits.
CORE_FLAGS = [
    "-std=gnu11", "-O3", "-g0", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-pthread",
]  # fmt: skip

# One line an instruction set: the folder in csrc/kernels/isa, its machines, its flags. Each is
# compiled into its own static library, or left out where the compiler does not know the flags.
INSTRUCTION_SETS = [
    ("avx2", ("x86_64", "AMD64"), ["-mavx2", "-mfma", "-mf16c"]),
    ("avx512vnni", ("x86_64", "AMD64"),
     ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma",
      "-mf16c", "-mprefer-vector-width=512"]),
    ("avx512bf16", ("x86_64", "AMD64"),
     ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mavx2", "-mfma",
      "-mf16c", "-mprefer-vector-width=512"]),
    ("neon", ("aarch64", "arm64"), ["-march=armv8.2-a+dotprod"]),
    ("neon_i8mm", ("aarch64", "arm64"), ["-march=armv8.2-a+dotprod+i8mm"]),
]  # fmt: skip

# What Cython writes compares ints with enums and converts numbers to bool by arithmetic.
MODULE_FLAGS = ["-O1", "-g0", "-Wno-sign-compare", "-Wno-int-in-bool-context"]

HEADERS = sorted(
    path for kind in ("h", "def", "inc") for path in glob(f"csrc/**/*.{kind}", recursive=True)
)


def library(name: str, sources: list[str], flags: list[str]) -> tuple[str, dict]:
    """A static library, as setuptools' build_clib wants it."""
    return name, {
        "sources": sorted(sources),
        "obj_deps": {"": HEADERS},
        "include_dirs": ["csrc"],
        "cflags": CORE_FLAGS + flags,
    }


def core_libraries() -> list[tuple[str, dict]]:
    common = [path for path in glob("csrc/**/*.c", recursive=True) if "/isa/" not in path]
    return [library("mmrt_common", common, [])] + [
        library(f"mmrt_{name}", glob(f"csrc/kernels/isa/{name}/*.c"), flags)
        for name, machines, flags in INSTRUCTION_SETS
        if platform.machine() in machines
    ]


class BuildCore(build_clib):
    """Builds the static libraries whose flags the compiler knows, all at once."""

    def run(self):
        if sys.platform != "linux":
            sys.exit(f"mmrt runs on Linux alone, and this is {sys.platform}")
        super().run()

    def complaint(self, flags: list[str], source: str = "") -> str | None:
        """What the compiler says of `source`; None where it takes it."""
        command = [*self.compiler.compiler_so, *flags, "-fsyntax-only", "-xc", "-"]
        try:
            done = subprocess.run(command, input=source, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        return None if done.returncode == 0 else (errors or [f"status {done.returncode}"])[0]

    def knows(self, flags: list[str]) -> bool:
        return self.complaint(flags) is None

    def require_compiler(self):
        """Ends with one line where there is no compiler, or not the headers of Python or C."""
        python = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
        for source, what, debian, fedora in (
            ("", "a C11 compiler", "gcc", "gcc"),
            ("#include <pthread.h>", "the C library's headers", "libc6-dev", "glibc-devel"),
            ("#include <Python.h>", "Python's headers", "python3-dev", "python3-devel"),
        ):
            said = self.complaint([*CORE_FLAGS, *python], source)
            if said is not None:
                sys.exit(
                    f"mmrt's build needs {what}: {said} (Debian: apt install {debian}; Fedora: dnf "
                    f"install {fedora})"
                )

    def build_libraries(self, libraries):
        self.require_compiler()
        # In place: what is linked later is what is left in this list.
        libraries[:] = [(name, info) for name, info in libraries if self.knows(info["cflags"])]
        for _, info in libraries:
            info["macros"] = [
                (name.replace("mmrt_", "mmrt_build_").upper(), "1") for name, _ in libraries
            ]
        for name, _ in libraries:
            # ar would leave objects in it whose sources are gone
            Path(self.build_clib, f"lib{name}.a").unlink(missing_ok=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(super().build_libraries, [[one] for one in libraries]))


class BuildModules(build_ext):
    """Links the static libraries into mmrt/core/libmmrt.so, and against that the Cython modules."""

    def initialize_options(self):
        super().initialize_options()
        self.parallel = os.cpu_count()

    @property
    def core(self):
        return Path(self.build_lib, "mmrt", "core", "libmmrt.so")

    def run(self):
        self.run_command("build_clib")  # which an editable installation would leave out
        super().run()

    def build_extensions(self):
        self.link_core()
        # Only here, and into the build folder: an sdist needs no C of Cython's, nor does the tree.
        translated = cythonize(
            self.extensions,
            build_dir=self.build_temp,
            force=self.force,
            compiler_directives={"show_performance_hints": False},
        )
        for extension, in_c in zip(self.extensions, translated, strict=True):
            extension.sources = in_c.sources
            extension.library_dirs.append(str(self.core.parent))
        super().build_extensions()

    def link_core(self):
        self.core.parent.mkdir(parents=True, exist_ok=True)
        self.core.unlink(missing_ok=True)  # or the linker, given no objects, sees nothing to do
        archives = [f"-l{name}" for name, _ in self.distribution.libraries]
        self.compiler.link_shared_object(
            [],
            str(self.core),
            library_dirs=[self.get_finalized_command("build_clib").build_clib],
            extra_postargs=[
                "-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive", "-lm", "-pthread",
            ],
        )  # fmt: skip

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        self.copy_file(str(self.core), "mmrt/core")

    def get_output_mapping(self):
        inplace = {str(self.core): "mmrt/core/libmmrt.so"} if self.inplace else {}
        return super().get_output_mapping() | inplace

    def get_outputs(self):
        return sorted({*super().get_outputs(), str(self.core)})


modules = [
    Extension(
        "mmrt.core." + Path(path).stem,
        [path],
        include_dirs=["csrc"],
        libraries=["mmrt"],
        runtime_library_dirs=["$ORIGIN"],
        extra_compile_args=MODULE_FLAGS,
        depends=HEADERS,
    )
    for path in sorted(glob("mmrt/core/*.pyx"))
]

setup(
    libraries=core_libraries(),
    ext_modules=modules,
    cmdclass={"build_clib": BuildCore, "build_ext": BuildModules},
)
