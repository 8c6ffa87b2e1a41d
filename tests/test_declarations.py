"""What the bindings declare of the core is what its headers say: a compiler would convert numbers
of another type without a word."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADERS = [ROOT / "csrc/mmrt_files.h", ROOT / "csrc/mmrt.h", ROOT / "csrc/quant/quant.h"]
DECLARED = ROOT / "mmrt/core/_c.pxd"

COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.DOTALL | re.MULTILINE)
FUNCTION = re.compile(r"(?P<result>[\w ]+[ *])(?P<name>\bmmrt_\w+)\s*\((?P<parameters>[^()]*)\)")
STRUCT = re.compile(r"struct (?P<name>mmrt_\w+) \{(?P<fields>[^{}]*)\}")
DECLARED_STRUCT = re.compile(
    r"ctypedef struct (?P<name>mmrt_\w+):\n(?P<fields>(?:        [^\n]*\n)+)"
)


def one_space(text: str) -> str:
    """A declaration, spelled in one way."""
    text = re.sub(r"\bbool_t\b", "bool", text)  # an unsigned char by another name
    text = re.sub(r"\bstruct (?=mmrt_)", "", text)
    text = re.sub(r"\s*\*\s*", " * ", text)
    return " ".join(text.split())


def functions(text: str) -> dict[str, str]:
    """Name -> what it returns and takes, names of parameters included."""
    found = {}
    for match in FUNCTION.finditer(text):
        parameters = one_space(match["parameters"])
        result = one_space(
            re.sub(r"\b(extern|static|inline|ctypedef|typedef|struct)\b", "", match["result"])
        )
        found[match["name"]] = f"{result} ({'' if parameters == 'void' else parameters})"
    return found


def fields(text: str, separator: str) -> dict[str, str]:
    """Name -> type of each field. `int a, *b` is two."""
    found = {}
    for line in filter(None, map(one_space, text.split(separator))):
        if line == "pass":
            continue
        first, *others = line.split(",")
        kind, name = re.fullmatch(r"(.*?)(\w+(?:\[[^\]]+\])?)", first).groups()  # type: ignore[union-attr]
        for one in [name, *others]:
            found[one.strip()] = kind.strip()
    return found


@pytest.fixture(scope="module")
def header() -> str:
    return COMMENT.sub("", "\n".join(path.read_text() for path in HEADERS))


@pytest.fixture(scope="module")
def declared() -> str:
    text = re.sub(r"#[^\n]*", "", DECLARED.read_text())
    return re.sub(r'\w+ "(\w+)"', r"\1", text)  # Cython's own name for what C calls otherwise


def test_functions_are_declared_as_the_header_has_them(header: str, declared: str) -> None:
    expected, found = functions(header), functions(declared)
    assert len(found) > 50
    wrong = {
        name: (signature, expected.get(name))
        for name, signature in found.items()
        if expected.get(name) != signature
    }
    assert not wrong


def test_structs_are_declared_as_the_header_has_them(header: str, declared: str) -> None:
    expected = {m["name"]: fields(m["fields"], ";") for m in STRUCT.finditer(header)}
    structs = {m["name"]: fields(m["fields"], "\n") for m in DECLARED_STRUCT.finditer(declared)}
    assert len(structs) > 10
    for name, found in structs.items():
        for field, kind in found.items():
            own = expected.get(name, {})
            assert own.get(field) == kind, f"{name}.{field}"


def test_a_wrong_declaration_is_seen(header: str) -> None:
    assert functions("int mmrt_f(const int *a, size_t n);") == {
        "mmrt_f": "int (const int * a, size_t n)"
    }
    assert functions(header)["mmrt_cpu_count"] == "int ()"
    assert fields("uint32_t a, b; const char *c; uint64_t dims[4]", ";") == {
        "a": "uint32_t", "b": "uint32_t", "c": "const char *", "dims[4]": "uint64_t",
    }  # fmt: skip
