"""What the documents say: a row for every knob of paging, the call behind it, and its test; links;
figures."""

import ast
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import tiny_models
from conftest import ROOT
from test_chat import CHATML

from mmrt import default_model, numa
from mmrt.core import mapping
from mmrt.core.streaming import READERS
from mmrt.files.policies import POLICIES

TEXT = (ROOT / "README.md").read_text()
PAGING = ROOT / "docs/paging.md"
ROWS = [
    cells
    for line in PAGING.read_text().splitlines()
    if line.startswith("| ") and (cells := line.strip("| ").split(" | "))[1:]
]
KNOBS = {knob: call for knobs, call, _ in ROWS[2:] for knob in re.findall(r"`([^`]+)`", knobs)}
LINKS = [link for *_, tests in ROWS[2:] for link in re.findall(r"\[([^]]+)\]\(([^)]+)\)", tests)]

WORDS = {
    'flags="{}"': vars(mapping)["_FLAGS"],
    'advise("{}")': vars(mapping)["_ADVICE"],
    'advise_file("{}")': vars(mapping)["_FILE_ADVICE"],
    'policy="{}"': POLICIES,
    'reader="{}"': READERS,
    'set_policy("{}")': numa.MODES,
}

# Of methods and functions that are no knobs.
OTHERS = {"close", "fileno"}


@pytest.mark.parametrize("form", WORDS)
def test_every_word_has_a_row_and_no_row_has_other_words(form: str) -> None:
    pattern = re.escape(form).replace(r"\{\}", r"(\w+)")
    found = [match[1] for knob in KNOBS if (match := re.fullmatch(pattern, knob))]
    assert sorted(found) == sorted(WORDS[form])


def names(stub: str, of: str | None) -> Iterable[str]:
    """The methods of a class in a stub, or its functions."""
    body = ast.parse((ROOT / "mmrt" / stub).read_text()).body
    if of is not None:
        body = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == of).body
    for node in body:
        # Properties tell, they change nothing.
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            yield node.name


@pytest.mark.parametrize(
    ("stub", "of"),
    [("core/mapping.pyi", "Mapping"), ("core/numa.pyi", None)],
    ids=["Mapping", "numa"],
)
def test_every_method_and_function_has_a_row(stub: str, of: str | None) -> None:
    shown = {re.split(r"[(.]", knob)[0] for knob in KNOBS}
    found = {name for name in names(stub, of) if not name.startswith("_")} - OTHERS
    assert len(found) >= 5 and found <= shown


def test_every_argument_of_a_mapping_has_a_row() -> None:
    body = ast.parse((ROOT / "mmrt/core/mapping.pyi").read_text()).body
    cls = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == "Mapping")
    new = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__new__")
    arguments = [argument.arg for argument in new.args.args[1:]]
    assert len(arguments) == 6
    for argument in arguments:
        assert any(re.match(rf"{argument}\b", knob) for knob in KNOBS), argument


@pytest.mark.parametrize(
    ("listed", "form"),
    [
        ("flags.def", 'flags="{}"'),
        ("advice.def", 'advise("{}")'),
        ("file_advice.def", 'advise_file("{}")'),
    ],
)
def test_the_call_is_the_one_in_the_core(listed: str, form: str) -> None:
    lines = (ROOT / "csrc/map" / listed).read_text()
    found = re.findall(r'^MMRT_\w+\(\w+, "(\w+)", ([\w-]+)', lines, re.MULTILINE)
    assert [word for word, _ in found] == list(WORDS[form])
    for word, number in found:
        assert (number if number != "-1" else word) in KNOBS[form.format(word)]


@pytest.mark.parametrize(("name", "path"), LINKS)
def test_the_test_that_a_row_links_to_is_there(name: str, path: str) -> None:
    start = r"^TEST\(" if path.endswith(".c") else r"^def "
    assert re.search(rf"{start}{name}[()]", (PAGING.parent / path).read_text(), re.MULTILINE)


def test_every_row_has_a_call_and_a_test() -> None:
    assert ROWS[0] == ["knob", "system call", "test"] and len(ROWS) > 40
    for knobs, call, tests in ROWS[2:]:
        assert call and re.fullmatch(r"(\[\w+\]\([\w./]+\)(, )?)+", tests), knobs


def test_all_links_lead_somewhere() -> None:
    for page in ("README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))):
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            assert target.startswith("https://") or (folder / target).exists(), (page, target)


def test_cold_starts_are_those_that_were_measured() -> None:
    section = TEXT.split("\n### From a cold start\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    shown = {re.split("[`,]", cells[0].strip("`"))[0]: cells[1:] for cells in rows[2:]}
    measured = json.loads((ROOT / "bench/results/cold-start.json").read_text())["rows"]
    assert shown == {
        row["engine"]: [
            f"{row['seconds']:.2f}",
            f"{row['bytes_read'] / 1e9:.2f}",
            f"{row['major_faults']:.0f}",
            f"{row['ratio']:.2f}",
        ]
        for row in measured
    }
    assert shown.keys() >= POLICIES.keys()


def test_python_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.llama(type="Q8_0", context=512)
    model.metadata["tokenizer.chat_template"] = CHATML
    path = model.write(tmp_path / "default.gguf")
    monkeypatch.setattr(default_model, "path", lambda: path)
    snippets = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
