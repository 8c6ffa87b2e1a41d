"""A guest of two memory nodes in qemu, whose only process is guest.c.

Its kernel is a Debian one (see fetch_kernel.py); the rest is made here: an initramfs that holds the
test, linked statically with the core, and a disk with the files that it maps.
"""

import os
import platform
import shutil
import stat
import struct
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "tests/numa/guest.c"
CC = os.environ.get("CC", "cc").split()
SECONDS = 240  # it takes about 15 on two quiet cores, by emulation alone


class Absent(Exception):
    """What the guest needs and this machine does not have."""


def run(folder: Path) -> str:
    """What the guest says on its console. Raises Absent."""
    if platform.machine() != "x86_64":
        raise Absent("the guest is an x86-64 machine")
    qemu, mke2fs = _tool("qemu-system-x86_64"), _tool("mke2fs")
    kernel = os.environ.get("MMRT_TEST_KERNEL")
    if not kernel:
        raise Absent("MMRT_TEST_KERNEL is not set: see tests/numa/fetch_kernel.py")
    init = _build(folder)
    initramfs = folder / "initramfs"
    initramfs.write_bytes(_archive({"dev": None, "dev/console": (5, 1), "init": init.read_bytes()}))
    disk = _disk(folder, mke2fs)
    command = [qemu, "-accel", "tcg,thread=multi", "-machine", "pc", "-nodefaults", "-no-reboot"]
    command += ["-display", "none", "-serial", "stdio", "-smp", "2", "-m", "256M"]
    for node in ("0", "1"):
        command += ["-object", f"memory-backend-ram,id=ram{node},size=128M"]
        command += ["-numa", f"node,nodeid={node},cpus={node},memdev=ram{node}"]
    command += ["-drive", f"file={disk},if=none,id=disk,format=raw,snapshot=on"]
    command += ["-device", "nvme,drive=disk,serial=disk"]
    command += ["-kernel", kernel, "-initrd", str(initramfs)]
    # Nothing but the test is to move pages.
    command += ["-append", "console=ttyS0 quiet panic=-1 numa_balancing=disable"]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        raise AssertionError(f"the guest did not end in {SECONDS} s; it said:\n{said}") from None
    return ended.stdout.decode(errors="replace")


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Absent(f"there is no {name} here")
    return path


def _build(folder: Path) -> Path:
    """guest.c and all of the core but its vector units, linked statically."""
    core = [str(path) for path in (ROOT / "csrc").rglob("*.c") if "/isa/" not in str(path)]
    init = folder / "init"
    command = [*CC, "-std=gnu11", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/c'}", str(SOURCE)]
    try:
        built = subprocess.run([*command, *core, "-lm", "-o", init], capture_output=True, text=True)
    except FileNotFoundError:
        raise Absent("there is no C compiler here") from None
    if "cannot find -l" in built.stderr:
        raise Absent("the C library cannot be linked statically here")
    assert built.returncode == 0, built.stderr
    return init


def _disk(folder: Path, mke2fs: str) -> Path:
    """An ext4 with the files that guest.c describes."""
    files = folder / "files"
    files.mkdir()
    with open(files / "weights", "wb") as weights:
        for page in range(1024):
            weights.write(struct.pack("<f", page + 1) * 1024)
    with open(files / "large", "wb") as large:
        large.truncate(128 << 20)
    disk = folder / "disk"
    command = [mke2fs, "-q", "-t", "ext4", "-b", "4096", "-d", str(files), str(disk), "16M"]
    subprocess.run(command, check=True, capture_output=True)
    return disk


def _archive(entries: dict[str, bytes | tuple[int, int] | None]) -> bytes:
    """A cpio archive as the kernel unpacks it ("newc": Documentation/driver-api/early-userspace/
    buffer-format.rst): folders (None), character devices (major, minor), and programs."""
    parts = []
    for inode, (name, content) in enumerate([*entries.items(), ("TRAILER!!!", b"")]):
        data = content if isinstance(content, bytes) else b""
        device = content if isinstance(content, tuple) else (0, 0)
        kind = (
            stat.S_IFDIR if content is None
            else stat.S_IFCHR if isinstance(content, tuple)
            else stat.S_IFREG
        )  # fmt: skip
        path = name.encode() + b"\0"
        fields = [inode, kind | 0o755, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(header + path), _padded(data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
