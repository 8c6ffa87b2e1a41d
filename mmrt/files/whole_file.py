"""Files that appear under their name only once they are whole."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmrt.errors import FileError


class WholeFile:
    """A file in the making, written front to back. `path` is the name that it will have."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size = 0

    def reserve(self, n_bytes: int) -> None:
        """Takes the room for all that is to be written, so that a full disk shows now."""
        if n_bytes:
            with _refusals(self.path, f"no room for {n_bytes} bytes"):
                os.posix_fallocate(self._descriptor, 0, n_bytes)

    def write(self, data: bytes | memoryview) -> None:
        with memoryview(data).cast("B") as left, _refusals(self.path, "cannot be written"):
            at = 0
            while at < len(left):
                at += os.write(self._descriptor, left[at:])
            self.size += at

    def _finish(self) -> None:
        with _refusals(self.path, "cannot be written"):
            os.ftruncate(self._descriptor, self.size)
            os.fsync(self._descriptor)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[WholeFile]:
    """Opens a file for writing in the folder of `path`, without a name.

    When the block ends it is on the disk and takes the name `path`, in place of what had it before;
    when the block fails, or the process ends however it may, it is gone. (On file systems that have
    no files without names it is `.mmrt-*.part` until then, and only the block's failure deletes
    it.) Raises FileError where the system refuses, or `path` is something else than a regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileError(f"{target}: is not a regular file, and cannot be replaced")
    temporary = target.with_name(f".mmrt-{secrets.token_hex(4)}.part")
    with _refusals(target, "cannot be created"):
        descriptor, named = _create(temporary)
    try:
        file = WholeFile(target, descriptor)
        yield file
        file._finish()
        with _refusals(target, "cannot be replaced"):
            if not named:  # a link replaces nothing: it takes a name first
                link = f"/proc/self/fd/{descriptor}"
                os.link(link, temporary, src_dir_fd=descriptor)  # or it would link the link itself
                named = True
            os.replace(temporary, target)
    except BaseException:
        if named:
            with suppress(OSError):
                os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _create(temporary: Path) -> tuple[int, bool]:
    """A descriptor of a new file, and whether it has the name `temporary`."""
    if os.path.exists("/proc/self/fd"):
        try:
            return os.open(
                temporary.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o666
            ), False
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(temporary, flags, 0o666), True


@contextmanager
def _refusals(path: Path, what: str) -> Iterator[None]:
    """The system's errors as FileError."""
    try:
        yield
    except OSError as error:
        said = f"{path}: {what}: {os.strerror(error.errno or 0)}"
        raise FileError(error.errno, said) from error
