"""Stages for tests: behind sockets in this process, or in processes of their own."""

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from command import start

from mmrt.cluster.server import StageServer
from mmrt.cluster.stage import Stage

SECRET = b"a secret that no test guesses"


@contextmanager
def serving(path: Path, layers: range | None, port: int = 0, **options: Any) -> Iterator[str]:
    """The address of a stage in a thread of this process."""
    with Stage(path, layers, **options) as stage:
        server = StageServer(stage, ("127.0.0.1", port), SECRET)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield "{}:{}".format(*server.address)
        finally:
            server.close()
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def serving_all(path: Path, ends: Sequence[int], **options: Any) -> Iterator[list[str]]:
    """The addresses of stages that are cut at all but the first and last of `ends`."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(path, range(*pair), **options)) for pair in pairwise(ends)
        ]


class Process:
    """A stage in a process of its own, and where it listens."""

    def __init__(self, path: Path, layers: str, secret: Path, port: int = 0) -> None:
        self.process = start(
            *("stage", path, "--layers", layers, "--listen", f"127.0.0.1:{port}", "-t", 1),
            *("--secret-file", secret, "--exact"),
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(f"layers {layers} listen at 127.0.0.1:"), line
        self.place = line.split()[-1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
