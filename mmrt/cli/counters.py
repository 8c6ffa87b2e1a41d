"""What the kernel has counted about this process. None stands for what it does not tell."""

import resource
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")


class Reads(NamedTuple):
    """Page faults and reads so far. Subtract two of these for what happened in between."""

    majflt: int
    """Page faults that waited for the disk."""

    minflt: int
    """Page faults that found their page in memory."""

    read_bytes: int | None
    """Bytes fetched from storage for this process, page faults and read-ahead included."""

    def since(self, earlier: "Reads") -> "Reads":
        n_bytes = None
        if self.read_bytes is not None and earlier.read_bytes is not None:
            n_bytes = self.read_bytes - earlier.read_bytes
        return Reads(self.majflt - earlier.majflt, self.minflt - earlier.minflt, n_bytes)


def reads() -> Reads:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Reads(usage.ru_majflt, usage.ru_minflt, _fields("io").get("read_bytes"))


def memory() -> dict[str, int | None]:
    """Bytes. peak_rss is the kernel's own high-water mark; the others are of this moment."""
    status, rollup = _fields("status"), _fields("smaps_rollup")
    return {
        "peak_rss": status.get("VmHWM"),
        "pss": rollup.get("Pss"),
        "rss_anon": status.get("RssAnon"),
        "rss_file": status.get("RssFile"),
        "page_tables": status.get("VmPTE"),
    }


def memory_limit() -> int | None:
    """The smallest limit that a cgroup around this process sets, in bytes."""
    limits = []
    for line in _text(_PROC / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # The path is the host's; inside a container only its end, or the root, may be there.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                limits.append(_text(folder / name).strip())
    numbers = [int(limit) for limit in limits if limit.isdigit()]
    return min((n for n in numbers if n < 1 << 60), default=None)  # version 1 writes "none" so


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
