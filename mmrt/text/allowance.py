"""What a template from a stranger may take: steps, bytes and depth, counted as it goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

DEEPEST_VALUE = 128
DEEPEST_CALL = 100

_T = TypeVar("_T")

_NODE = 64  # bytes of a value and of its place in a container, without the characters of text


class LimitError(Exception):
    """A limit has been reached; the message says which."""


class Size(NamedTuple):
    """How large a value is, each of its parts counted as often as it appears.

    bytes: of memory; nodes: how many values it is made of; depth: how deep they are nested.
    """

    bytes: int
    nodes: int
    depth: int


class Allowance:
    """Steps and bytes that are left. Bytes do not come back when a value is given up."""

    def __init__(self, steps: int, size: int) -> None:
        """steps: about a microsecond each; size: bytes of all values that are made."""
        self._steps = self._all_steps = steps
        self._bytes = self._all_bytes = size
        self._depth = 0

    def step(self, count: int = 1) -> None:
        """Counts `count` steps more."""
        self._steps -= count
        if self._steps < 0:
            raise LimitError(f"it takes more than the limit of {self._all_steps} steps")

    def require(self, size: int) -> None:
        """Fails if there are not `size` bytes left: to be asked before they are taken."""
        if size > self._bytes:
            raise LimitError(f"it makes more than the limit of {self._all_bytes} bytes of text")

    def take(self, size: int) -> None:
        """Counts `size` bytes more, and steps as they take to be written."""
        self.require(size)
        self._bytes -= size
        self.step(1 + size // 256)

    def measure(self, value: Any) -> Size:
        """The size of `value`, in a step for each node."""
        size, nodes, depth = 0, 0, 0
        level = [value]
        while level:
            self.step(len(level))
            nodes += len(level)
            depth += 1
            if depth > DEEPEST_VALUE:
                raise LimitError(f"it nests values deeper than the limit of {DEEPEST_VALUE}")
            deeper: list[Any] = []
            for item in level:
                size += _NODE
                if isinstance(item, str):
                    size += text_bytes(item)
                elif isinstance(item, dict):
                    deeper += item.keys()
                    deeper += item.values()
                elif isinstance(item, list | tuple):
                    deeper += item
            self.require(size)
            self.require(len(deeper) * _NODE)
            level = deeper
        return Size(size, nodes, depth)

    def made(self, value: _T) -> _T:
        """Counts the bytes of `value`, newly made, and returns it."""
        self.take(text_bytes(value) if isinstance(value, str) else self.measure(value).bytes)
        return value

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """For a call within a call."""
        self._depth += 1
        if self._depth > DEEPEST_CALL:
            raise LimitError(f"it nests calls deeper than the limit of {DEEPEST_CALL}")
        try:
            yield
        finally:
            self._depth -= 1


def text_bytes(text: str) -> int:
    """Bytes of the characters of `text`, at most."""
    return len(text) if text.isascii() else 4 * len(text)


def length(value: Any) -> int:
    """Steps that it takes to go through `value` once, without what is in its elements."""
    if isinstance(value, str):
        return 1 + len(value) // 64
    return len(value) if isinstance(value, list | tuple | dict | range) else 1
