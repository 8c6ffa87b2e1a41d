"""The order of the layers: a file includes or imports only what stands before it.

Imports inside functions count too. What is in no layer fails, so that each new file finds its place
in the order below.
"""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "csrc"

# Folders of csrc/. mmrt.h, what callers see, is open to all of them.
C_LAYERS = ["base", "map", "stream", "quant", "gguf", "kernels", "sample", "kv", "exec"]

# What mmrt.h itself includes, by pattern: lists of names that callers share.
SHARED_LISTS = ["base/*.def", "map/*.def", "stream/*.def", "exec/ops.def"]

# Compiled once for each instruction set: they may know the arithmetic alone.
ARITHMETIC = ["kernels/isa", "kernels/body"]

# Modules and folders of mmrt/; __init__ is the package itself, with all of its public names.
PYTHON_LAYERS = [
    *["errors", "arguments", "residency", "layers", "fields"],  # plain Python, as are these:
    *["elements", "pagetables"],
    *["_c", "_calls", "_dlpack", "_status", "_probe"],  # bindings, as are these:
    *["counters", "streaming"],
    *["mapping", "gguf", "quant", "kernels", "draw", "numa", "tensor"],
    *["system", "policies"],
    *["formats", "quantizer", "program", "models"],
    *["standins", "words", "bpe", "tokenizer"],
    *["allowance", "strings", "sandbox", "chat"],
    *["sampler", "sequence", "generation", "conversation", "memory", "budget"],
    *["wheel", "default_model", "model", "forecast"],
    *["trace", "chrome_trace", "pictures"],
    *["hub", "__init__", "cli", "__main__"],
]

# These name the other as the type of what they are given; type checkers alone import it.
TYPES_ONLY = {
    ("sequence", "model"),
    ("generation", "model"),
    ("conversation", "model"),
    ("policies", "program"),
}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]', re.MULTILINE)
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^#\n]+)"
    r"|c?import[ \t]+(?P<modules>[^#\n]+))",
    re.MULTILINE,
)


def files(folder: str, *suffixes: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def found(pattern: re.Pattern[str], path: Path) -> Iterator[tuple[str, re.Match[str]]]:
    """The matches in a file, each with "path:line", to name it by."""
    text = path.read_text()
    for match in pattern.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield f"{path.relative_to(ROOT)}:{line}", match


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def included(path: Path, name: str) -> Path | None:
    """The file of ours that `path` includes as `name`, from its own folder or from csrc."""
    candidates = [path.parent / name, CORE / name]
    return next((one.resolve().relative_to(CORE) for one in candidates if one.is_file()), None)


def test_includes_follow_the_layers() -> None:
    problems = []
    for path in files("csrc", ".c", ".h", ".def", ".inc"):
        own = path.relative_to(CORE)
        if own.parts[0] not in [*C_LAYERS, "mmrt.h"]:
            problems.append(f"csrc/{own}:1: is in no layer: see C_LAYERS")
            continue
        for place, match in found(INCLUDE, path):
            target = included(path, match[1])
            if target is None:
                if '"' in match[0] or match[1] == "Python.h":
                    problems.append(f"{place}: {match[1]} is not a file of the core")
            elif not may_include(own, target):
                problems.append(f"{place}: {own} may not include {target}")
    report(problems)


def may_include(own: Path, target: Path) -> bool:
    if own.name == "mmrt.h":
        return any(target.match(pattern) for pattern in SHARED_LISTS)
    if target.name == "mmrt.h":
        return True
    if any(own.is_relative_to(folder) for folder in ARITHMETIC):
        return target.parts[0] in ("kernels", "quant")
    if target.parts[0] not in C_LAYERS:
        return False
    return C_LAYERS.index(target.parts[0]) <= C_LAYERS.index(own.parts[0])


def modules() -> list[Path]:
    return files("mmrt", ".py", ".pyx", ".pxd", ".pyi")


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "mmrt").parts[0].partition(".")[0]


def imported(match: re.Match[str]) -> Iterator[str]:
    """The layers of mmrt that an import statement names; what is no module is the package's own."""
    module, names = match["module"] or "", match["names"] or match["modules"]
    if module in ("", "mmrt"):
        listed = [name.strip() for name in names.strip("()").split(",") if name.strip()]
        dotted = [f"{module}.{name}" if module else name for name in listed]
    else:
        dotted = [module]
    for name in dotted:
        package, *rest = re.findall(r"\w+", name)
        if package == "mmrt":
            yield rest[0] if rest and rest[0] in PYTHON_LAYERS else "__init__"


def test_imports_follow_the_layers() -> None:
    problems = []
    for path in modules():
        own = layer_of(path)
        if own not in PYTHON_LAYERS:
            problems.append(f"{path.relative_to(ROOT)}:1: is in no layer: see PYTHON_LAYERS")
            continue
        for place, match in found(IMPORT, path):
            if (match["module"] or "").startswith("."):
                problems.append(f"{place}: a relative import: name it from mmrt on")
                continue
            for layer in imported(match):
                upward = PYTHON_LAYERS.index(layer) > PYTHON_LAYERS.index(own)
                if upward and (own, layer) not in TYPES_ONLY:
                    problems.append(f"{place}: {own} may not import {layer}, which stands after it")
    report(problems)


def test_every_layer_is_there() -> None:
    assert set(PYTHON_LAYERS) <= {layer_of(path) for path in modules()}
    assert set(C_LAYERS) <= {path.name for path in CORE.iterdir()}
