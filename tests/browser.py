"""A headless browser for the tests of HTML pages; they are skipped where there is none."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def _open(path: Path, *options: str) -> str:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium is not installed")
    command = [chromium, "--headless", "--disable-gpu", "--hide-scrollbars", *options]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=2000"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # as root it has none
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"chromium does not run here: {done.stderr.strip()[-200:]}")
    return done.stdout


def dom(path: Path) -> str:
    """The page once it is loaded and its scripts have run."""
    return _open(path, "--dump-dom")


def screenshot(path: Path, width: int, height: int) -> Path:
    picture = path.with_suffix(".shot.png")
    _open(path, f"--screenshot={picture}", f"--window-size={width},{height}")
    return picture
