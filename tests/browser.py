"""A headless browser for the tests of HTML pages; they are skipped where there is none."""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest


def _installed() -> str:
    """Where it is."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium is not installed")
    return chromium


def _run(address: str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [_installed(), "--headless", "--disable-gpu", "--hide-scrollbars", *options]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # as root it has none
    return subprocess.run([*command, address], capture_output=True, text=True, timeout=120)


@cache
def _trouble() -> str:
    """Why chromium does not run here, whatever the page; "" where it does."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = _run("about:blank", Path(profile), "--dump-dom")
    return done.stderr.strip()[-200:] if done.returncode else ""


def require() -> str:
    """Where chromium is. Skips the test where it is not, or does not run."""
    if _trouble():
        pytest.skip(f"chromium does not run here: {_trouble()}")
    return _installed()


def _open(path: Path, *options: str) -> str:
    require()
    done = _run(path.as_uri(), path.parent / "profile", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dom(path: Path) -> str:
    """The page once it is loaded and its scripts have run."""
    return _open(path, "--dump-dom")


def screenshot(path: Path, width: int, height: int) -> Path:
    picture = path.with_suffix(".shot.png")
    _open(path, f"--screenshot={picture}", f"--window-size={width},{height}")
    return picture
