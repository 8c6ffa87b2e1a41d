"""What the kernel has counted about this process. None stands for what it does not tell."""

import os
import resource
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmrt.core import _probe
from mmrt.core.arguments import file_status

_PROC = Path("/proc/self")

_Counted = TypeVar("_Counted", bound="_Counters")


class _Counters:
    """Numbers that can be subtracted, field by field; None, where either is, stays None."""

    def __sub__(self: _Counted, earlier: _Counted) -> _Counted:
        pairs = zip(astuple(self), astuple(earlier), strict=True)  # type: ignore[call-overload]
        return type(self)(*(None if None in (a, b) else a - b for a, b in pairs))


@dataclass(frozen=True)
class Reads(_Counters):
    """Page faults and reads so far. Subtract two of these for what happened in between."""

    major_faults: int
    """Page faults that waited for the disk."""

    minor_faults: int
    """Page faults that found their page in memory."""

    read_bytes: int | None
    """Bytes fetched from storage for this process, page faults and read-ahead included."""


@dataclass(frozen=True)
class Footprint(_Counters):
    """Memory, in bytes, at one moment. Subtract two of these for the growth in between."""

    rss: int | None
    """Resident: every page that the process has mapped, counted in full."""

    pss: int | None
    """The same, each page divided by the number of processes that map it."""

    rss_file: int | None
    """The part of rss that is pages of files, but of those that live in memory (tmpfs)."""

    rss_anon: int | None
    """The part of rss that belongs to no file."""

    rss_shared: int | None
    """The part of rss that is files in tmpfs, or memory shared with other processes."""

    page_tables: int | None
    """The process's page tables (VmPTE); not part of rss."""

    cgroup: int | None
    """What is charged to the memory cgroup of this process: the page cache that its processes
    brought in, and their anonymous memory."""

    peak_rss: int | None
    """The highest rss so far, by the kernel's own mark."""


@dataclass(frozen=True)
class FileShare(_Counters):
    """What this process has mapped of one file, in bytes."""

    size: int
    """Of the address ranges that map the file."""

    rss: int
    """Of the pages of these that are mapped now."""

    pss: int
    """The same, each page divided by the number of processes that map it."""

    huge: int
    """The part of rss that is mapped by huge pages (2 MiB on x86-64)."""


def reads() -> Reads:
    """A few microseconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Reads(usage.ru_majflt, usage.ru_minflt, _fields("io").get("read_bytes"))


def footprint() -> Footprint:
    """Takes longer the more is mapped, for the kernel walks the page tables: some milliseconds for
    a gigabyte.
    """
    status, rollup = _fields("status"), _fields("smaps_rollup")
    return Footprint(
        rss=rollup.get("Rss", status.get("VmRSS")),
        pss=rollup.get("Pss"),
        rss_file=status.get("RssFile"),
        rss_anon=status.get("RssAnon"),
        rss_shared=status.get("RssShmem"),
        page_tables=status.get("VmPTE"),
        cgroup=cgroup_charge(),
        peak_rss=status.get("VmHWM"),
    )


class Resident(NamedTuple):
    """Bytes of this process in memory; 0 for what the kernel does not tell."""

    anon: int
    files: int
    page_tables: int


def resident() -> Resident:
    """Takes 20 microseconds."""
    status = _fields("status")
    return Resident(*(status.get(name, 0) for name in ("RssAnon", "RssFile", "VmPTE")))


def anonymous_share() -> int | None:
    """Bytes of this process's anonymous memory, each page divided by the number of processes that
    have it (Pss_Anon). Takes as long as footprint()."""
    return _fields("smaps_rollup").get("Pss_Anon")


def page_tables() -> int | None:
    """Bytes of this process's page tables (VmPTE), without the rest of a Footprint."""
    return _fields("status").get("VmPTE")


def of_file(path: str | os.PathLike[str]) -> FileShare:
    """What this process has mapped of the file at `path`; zeros if nothing.

    Raises FileError where the file is gone.
    """
    about = file_status("path", path)
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
    name = os.path.realpath(path)
    found = {"Size": 0, "Rss": 0, "Pss": 0, "FilePmdMapped": 0}
    ours = False
    for line in _text(_PROC / "smaps").splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):  # a range: addresses, rights, offset, device, inode, path
            # On some file systems (btrfs, overlayfs) stat() names another device: the path helps.
            same_node = words[3:5] == [device, str(about.st_ino)]
            ours = same_node or (len(words) == 6 and words[5] == name)
        elif ours and words[0][:-1] in found:
            found[words[0][:-1]] += int(words[1]) * 1024
    return FileShare(*found.values())


def cgroup_charge() -> int | None:
    """Bytes charged to this process's own memory cgroup, the nearest one that is visible."""
    for folder, version in cgroups():
        charge = _text(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        if charge:
            return int(charge)
    return None


def cgroup_peak() -> int | None:
    """The most that was ever charged to that cgroup; None where the kernel does not say (cgroups of
    version 2 before Linux 5.19)."""
    for folder, version in cgroups():
        peak = _text(folder / ("memory.peak" if version == 2 else "memory.max_usage_in_bytes"))
        if peak:
            return int(peak)
    return None


def memory_limit() -> int | None:
    """The smallest limit that a cgroup around this process sets, in bytes."""
    limits = [
        _text(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).strip()
        for folder, version in cgroups()
    ]
    numbers = [int(limit) for limit in limits if limit.isdigit()]
    return min((n for n in numbers if n < 1 << 60), default=None)  # version 1 writes "none" so


def cgroups() -> Iterator[tuple[Path, int]]:
    """The folders of the memory cgroups around this process, inner ones first, and the version of
    their interface, 1 or 2.
    """
    for version in (1, 2):
        for folder in _probe.cgroups("memory", version):
            yield Path(folder), version


def _fields(name: str) -> dict[str, int]:
    """The numbers of a file of lines `key: value [kB]`, in bytes where it says kB."""
    found = {}
    for line in _text(_PROC / name).splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[key] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
