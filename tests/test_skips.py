"""The count of skipped tests, and the marks of those that need a model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from skips import LIST, unlisted

ALLOWED = """# who, tests, reason
all  tests/test_a.py::test_*  no * here

user tests/test_a.py::*       only root may
"""

RUN = """import pytest

@pytest.mark.skipif(True, reason="there are several nodes here")
def test_listed() -> None: ...

def test_unlisted() -> None:
    pytest.skip("it evicts nothing")

@pytest.fixture
def fixture() -> None:
    pytest.skip("no cgroup")

def test_of_a_fixture(fixture: None) -> None: ...
"""


def test_a_skip_is_listed_by_test_and_reason() -> None:
    listed = [("tests/test_a.py::test_b[1]", "no qemu here")]
    others = [
        ("tests/test_a.py::test_b[1]", "no qemu"),
        ("tests/test_b.py::test_b", "no qemu here"),
        ("tests/test_a.py::test_c", "only root may"),
    ]
    lines = [f"{test}: {reason}" for test, reason in others]
    assert unlisted(listed + others, ALLOWED, root=True) == lines
    assert unlisted(listed + others, ALLOWED, root=False) == lines[:2]


def test_the_list_names_tests_that_there_are() -> None:
    for line in LIST.read_text().splitlines():
        if line[:1] not in ("", "#"):
            who, tests, _ = line.split(maxsplit=2)
            file, _, name = tests.partition("::")
            assert who in ("all", "user") and list(ROOT.glob(file)), line
            if name.strip("*"):
                assert f"def {name.rstrip('*')}" in (ROOT / file).read_text(), line


@pytest.mark.parametrize("counted", [False, True])
def test_a_run_with_other_skips_fails(counted: bool, tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("skips.py", "allowed_skips.txt"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "conftest.py").write_text("from skips import *")
    (tests / "test_numa.py").write_text(RUN)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        [*command, *["--count-skips"] * counted],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert done.returncode == int(counted), done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("tests/test_numa.py::")]
    assert lines == counted * [
        "tests/test_numa.py::test_unlisted: it evicts nothing",
        "tests/test_numa.py::test_of_a_fixture: no cgroup",
    ]
