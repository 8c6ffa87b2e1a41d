"""What the operating system offers to users of paging, and how much it lets this process have."""

import mmap
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmrt.core import _probe
from mmrt.core.arguments import file_status
from mmrt.memory.counters import cgroups, memory_limit, resident

_PROC = Path("/proc")
_SYS = Path("/sys")


@dataclass(frozen=True)
class OsInfo:
    """The system as paging sees it. Sizes are in bytes; None: not there, or the system does not
    tell."""

    kernel: str
    """Its release, such as "6.1.0"."""

    page_size: int

    huge_page_size: int | None
    """Of the huge pages that root reserves (flag "hugepages")."""

    huge_pages_free: int
    """How many of these are reserved and not in use."""

    transparent_huge_pages: str | None
    """Which memory gets them unasked: "always", "madvise" (only where advised) or "never"."""

    memlock_limit: int | None
    """How much this process may lock (RLIMIT_MEMLOCK); None: any amount."""

    memory: int
    """Of the machine."""

    available_memory: int
    """See available_memory()."""

    cgroup_limit: int | None
    """The smallest memory limit of the cgroups around this process."""

    swap: int

    advice: dict[str, str]
    """Each advice of Mapping.advise() -> "available", or why not."""

    calls: dict[str, str]
    """System calls that not every kernel offers -> "available", or why not."""

    file_system: str | None = None
    """Of the path that was asked about."""

    read_ahead: int | None = None
    """How far a fault reads on the device of the path that was asked about."""

    def __str__(self) -> str:
        def size(value: int | None, none: str) -> str:
            return none if value is None else f"{value:,} bytes"

        lines = [
            f"Linux {self.kernel}, pages of {self.page_size} bytes",
            f"transparent huge pages: {self.transparent_huge_pages or 'none'}; "
            f"reserved ones: {self.huge_pages_free} free of {size(self.huge_page_size, 'no size')}",
            f"memory: {size(self.memory, '?')}, available {size(self.available_memory, '?')}, "
            f"cgroup limit {size(self.cgroup_limit, 'none')}, swap {size(self.swap, '?')}",
            f"may lock: {size(self.memlock_limit, 'any amount')}",
        ]
        if self.file_system is not None:
            ahead = size(self.read_ahead, "unknown")
            lines.append(f"file system: {self.file_system}, read-ahead {ahead}")
        for title, states in (("advice", self.advice), ("system calls", self.calls)):
            there = [name for name, state in states.items() if state == "available"]
            lines.append(f"{title}: {', '.join(there)}")
            lines += [f"  {name}: {states[name]}" for name in states if name not in there]
        return "\n".join(lines)


def os_info(path: str | os.PathLike[str] | None = None) -> OsInfo:
    """What the kernel offers, asked of it now, and for `path` what its file system and device do.

    Raises FileError where there is no such path.
    """
    memory = _numbers(_PROC / "meminfo")
    huge_page = memory.get("Hugepagesize:", 0) * 1024
    thp = _text(_SYS / "kernel/mm/transparent_hugepage/enabled")
    return OsInfo(
        kernel=platform.release(),
        page_size=mmap.PAGESIZE,
        huge_page_size=huge_page or None,
        huge_pages_free=memory.get("HugePages_Free:", 0),
        transparent_huge_pages=thp[thp.find("[") + 1 : thp.find("]")] or None,
        memlock_limit=memlock_limit(),
        memory=total_memory(),
        available_memory=available_memory(),
        cgroup_limit=memory_limit(),
        swap=memory.get("SwapTotal:", 0) * 1024,
        advice=_probe.advice(),
        calls=_probe.calls(),
        file_system=None if path is None else _file_system(path),
        read_ahead=None if path is None else read_ahead(path),
    )


def read_ahead(path: str | os.PathLike[str]) -> int | None:
    """Bytes that a fault in the file at `path` reads at most, by the setting of its device; None if
    that is not known."""
    device = file_status("path", path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    kilobytes = _text(_SYS / "class/bdi" / name / "read_ahead_kb").strip()
    return int(kilobytes) * 1024 if kilobytes.isdigit() else None


class Bound(NamedTuple):
    """One of the bounds of this process's memory, in bytes."""

    name: str
    limit: int
    used: int
    """What counts against the limit and cannot be taken back: all but pages of files."""

    margin: int
    """What is better left free: the kernel's own needs, the limits of these figures."""

    files: int | None = None
    """Of pages of files, what counts against the limit and can be taken back; None: all of them."""


def bounds(locked: int = 0) -> list[Bound]:
    """The machine's memory, and the limits of the cgroups around this process.

    locked: bytes of files that this process has locked, and would unlock if need be.
    """
    anon, _, _ = resident()
    free = _numbers(_PROC / "meminfo").get("MemAvailable:", 0) * 1024 + locked
    found = [Bound("this machine's free memory", free + anon, anon, (64 << 20) + free // 50)]
    for folder, version in cgroups():
        limits, usage, files, unevictable = _LIMITED_BY[version]
        stat = _numbers(folder / "memory.stat")
        reclaimable = sum(stat.get(name, 0) for name in files)
        reclaimable += min(locked, stat.get(unevictable, 0))
        for name in limits:
            limit = _bytes(folder / name)
            if limit is not None:
                used = max((_bytes(folder / usage) or 0) - reclaimable, 0)
                margin = (8 << 20) + limit // 256
                found.append(Bound(f"{folder / name}", limit, used, margin, reclaimable))
    return found


def available_memory() -> int:
    """Bytes that this process can still fill without anything being swapped or killed.

    The system's MemAvailable, or less where the cgroups around this process leave less. Both count
    pages of other files as free, as they can be read again.
    """
    return max(min(bound.limit - bound.used for bound in bounds()), 0)


def total_memory() -> int:
    """Bytes of the machine; 0 if it does not tell."""
    return _numbers(_PROC / "meminfo").get("MemTotal:", 0) * 1024


# By version of the cgroup interface: limits, what counts against them, how much of that is pages of
# files, and how much is locked.
_LIMITED_BY = {
    1: (
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
        "total_unevictable",
    ),
    2: (
        ("memory.max", "memory.high"),
        "memory.current",
        ("active_file", "inactive_file"),
        "unevictable",
    ),
}


def memlock_limit() -> int | None:
    """Bytes that this process may lock; None: any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    may_lock_all = 1 << 14  # CAP_IPC_LOCK
    for line in _text(_PROC / "self/status").splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) & may_lock_all:
            return None
    return None if soft == resource.RLIM_INFINITY else soft


def _file_system(path: str | os.PathLike[str]) -> str | None:
    """The type of the mount with the path's device number, as mountinfo lists them."""
    device = file_status("path", path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    found = None
    for line in _text(_PROC / "self/mountinfo").splitlines():
        words = line.split()
        if words[2] == name:
            found = words[words.index("-") + 1]
    return found


def _bytes(path: Path) -> int | None:
    """The number in a file; None where there is none, and for the words and numbers that say "no
    limit"."""
    value = _text(path).strip()
    return int(value) if value.isdigit() and int(value) < 1 << 60 else None


def _numbers(path: Path) -> dict[str, int]:
    """A file of lines `name number ...`."""
    words = (line.split() for line in _text(path).splitlines())
    return {name: int(number) for name, number, *_ in words if number.isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
