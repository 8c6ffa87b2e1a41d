"""The package as such: what its sdist holds, what importing it costs, that its stubs tell the truth
and its public names have docstrings."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from command import HOME

import mmrt

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(mmrt.__file__).parent
CORE = PACKAGE / "core"
BINDINGS = sorted(f"mmrt.core.{path.stem}" for path in CORE.glob("*.pyi"))


def output(*command: str) -> str:
    done = subprocess.run([*command], cwd=HOME, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# ---- importing ----


def imported(script: str) -> set[str]:
    """The top-level packages that a fresh process has after `script`."""
    script += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    return set(output(sys.executable, "-c", script).split())


# What the package needs at run time; each is loaded by what uses it.
NEEDED = {"numpy", "tokenizers", "jinja2", "rich"}


@pytest.mark.parametrize(
    ("script", "allowed"),
    [
        ("import mmrt; dir(mmrt); mmrt.__version__", set()),
        ("import mmrt; mmrt.MmrtError", set()),
        ("import mmrt.cli", set()),
        ("import mmrt; mmrt.open", {"numpy"}),
        ("import mmrt; mmrt.cpu_info()", {"numpy"}),
        ("import mmrt; mmrt.Model", {"numpy"}),
    ],
)
def test_imports_are_left_until_they_are_needed(script: str, allowed: set[str]) -> None:
    assert imported(script) & NEEDED <= allowed


def test_public_names() -> None:
    names: list[str] = mmrt.__all__  # type: ignore[attr-defined]
    for name in names:
        assert getattr(mmrt, name) is not None
        assert name in dir(mmrt)
    assert len(names) > 30 and {"Model", "counters", "open"} <= set(names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmrt.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert f'version = "{mmrt.__version__}"' in (ROOT / "pyproject.toml").read_text()


# ---- docstrings ----


def public_members(owner: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Everything public in `owner`, by its path, and whether it is described."""
    own = f"{owner.__name__}."
    if isinstance(owner, types.ModuleType):
        yield path, bool(owner.__doc__)
        for name in getattr(owner, "__all__", [n for n in vars(owner) if not n.startswith("_")]):
            value = getattr(owner, name)
            if isinstance(value, types.ModuleType):
                if name in getattr(owner, "__all__", ()):
                    yield from public_members(value, f"{path}.{name}")
            elif callable(value) and (owner is mmrt or f"{value.__module__}.".startswith(own)):
                yield from public_members(value, f"{path}.{name}")
    elif isinstance(owner, type):
        yield path, bool(owner.__doc__)
        ours = [base for base in owner.__mro__ if f"{base.__module__}.".startswith("mmrt.")]
        for name, value in {k: v for base in reversed(ours) for k, v in vars(base).items()}.items():
            if not name.startswith("_") and not isinstance(value, type):
                # Attributes may be described together, by the class.
                described = re.search(rf"\b{name}\b", owner.__doc__ or "")
                comment = issubclass(owner, tuple) or hasattr(owner, "__dataclass_fields__")
                is_field = comment and not callable(value) and not isinstance(value, property)
                yield f"{path}.{name}", bool(inspect.getdoc(value) or described or is_field)
    else:
        yield path, bool(owner.__doc__)


def test_public_names_have_docstrings() -> None:
    found = dict(public_members(mmrt, "mmrt"))
    assert len(found) > 100 and "mmrt.Model.generate" in found and "mmrt.Tensor.shape" in found
    assert not [path for path, described in found.items() if not described]


# ---- stubs ----

# Cython's own names; and constructors, which classes in C have in other places.
CYTHON = r""".*\.__(test|pyx_capi|reduce_cython|setstate_cython)__
mmrt\.core\.\w+\.\w+\.__init__
mmrt\.core\.\w+\.\w+\.__(buffer|rmatmul)__
"""


def names_from_elsewhere() -> str:
    """Constants that a compiled module imports: nothing else tells them from its own."""
    modules = [import_module(name) for name in [*BINDINGS, "mmrt.core.elements"]]
    return "".join(
        rf"{module.__name__}\.{name}" + "\n"
        for module in modules
        for name, value in vars(module).items()
        if name.isupper()
        and any(vars(m).get(name) is value for m in modules if m is not module)
        and name not in stub_of(module)
    )


def stub_of(module: types.ModuleType) -> str:
    path = CORE / f"{module.__name__.split('.')[-1]}.pyi"
    return path.read_text() if path.exists() else ""


def test_every_binding_has_a_stub() -> None:
    compiled = {path.name.split(".")[0] for path in CORE.glob("*.so")} - {"libmmrt"}
    public = {name for name in compiled if name != "_status"}
    assert {f"mmrt.core.{name}" for name in public} == set(BINDINGS)
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.slow
def test_stubs_tell_the_truth(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy, of the extra 'dev'")
    allowed = tmp_path / "allowed"
    allowed.write_text(CYTHON + names_from_elsewhere())
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--allowlist", str(allowed)]
    command += ["--ignore-unused-allowlist", "--ignore-disjoint-bases", *BINDINGS]
    # Elsewhere: mypy takes what lies in the folder for the user's own.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- a clone that is not built ----


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A clone of the sources alone."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "bench", clone / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "mmrt", clone / "mmrt", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    return clone


def test_importing_source_without_its_compiled_parts_says_what_to_do(unbuilt: Path) -> None:
    command = [sys.executable, "-c", "import mmrt"]
    done = subprocess.run(command, cwd=unbuilt, capture_output=True, text=True)
    assert done.returncode == 1
    (last,) = done.stderr.splitlines()[-1:]
    assert last.startswith("ImportError:") and str(unbuilt) in last and "pip install -e ." in last


@pytest.mark.slow
@pytest.mark.parametrize("command", [["bench.peers", "--help"], ["pytest", "bench", "--co", "-q"]])
def test_benchmarks_run_from_a_clone_with_the_mmrt_that_is_installed(
    unbuilt: Path, command: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=unbuilt,
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the sdist ----

GENERATED = {"PKG-INFO", "setup.cfg", "mmrt.egg-info"}
SUFFIXES = {
    "csrc": {".c", ".h", ".def", ".inc", ".py"},
    "mmrt": {".py", ".pyx", ".pxd", ".pyi", ".typed", ".html", ".css", ".js", ".svg"},
    "tests": {".py", ".c", ".h", ".gguf", ".json", ".txt"},
    "bench": {".py", ".json", ".svg"},
    "docs": {".md", ".py", ".png", ".svg"},
}


@pytest.fixture(scope="module")
def sdist() -> list[tarfile.TarInfo]:
    """The files in it; their names without the folder that all are in."""
    given = os.environ.get("MMRT_TEST_SDIST")
    if not given:
        pytest.skip("MMRT_TEST_SDIST is not set: .ci/run names the sdist that it built")
    assert os.path.getsize(given) < 2_000_000
    with tarfile.open(given) as archive:
        members = archive.getmembers()
    for member in members:
        top, _, member.name = member.name.partition("/")
        assert top == f"mmrt-{mmrt.__version__}"
    return [member for member in members if not member.isdir()]


def test_the_sdist_holds_files_of_the_tree_and_nothing_else(sdist: list[tarfile.TarInfo]) -> None:
    for member in sdist:
        path = PurePosixPath(member.name)
        if path.parts[0] in GENERATED:
            continue
        assert member.isfile() and (ROOT / path).is_file(), member.name
        assert (ROOT / path).stat().st_size == member.size, member.name
        if len(path.parts) > 1 and path.parts[0] != ".ci":
            allowed = SUFFIXES.get(path.parts[0], set())
            assert (path.suffix or path.name) in allowed, member.name


def test_the_sdist_holds_all_that_is_needed(sdist: list[tarfile.TarInfo]) -> None:
    held = {member.name for member in sdist}
    expected = {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"}
    expected |= {"CONTRIBUTING.md", "SECURITY.md", ".pre-commit-config.yaml"}
    expected |= {".ci/run", ".clang-format", "mmrt/py.typed"}
    for folder, suffixes in SUFFIXES.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
        assert files
        expected |= {path.relative_to(ROOT).as_posix() for path in files}
    assert sorted(expected - held) == []


def test_a_module_may_be_named_without_its_folder() -> None:
    import mmrt.tokenizer  # type: ignore[import-not-found]

    import mmrt.text.tokenizer

    assert mmrt.tokenizer is mmrt.text.tokenizer
    assert mmrt.tokenizer.__spec__
    assert mmrt.tokenizer.__spec__.name == mmrt.tokenizer.__name__ == "mmrt.text.tokenizer"
    assert import_module("mmrt.tensor").Tensor is mmrt.Tensor
    for name in ("nothing", "core.nothing", "_c", "tokenizer.nothing"):
        with pytest.raises(ModuleNotFoundError, match=name):
            import_module(f"mmrt.{name}")
