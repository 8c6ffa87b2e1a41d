"""Every exception that mmrt raises on purpose."""

import errno
from typing import Any


class MmrtError(Exception):
    """The base of all of them: catch this to catch whatever mmrt refuses."""


class FileError(MmrtError, OSError):
    """A file cannot be opened, read or mapped. With the system's number of the error, as OSError
    takes it, it is the one below that is the number's."""

    def __new__(cls, *arguments: Any) -> "FileError":
        kind = _BY_NUMBER.get(arguments[0], cls) if len(arguments) > 1 else cls
        return super().__new__(kind if issubclass(kind, cls) else cls, *arguments)


class MissingFileError(FileError, FileNotFoundError):
    """There is no such file."""


class DeniedFileError(FileError, PermissionError):
    """This process may not do that with the file."""


_BY_NUMBER: dict[Any, type[FileError]] = {
    errno.ENOENT: MissingFileError,
    errno.EACCES: DeniedFileError,
    errno.EPERM: DeniedFileError,
}


class FormatError(MmrtError, ValueError):
    """A file's content breaks the rules of its format."""


class UnsupportedError(MmrtError, NotImplementedError):
    """The file or the request is sound, but mmrt does not know how to serve it."""


class ArgumentError(MmrtError, ValueError, TypeError):
    """An argument is out of its range, of the wrong kind, or unknown."""


class OutOfMemoryError(MmrtError, MemoryError):
    """Memory ran out, or a memory budget cannot be met."""


class NotFoundError(MmrtError, KeyError, IndexError):
    """A file has no tensor, or a tensor no row, of the name or number that was asked for."""

    __str__ = Exception.__str__  # KeyError's would quote it


class ViewError(MmrtError, BufferError):
    """Memory cannot be seen in the way that was asked for."""


class NoArrayError(ViewError, TypeError):
    """What was taken for an array of numbers holds none of a type that arrays have."""


class ClusterError(MmrtError, ConnectionError):
    """A machine of a cluster is not reached, does not answer, or answers what makes no sense."""


class InUseError(MmrtError, BufferError):
    """What is to be closed is still in use."""
