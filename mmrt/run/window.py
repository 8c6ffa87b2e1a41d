"""A socket at which an engine can be seen from other processes of the same user."""

import errno
import os
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from mmrt.core.arguments import path as path_of
from mmrt.errors import FileError, MmrtError

# Seconds that a process which has asked may take to read the answer.
_PATIENCE = 5.0


class Window:
    """Sends whoever connects to the socket at `path` what the method `look` returns, and reads
    nothing of theirs; it does not keep the method's object. The file is open to its owner alone.
    What an engine that was killed left there is replaced; anything else is not.

    Raises FileError where the socket cannot be made.
    """

    def __init__(
        self, path: str | os.PathLike[str], look: "weakref.WeakMethod[Callable[[], str]]"
    ) -> None:
        self.path = os.path.abspath(path_of("sight", path))
        self._process = os.getpid()
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(self._socket.fileno(), 0o600)  # the mode of the file that bind() makes
            self._bind()
            self._socket.listen(8)
        except OSError as error:
            self._socket.close()
            if isinstance(error, FileError):
                raise
            raise FileError(error.errno, f"{self.path}: {error.strerror or error}") from None
        self._place = os.lstat(self.path)
        _windows.add(self)
        threading.Thread(
            target=_serve, args=(weakref.ref(self), self._socket, look), name="mmrt-window",
            daemon=True,
        ).start()  # fmt: skip

    def _bind(self) -> None:
        try:
            self._socket.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise FileError(f"{self.path}: it is there, and is no socket") from None
            if not _is_left_over(self.path):
                raise FileError(f"{self.path}: another engine shows itself there") from None
            os.unlink(self.path)
            self._socket.bind(self.path)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Takes the socket away; in a forked child, does nothing."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends accept(), which close() does not
        with suppress(OSError):
            if os.path.samestat(os.lstat(self.path), self._place):
                os.unlink(self.path)


def _is_left_over(path: str) -> bool:
    """Whether a socket is there at which nobody listens any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _serve(
    window: "weakref.ref[Window]",
    listening: socket.socket,
    look: "weakref.WeakMethod[Callable[[], str]]",
) -> None:
    with listening:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                alive = window()
                if alive is None or alive.closed:
                    return
                time.sleep(0.1)  # there are no descriptors left, say
                continue
            with connection, suppress(OSError, MmrtError):
                connection.settimeout(_PATIENCE)
                method = look()
                if method is not None:
                    connection.sendall(method().encode(), socket.MSG_NOSIGNAL)
                del method  # which holds the engine


def _close_in_child() -> None:
    """Else the child would listen on, without a thread that answers, when the parent has gone."""
    for window in list(_windows):
        window._socket.close()


_windows: "weakref.WeakSet[Window]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_in_child)
