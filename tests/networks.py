"""A network that a test has for itself: hosts, which are namespaces, on lines that can be cut."""

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000


class _RefusedError(Exception):
    pass


def _run(*words: object) -> None:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


class Network:
    """Of the thread that makes it, and of what that thread starts: 10.0.0.1, and a host for each
    process of start(), from 10.0.0.2 on, whose interface is eth0."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise _RefusedError(f"unshare: {os.strerror(ctypes.get_errno())}")
        self._hosts = 0
        try:
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "bridge", "type", "bridge")
            _run("ip", "addr", "add", "10.0.0.1/24", "dev", "bridge")
            _run("ip", "link", "set", "bridge", "up")
        except (FileNotFoundError, RuntimeError) as error:
            raise _RefusedError(str(error)) from None

    def start(self, *command: object) -> "subprocess.Popen[str]":
        """Starts this on the next host, when its line is there. Its output can be read."""
        self._hosts += 1
        number = self._hosts
        process = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", 'read go; exec "$@"', "sh", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        deadline = time.monotonic() + 60
        while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
            assert time.monotonic() < deadline  # it has not left our network yet
            time.sleep(0.001)
        line, inside = f"line{number}", ("nsenter", "-n", "-t", process.pid)
        _run(
            "ip", "link", "add", line, "type", "veth", "peer", "name", "eth0", "netns", process.pid
        )
        _run("ip", "link", "set", line, "master", "bridge", "up")
        _run(*inside, "ip", "addr", "add", f"10.0.0.{number + 1}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run(*inside, "ip", "link", "set", device, "up")
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
        return process

    def cut(self, number: int) -> None:
        """What goes to host `number`, from 1 on, or comes from it, is lost; no one is told."""
        _run("ip", "link", "set", f"line{number}", "nomaster")

    def mend(self, number: int) -> None:
        _run("ip", "link", "set", f"line{number}", "master", "bridge")


def in_network(work: Callable[[Network], Any]) -> None:
    """Calls work(network) in a thread; what it raises fails the test. Skips it where no network can
    be made."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work(Network())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    if raised and isinstance(raised[0], _RefusedError):
        pytest.skip(f"no network can be made here: {raised[0]}")
    if raised:
        raise raised[0]
