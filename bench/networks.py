"""Machines on one: network namespaces, on lines that have a rate and a delay, and can be cut."""

import ctypes
import os
import subprocess
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000


class RefusedError(Exception):
    """Why no network can be made here."""


def _run(*words: object) -> None:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


class Network:
    """Of the thread that makes it, and of what that thread starts: 10.0.0.1, and a host for each
    process of start(), from 10.0.0.2 on, whose interface is eth0.

    rate: bits a second that each machine sends at most. delay: seconds until what it sends arrives.
    Raises RefusedError where that cannot be made: as a user who is not root, or for want of a part
    of the kernel.
    """

    def __init__(self, rate: float | None = None, delay: float = 0.0) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise RefusedError(f"unshare: {os.strerror(ctypes.get_errno())}")
        self._hosts = 0
        self._line: list[str] = []
        if delay:  # netem can do both
            self._line = ["netem", "delay", f"{delay * 1e6:.0f}us"]
            self._line += ["rate", f"{rate:.0f}bit"] if rate else []
        elif rate:
            self._line = ["tbf", "rate", f"{rate:.0f}bit", "burst", "66k", "latency", "1s"]
        try:
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "bridge", "type", "bridge")
            _run("ip", "addr", "add", "10.0.0.1/24", "dev", "bridge")
            _run("ip", "link", "set", "bridge", "up")
            if self._line:
                _run("tc", "qdisc", "add", "dev", "bridge", "root", *self._line)
        except (FileNotFoundError, RuntimeError) as error:
            raise RefusedError(str(error)) from None

    def start(self, *command: object, cwd: str | Path = "/") -> "subprocess.Popen[str]":
        """Starts this on the next host, when its line is there. Its output can be read, and its
        input written."""
        self._hosts += 1
        number = self._hosts
        process = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", 'read go; exec "$@"', "sh", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
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
        if self._line:
            _run(*inside, "tc", "qdisc", "add", "dev", "eth0", "root", *self._line)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        return process

    def cut(self, number: int) -> None:
        """What goes to host `number`, from 1 on, or comes from it, is lost; no one is told."""
        _run("ip", "link", "set", f"line{number}", "nomaster")

    def mend(self, number: int) -> None:
        _run("ip", "link", "set", f"line{number}", "master", "bridge")
