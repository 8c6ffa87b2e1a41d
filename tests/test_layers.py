"""The order of the layers: a file includes or imports only what stands before it.

Imports inside functions count too. What is in no layer fails, so that each new file finds its place
in the order below.
"""

import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "csrc"

# What callers see is open to all folders.
PUBLIC = ["mmrt_files.h", "mmrt.h"]

# Folders of csrc/.
C_LAYERS = ["base", "map", "source", "quant", "gguf", "state", "kernels", "sample"]
C_LAYERS += ["graph", "step", "ops", "tools"]

# What mmrt.h itself includes, by pattern: lists of names that callers share.
SHARED_LISTS = ["mmrt_files.h", "base/*.def", "map/*.def", "source/*.def", "graph/ops.def"]

# Compiled once for each instruction set: they may know the arithmetic alone.
ARITHMETIC = ["kernels/isa", "kernels/body"]

# Files and folders of mmrt/; __init__ is the package itself, with all of its public names.
PYTHON_LAYERS = [
    *["errors", "core", "memory", "files", "text", "models", "run", "sight", "cluster"],
    *["__init__", "serving", "cli", "__main__"],
]

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]', re.MULTILINE)
COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
DEFINITION = re.compile(r"^(?!static\b)[a-z][^;{}=]*?\b(mmrt_\w+)\([^;{}]*\) \{$", re.MULTILINE)
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
        if own.parts[0] not in [*C_LAYERS, *PUBLIC]:
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
    if own.name in PUBLIC:
        return any(target.match(pattern) for pattern in SHARED_LISTS)
    if target.name in PUBLIC:
        return True
    if any(own.is_relative_to(folder) for folder in ARITHMETIC):
        return target.parts[0] in ("kernels", "quant")
    if target.parts[0] not in C_LAYERS:
        return False
    return C_LAYERS.index(target.parts[0]) <= C_LAYERS.index(own.parts[0])


def calls() -> Iterator[tuple[str, str]]:
    """(a file, another that defines a function which it names)."""
    code = {path: COMMENT_OR_STRING.sub("", path.read_text()) for path in files("csrc", ".c")}
    homes = {match[1]: path for path in code for match in DEFINITION.finditer(code[path])}
    assert len(homes) > 100
    for path, text in code.items():
        for name in set(re.findall(r"\bmmrt_\w+", text)) & homes.keys():
            if homes[name] != path:
                yield str(path.relative_to(CORE)), str(homes[name].relative_to(CORE))


def test_calls_follow_the_layers() -> None:
    report(
        [
            f"csrc/{own} may not call {target}, which stands after it"
            for own, target in sorted(set(calls()))
            if not may_include(Path(own), Path(target))
        ]
    )


def test_no_files_of_the_core_need_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in files("csrc", ".c", ".h", ".def", ".inc"):
        targets = (included(path, match[1]) for _, match in found(INCLUDE, path))
        graph[str(path.relative_to(CORE))] = {str(target) for target in targets if target}
    for own, target in set(calls()):
        graph[own].add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def python_files() -> list[Path]:
    return files("mmrt", ".py", ".pyx", ".pxd", ".pyi")


def module_of(path: Path) -> str:
    """A module and the declarations beside it count as one."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in python_files()}


def layer_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def imported(match: re.Match[str]) -> Iterator[str]:
    """The modules of mmrt that an import statement names; what is none is its package's own."""
    module, names = match["module"] or "", match["names"] or match["modules"]
    listed = [words[0] for name in names.strip("()").split(",") if (words := name.split())]
    for name in listed:
        dotted = f"{module}.{name}" if module else name
        if dotted in MODULES:
            yield dotted
        elif module in MODULES:
            yield module


def imports() -> Iterator[tuple[str, str, str]]:
    """(where, the module that imports, the module that is imported), also within functions and for
    type checkers alone."""
    for path in python_files():
        for place, match in found(IMPORT, path):
            for target in imported(match):
                if target != module_of(path):
                    yield place, module_of(path), target


def test_imports_follow_the_layers() -> None:
    problems = [
        f"{module}: is in no layer: see PYTHON_LAYERS"
        for module in sorted(MODULES)
        if layer_of(module) not in PYTHON_LAYERS
    ]
    report(problems)
    for place, own, target in imports():
        if PYTHON_LAYERS.index(layer_of(target)) > PYTHON_LAYERS.index(layer_of(own)):
            problems.append(f"{place}: {own} may not import {target}, which stands after it")
    report(problems)


def test_imports_are_absolute() -> None:
    report(
        [
            f"{place}: a relative import: name it from mmrt on"
            for path in python_files()
            for place, match in found(IMPORT, path)
            if (match["module"] or "").startswith(".")
        ]
    )


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for _, own, target in imports():
        graph.setdefault(own, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_every_layer_is_there() -> None:
    assert set(PYTHON_LAYERS) <= {layer_of(module) for module in MODULES}
    assert set(C_LAYERS) <= {path.name for path in CORE.iterdir()}


def test_no_file_is_too_long() -> None:
    folders = ["csrc", "mmrt", "tests", "bench"]
    kinds = {".c", ".h", ".inc", ".def", ".py", ".pyx", ".pxd", ".pyi", ".html", ".css", ".js"}
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in kinds]
    assert len(files) > 300
    lines = {path: len(path.read_text().splitlines()) for path in files}
    assert not {str(path): n for path, n in lines.items() if n > 600}


def test_an_operation_has_one_home() -> None:
    """Its file describes it; no other asks which kind an operation is."""
    kinds = re.findall(r"^MMRT_OP\((\w+), (\w+), ", (CORE / "graph/ops.def").read_text(), re.M)
    assert len(kinds) > 10
    for upper, name in kinds:
        assert f"const struct op_info mmrt_op_{name} = {{" in (CORE / f"ops/{name}.c").read_text()
        for path in [
            *CORE.rglob("*.[ch]"),
            *(ROOT / "mmrt").rglob("*.py"),
            *(ROOT / "mmrt").rglob("*.pyx"),
        ]:
            assert f"MMRT_OP_{upper}" not in path.read_text(), path
