"""What the operating system lets this process have."""

from pathlib import Path

from mmrt.counters import cgroups


def available_memory() -> int:
    """Bytes that this process can still fill without anything being swapped or killed.

    The system's MemAvailable, or less where the cgroups around this process leave less. Both count
    pages of other files as free, as they can be read again.
    """
    available = [_numbers(Path("/proc/meminfo")).get("MemAvailable:", 0) * 1024]
    for folder, version in cgroups():
        limits, usage, files = _LIMITED_BY[version]
        stat = _numbers(folder / "memory.stat")
        reclaimable = sum(stat.get(name, 0) for name in files)
        for limit in filter(None, (_bytes(folder / name) for name in limits)):
            available.append(limit - (_bytes(folder / usage) or 0) + reclaimable)
    return max(min(available), 0)


# By version of the cgroup interface: limits, what counts against them, and how much of that is
# pages of files.
_LIMITED_BY = {
    1: (
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
    2: (("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file")),
}


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
