"""A hard limit on memory, page cache included, as containers have it."""

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from mmrt import counters


class NoCgroup(Exception):
    """Why a memory cgroup cannot be made here."""


class MemoryCgroup:
    """A new memory cgroup of either version, without swap; a context manager.

    Raises NoCgroup where that is not allowed.
    """

    def __init__(self, limit: int) -> None:
        self.folder, self._version = _make()
        name = "memory.max" if self._version == 2 else "memory.limit_in_bytes"
        swap, off = ("memory.swap.max", 0) if self._version == 2 else ("memory.swappiness", 0)
        self._write(name, limit)
        if (self.folder / swap).exists():
            self._write(swap, off)

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def _read(self, name: str, key: str = "") -> int:
        for line in (self.folder / name).read_text().splitlines():
            *keys, value = line.split()
            if keys == ([key] if key else []):
                return int(value)
        return 0

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs `words` in it, from the first instruction on."""
        # A shell moves itself and becomes the command: a forked Python would bring memory along.
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["sh", "-c", enter, str(self.folder / "cgroup.procs"), *words]

    @property
    def peak(self) -> int | None:
        """The most that was charged to it, in bytes."""
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        return self._read(name) if (self.folder / name).exists() else None

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return self._read(name, "oom_kill")

    @property
    def refaults(self) -> int:
        """Pages of files that had to be read again after they were pushed out."""
        return self._read("memory.stat", "workingset_refault_file")

    def __enter__(self) -> "MemoryCgroup":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.folder.rmdir()


_numbers = itertools.count()


def _make() -> tuple[Path, int]:
    why = "there is no memory controller"
    for folder, version in counters.cgroups():
        group = folder / f"mmrt_bench_{os.getpid()}_{next(_numbers)}"
        try:
            group.mkdir()
        except OSError as error:
            why = str(error)
            continue
        if (group / ("memory.max" if version == 2 else "memory.limit_in_bytes")).exists():
            return group, version
        group.rmdir()  # version 2, and the controller is not handed down to new cgroups here
    raise NoCgroup(f"cannot make a memory cgroup: {why}")


def require() -> None:
    """Ends the program with a message where no memory cgroup can be made."""
    try:
        with MemoryCgroup(1 << 30):
            pass
    except (NoCgroup, OSError) as error:
        sys.exit(f"skipped: {error} (as root, or in a delegated cgroup, it can be)")
