"""The fuzzers of tests/fuzz, each for a moment; and that they notice what they are there for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent / "fuzz"
FUZZERS = sorted(path.stem for path in FOLDER.glob("fuzz_*.py"))


def fuzz(program: str | Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, program, "--out", folder / "findings", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", FUZZERS)
def test_nothing_is_found_in_a_moment(name: str, tmp_path: Path) -> None:
    done = fuzz(FOLDER / f"{name}.py", tmp_path, "--seconds", "1.5")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) executions in .*, (\d+) of them accepted, 0 findings", done.stdout)
    assert found and int(found[1]) > 5 and int(found[2]) > 0, done.stdout


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        ("raise KeyError('mmrt')", "KeyError"),
        ("os.abort()", "the process ended"),
        ("bytearray(1 << 40)", "MemoryError"),
        ("time.sleep(9)", "more than 0.5 s"),
    ],
)
def test_what_goes_wrong_is_found(does: str, kind: str, tmp_path: Path) -> None:
    program = tmp_path / "fuzz_it.py"
    program.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(FOLDER)!r})
import fuzzing

def one(c):
    if c.below(40) == 7:
        {does}

fuzzing.Fuzzer("it", one, seconds=0.5).main()
""")
    done = fuzz(program, tmp_path, "--seconds", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"it: {kind}" in done.stdout
    kept = sorted((tmp_path / "findings").glob("*.bin"))
    assert kept and kept[0].read_bytes()[0] % 40 == 7
    if kind == "KeyError":
        again = fuzz(program, tmp_path, "--reproduce", str(kept[0]))
        assert again.returncode == 1 and "KeyError" in again.stderr
