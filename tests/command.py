"""Calling `mmrt` in tests: in this process, or as one of its own."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import mmrt
from mmrt.cli import main

# Where this process found mmrt. Others that start in this folder find the same one.
HOME = Path(mmrt.__file__).absolute().parents[1]

STORY = "Once upon a time"


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    def assert_refused(self, status: int, *words: str) -> None:
        """One line on stderr with `words` in it, and nothing else."""
        assert (self.status, self.out, self.err.count("\n")) == (status, "", 1), self
        assert self.err.startswith("mmrt")
        for word in words:
            assert word in self.err


def call(*arguments: object, stdin: str | bytes = "") -> Ended:
    """Calls main() with `arguments`, in this process, with `stdin` as its standard input."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    read, out, err = (io.TextIOWrapper(io.BytesIO(b), "utf-8") for b in (given, b"", b""))
    with mock.patch("sys.stdin", read), redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    out.seek(0)
    err.seek(0)
    return Ended(status, out.read(), err.read())


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Starts `mmrt` as a process of its own."""
    words = [str(a.absolute()) if isinstance(a, Path) else str(a) for a in arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "mmrt", *words],
        cwd=HOME,
        text=True,
        # Tests may run in the background of a shell, where SIGINT is ignored, as it would be here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def await_text(terminal: int, text: bytes, seconds: float = 60) -> bytes:
    """Reads from the terminal until `text` comes."""
    os.set_blocking(terminal, False)
    read = b""
    deadline = time.monotonic() + seconds
    while text not in read:
        assert time.monotonic() < deadline, read
        try:
            read += os.read(terminal, 4096)
        except BlockingIOError:
            time.sleep(0.01)
    return read
