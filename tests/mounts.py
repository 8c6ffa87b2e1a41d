"""File systems that a test mounts for itself, in a child with a view of its own of all mounts."""

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from children import in_child

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 1 << 5, 1 << 12, 1 << 14, 1 << 18


class _Refused(Exception):
    pass


def _call(name: str, *arguments: object) -> None:
    words = [os.fsencode(a) if isinstance(a, str | Path) else a for a in arguments]
    if getattr(_libc, name)(*words) != 0:
        raise _Refused(f"{name}: {os.strerror(ctypes.get_errno())}")


def _tmpfs(file: Path, at: Path) -> None:
    _call("mount", "tmpfs", at, "tmpfs", 0, "size=64m")
    shutil.copy(file, at)


def _overlay(file: Path, at: Path) -> None:
    below = at.with_name("below")
    below.mkdir()
    _call("mount", "overlay", at, "overlay", 0, f"lowerdir={file.parent}:{below}")


def _read_only(file: Path, at: Path) -> None:
    _call("mount", file.parent, at, None, MS_BIND, None)
    _call("mount", None, at, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)


KINDS = {"tmpfs": _tmpfs, "overlay": _overlay, "read-only": _read_only}


def _own_view() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _call("unshare", CLONE_NEWNS)
    else:  # who may not mount is root of a world of their own
        _call("unshare", CLONE_NEWNS | CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)


def on(kind: str, file: Path, at: Path, work: Callable[[Path], object]) -> None:
    """Calls work(path) in a child, with `file` at that path on a file system of this kind, mounted
    at the folder `at`; what it raises fails the test. Skips the test where that is not allowed."""
    at.mkdir()

    def mounted() -> None:
        try:
            _own_view()
            KINDS[kind](file, at)
        except (_Refused, PermissionError) as reason:
            pytest.skip(f"{kind} cannot be mounted here: {reason}")
        work(at / file.name)

    in_child(mounted)
