"""Builds the C core as one shared library, and thin Cython modules against it.

The core is one static library for what every machine runs and one for each instruction set, each
with its own flags (never -march=native: the set is chosen at run time). All go into
mmrt/libmmrt.so, so that the Cython modules share one copy of its state.
"""

import os
import platform
import subprocess
import tempfile
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

# -ffp-contract=off: a fused multiply-add happens only where the source says so, so that every
# compiler gives the same bits.
CORE_FLAGS = ["-std=gnu11", "-O3", "-g0", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno",
              "-fno-trapping-math", "-pthread"]

# One line an instruction set: the folder in csrc/kernels/isa, its machines, its flags. Each is
# compiled into its own static library.
INSTRUCTION_SETS = [
    ("avx2", ("x86_64", "AMD64"), ["-mavx2", "-mfma", "-mf16c"]),
    ("avx512vnni", ("x86_64", "AMD64"),
     ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma",
      "-mf16c", "-mprefer-vector-width=512"]),
]  # fmt: skip

HEADERS = sorted(
    path for kind in ("h", "def", "inc") for path in glob(f"csrc/**/*.{kind}", recursive=True)
)


def compiles(flags: list[str]) -> bool:
    """Whether the C compiler takes `flags`."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text("int main(void) { return 0; }\n")
        command = [*os.environ.get("CC", "cc").split(), *flags, str(source), "-o", source.stem]
        return subprocess.run(command, cwd=scratch, capture_output=True).returncode == 0


def core_libraries() -> list[tuple[str, dict]]:
    """The static libraries of the core, as setuptools' build_clib wants them."""
    built = [
        (name, flags)
        for name, machines, flags in INSTRUCTION_SETS
        if platform.machine() in machines and compiles(flags)
    ]
    common = [path for path in glob("csrc/**/*.c", recursive=True) if "/isa/" not in path]
    parts = [("mmrt_common", common, [])]
    for name, flags in built:
        parts.append((f"mmrt_{name}", [f"csrc/kernels/isa/{name}/{name}.c"], flags))
    macros = [(f"MMRT_BUILD_{name.upper()}", "1") for name, _ in built]
    return [
        (
            library,
            {
                "sources": sorted(sources),
                "obj_deps": {"": HEADERS},
                "include_dirs": ["csrc"],
                "macros": macros,
                "cflags": CORE_FLAGS + flags,
            },
        )
        for library, sources, flags in parts
    ]


class BuildExtensions(build_ext):
    """Links the static libraries into mmrt/libmmrt.so before the modules that need it."""

    def initialize_options(self):
        super().initialize_options()
        self.parallel = os.cpu_count()

    @property
    def core(self):
        return Path(self.build_lib, "mmrt", "libmmrt.so")

    def run(self):
        self.run_command("build_clib")
        super().run()

    def build_extensions(self):
        self.core.parent.mkdir(parents=True, exist_ok=True)
        self.core.unlink(missing_ok=True)  # or the linker, given no objects, sees nothing to do
        archives = [f"-l{name}" for name, _ in self.distribution.libraries]
        self.compiler.link_shared_object(
            [],
            str(self.core),
            library_dirs=[self.get_finalized_command("build_clib").build_clib],
            extra_postargs=["-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive", "-lm",
                            "-pthread"],
        )  # fmt: skip
        for extension in self.extensions:
            extension.library_dirs.append(str(self.core.parent))
        super().build_extensions()

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        self.copy_file(str(self.core), "mmrt")


modules = [
    Extension(
        "mmrt." + Path(path).stem,
        [path],
        include_dirs=["csrc"],
        libraries=["mmrt"],
        runtime_library_dirs=["$ORIGIN"],
        extra_compile_args=["-O1", "-g0", "-w"],
        depends=HEADERS,
    )
    for path in sorted(glob("mmrt/*.pyx"))
]

setup(
    libraries=core_libraries(),
    ext_modules=cythonize(modules, language_level=3, nthreads=0),
    cmdclass={"build_ext": BuildExtensions},
)
