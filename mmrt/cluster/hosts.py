"""Files of hosts: an address on each line, and what is known of the machine there.

10.0.0.1:7600  memory=6.8GiB speed=35GB/s disk=2GB/s hop=0.3ms rate=1gbit   # a comment
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmrt.cluster.wire import parse_address
from mmrt.errors import ArgumentError, FileError
from mmrt.memory.sizes import human, parse_size

_HOP = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg])bit")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Host:
    """A machine for a stage. Zero: not known; of the disk: it is not to be read in each step."""

    place: str
    memory: int = 0  # bytes that the stage may take
    speed: float = 0.0  # bytes of weights a second that it multiplies with
    disk: float = 0.0  # bytes a second
    hop: float = 0.5e-3  # seconds that a short message takes, one way
    rate: float = 125e6  # bytes a second on its line

    def __str__(self) -> str:
        """As a line of the file says it."""
        words = [self.place, f"memory={human(self.memory)}", f"speed={human(int(self.speed))}/s"]
        words += [f"disk={human(int(self.disk))}/s"] if self.disk else []
        words += [f"hop={self.hop * 1000:g}ms", f"rate={self.rate * 8 / 1e6:g}mbit"]
        return " ".join(word.replace(" ", "") if "=" in word else word for word in words)


def read_hosts(path: str | os.PathLike[str]) -> list[Host]:
    """The hosts in a file. ArgumentError, naming the line, for what is none; FileError
    where the system refuses."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition("#")[0].strip() for line in file]
    except OSError as error:
        raise FileError(error.errno, error.strerror, os.fspath(path)) from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error}") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        if line:
            try:
                hosts.append(parse_host(line.split()))
            except ArgumentError as error:
                raise ArgumentError(f"{os.fspath(path)}:{number}: {error}") from None
    return hosts


def places(hosts: Iterable[str] | str | os.PathLike[str]) -> list[str]:
    """The addresses in a file, or in a list. ArgumentError if there are none; as read_hosts()."""
    if isinstance(hosts, str | os.PathLike):
        found = [host.place for host in read_hosts(hosts)]
    else:
        found = list(hosts)
    for place in found:
        parse_address(place)
    if not found:
        raise ArgumentError("hosts: there are none")
    return found


def parse_host(words: Sequence[str]) -> Host:
    """Of the words of a line. ArgumentError for what is none."""
    place, *rest = words
    parse_address(place)
    told: dict[str, float] = {}
    for word in rest:
        name, _, value = word.partition("=")
        if name in told:
            raise ArgumentError(f"{name} is there twice")
        told[name] = _value(name, value)
    return Host(place, int(told.pop("memory", 0)), **told)


def _value(name: str, value: str) -> float:
    if name == "memory":
        return parse_size(value)
    if name in ("speed", "disk"):
        if not value.endswith("/s"):
            raise ArgumentError(f"{name}: expected bytes a second such as 2GB/s, found {value!r}")
        return parse_size(value.removesuffix("/s"))
    if name == "hop":
        if match := _HOP.fullmatch(value):
            return float(match[1]) * _SECONDS[match[2]]
        raise ArgumentError(f"hop: expected a time such as 0.3ms, found {value!r}")
    if name == "rate":
        if (match := _RATE.fullmatch(value)) and float(match[1]) > 0:
            return float(match[1]) * _BITS[match[2]] / 8
        raise ArgumentError(f"rate: expected bits a second such as 100mbit, found {value!r}")
    raise ArgumentError(f"there is no {name!r}; there are memory, speed, disk, hop, rate")
