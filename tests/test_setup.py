"""What the build needs, and what it says where that is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# A compiler that does not find the headers whose path or name has this word in it.
BLIND = """#!/bin/sh
source=$(cat)
case "$source" in *{word}*) echo "error: no such file: {word}" >&2; exit 1;; esac
"""


def build(folder: Path, compiler: str, *prelude: str) -> subprocess.CompletedProcess[str]:
    command = ["build_clib", f"--build-clib={folder}", f"--build-temp={folder}"]
    return subprocess.run(
        [sys.executable, "-c", "\n".join((*prelude, "exec(open('setup.py').read())")), *command],
        cwd=ROOT,
        env={**os.environ, "CC": compiler},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("word", "package"), [("pthread.h", "libc6-dev"), ("Python.h", "python3-dev")]
)
def test_missing_headers_are_told_in_one_line(tmp_path: Path, word: str, package: str) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(BLIND.format(word=word))
    compiler.chmod(0o755)
    done = build(tmp_path, str(compiler))
    assert done.returncode == 1
    assert done.stderr.startswith("mmrt's build needs") and done.stderr.count("\n") == 1
    assert word in done.stderr and f"apt install {package}" in done.stderr


def test_a_missing_compiler_is_told_in_one_line(tmp_path: Path) -> None:
    done = build(tmp_path, "/no/such/cc")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "needs a C11 compiler: " in done.stderr and "apt install gcc" in done.stderr


def test_another_system_is_told_in_one_line(tmp_path: Path) -> None:
    done = build(
        tmp_path, "cc", "import sys, setuptools.command.build_ext", "sys.platform = 'plan9'"
    )
    assert (done.returncode, done.stderr) == (1, "mmrt runs on Linux alone, and this is plan9\n")
