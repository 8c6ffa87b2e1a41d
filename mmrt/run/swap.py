"""Where texts are saved that have given their memory up, until they go on."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref

from mmrt.core.state import StateStore
from mmrt.errors import FileError
from mmrt.run.saved import Saved, is_abandoned

_PREFIX = "mmrt-swap-"


class Swap(Saved):
    """Files of texts that have given their memory up; they go with the process. Raises FileError
    where there is no disk to write to."""

    def __init__(self, store: StateStore, directory: str | None = None) -> None:
        place = _scratch_directory() if directory is None else directory
        try:
            _remove_left_behind(place)
            self._whole = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
            self._held = os.open(self._whole, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._held, fcntl.LOCK_EX)
            self._end = weakref.finalize(self, _remove, self._whole, self._held, os.getpid())
        except OSError as error:
            raise FileError(error.errno, f"cannot save texts: {error.strerror}", place) from None
        super().__init__(self._whole, store, bytes(16))

    def close(self) -> None:
        super().close()
        self._end()


def _remove(whole: str, held: int, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(whole, ignore_errors=True)
        os.close(held)


def _scratch_directory() -> str:
    """Where files are on a disk, and not in memory as those of a tmpfs."""
    cache = os.path.join(os.path.expanduser("~"), ".cache", "mmrt")
    for directory in ("/var/tmp", tempfile.gettempdir(), cache):
        with contextlib.suppress(OSError):
            if directory == cache:
                os.makedirs(cache, exist_ok=True)
            if os.access(directory, os.W_OK) and not _is_in_memory(directory):
                return directory
    return tempfile.gettempdir()


def _is_in_memory(directory: str) -> bool:
    """Whether the file system that the directory is on is a tmpfs."""
    device = os.stat(directory).st_dev
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[2] == f"{os.major(device)}:{os.minor(device)}":
                return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False


def _remove_left_behind(place: str) -> None:
    """Directories of processes that were killed."""
    for entry in os.scandir(place):
        ours = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
        if ours and is_abandoned(entry.path):
            shutil.rmtree(entry.path, ignore_errors=True)
