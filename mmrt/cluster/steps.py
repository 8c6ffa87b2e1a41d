"""What a stage is told of a step: which texts are new, which are gone, what is read into which.

All stages are told the same, in the same order, so that what they hold of a text agrees. A text has
a number, which is never used again. Each part says at which position it goes on: what a stage holds
beyond that is forgotten, which is how texts are rewound.

    count of forks, of gone texts, of parts       u32 each
    number of the step                            u64
    form of the rows (0: none, 1: f32, 2: f16)    u32
    forks: new text, its parent, length           u64, u64, u32
    gone texts                                    u64 each
    parts: text, position, tokens, outputs        u64, u32, u32, u32
    tokens of all parts                           i32 each
    hidden rows of all tokens                     as they are

all little-endian. A result is: number u64, form u32, count of rows u32, and these rows.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.errors import ClusterError, FormatError

_HEAD = struct.Struct("<IIIQI")
_FORK, _GONE, _PART = struct.Struct("<QQI"), struct.Struct("<Q"), struct.Struct("<QIII")
_RESULT = struct.Struct("<QII")

FORMS = {"f32": 1, "f16": 2}
_TYPES: dict[int, tuple[str, int]] = {1: ("<f4", 4), 2: ("<f2", 2)}  # NumPy's names, and bytes

# In one step: more than an engine ever asks for.
MOST_PARTS = 4096
MOST_COMMANDS = 1 << 16

Rows = NDArray[np.float32]


class Fork(NamedTuple):
    """A text of the first `length` tokens of another."""

    text: int
    parent: int
    length: int


class TextPart(NamedTuple):
    """Tokens that a text reads from `position` on; logits are wanted of the last `outputs`."""

    text: int
    position: int
    tokens: NDArray[np.int32]
    outputs: int


@dataclass
class Step:
    number: int
    forks: Sequence[Fork]
    gone: Sequence[int]
    parts: Sequence[TextPart]
    rows: Rows | None = None

    @property
    def n_tokens(self) -> int:
        return sum(len(part.tokens) for part in self.parts)


def largest_step(max_tokens: int, width: int) -> int:
    """Bytes of the longest step."""
    commands = MOST_COMMANDS * (_FORK.size + _GONE.size) + MOST_PARTS * _PART.size
    return _HEAD.size + commands + max_tokens * 4 * (1 + width)


def largest_result(max_tokens: int, width: int) -> int:
    """Bytes of the longest result."""
    return _RESULT.size + max_tokens * 4 * width


def pack_step(step: Step, form: str) -> list[bytes]:
    rows, code = (b"", 0) if step.rows is None else (_packed(step.rows, form), FORMS[form])
    head = _HEAD.pack(len(step.forks), len(step.gone), len(step.parts), step.number, code)
    body = [_FORK.pack(*fork) for fork in step.forks]
    body += [_GONE.pack(text) for text in step.gone]
    body += [_PART.pack(p.text, p.position, len(p.tokens), p.outputs) for p in step.parts]
    body += [np.asarray(part.tokens, "<i4").tobytes() for part in step.parts]
    return [head + b"".join(body), rows]


def unpack_step(payload: bytes, max_tokens: int, width: int) -> Step:
    """width: values of a hidden row; 0: there are none. ClusterError for what is no such step."""
    reader = _Reader(payload)
    n_forks, n_gone, n_parts, number, code = reader.take(_HEAD)
    if n_forks > MOST_COMMANDS or n_gone > MOST_COMMANDS or n_parts > MOST_PARTS:
        raise ClusterError(f"a step of {n_forks} forks, {n_gone} gone texts and {n_parts} parts")
    forks = [Fork(*reader.take(_FORK)) for _ in range(n_forks)]
    gone = [int(reader.take(_GONE)[0]) for _ in range(n_gone)]
    shapes = [reader.take(_PART) for _ in range(n_parts)]
    total = sum(n for _, _, n, _ in shapes)
    if total > max_tokens or any(not n or outputs > n for _, _, n, outputs in shapes):
        raise ClusterError(
            f"a step of {total} tokens in {n_parts} parts: {max_tokens} are possible"
        )
    parts = []
    for text, position, n, outputs in shapes:
        tokens = np.frombuffer(reader.bytes(4 * n), "<i4").astype(np.int32)
        parts.append(TextPart(text, position, tokens, outputs))
    rows = _unpacked(reader, code, total, width) if total and width else None
    if rows is None and code:
        raise ClusterError("a step with hidden rows where there are to be none")
    reader.end()
    return Step(number, forks, gone, parts, rows)


def pack_result(number: int, rows: Rows) -> list[bytes]:
    return [_RESULT.pack(number, FORMS["f32"], len(rows)), _packed(rows, "f32")]


def unpack_result(payload: bytes, max_tokens: int, width: int) -> tuple[int, Rows]:
    """The number of the step, and its logits. ClusterError for what is no such result."""
    reader = _Reader(payload)
    number, code, n = reader.take(_RESULT)
    if n > max_tokens:
        raise ClusterError(f"a result of {n} rows: {max_tokens} are possible")
    rows = _unpacked(reader, code, n, width)
    reader.end()
    return number, rows


class _Reader:
    """Takes a payload from front to back, and never more than there is."""

    def __init__(self, payload: bytes) -> None:
        self._left = memoryview(payload)

    def bytes(self, n: int) -> "memoryview[int]":
        if n > len(self._left):
            raise ClusterError(f"a frame lacks {n - len(self._left)} bytes")
        taken, self._left = self._left[:n], self._left[n:]
        return taken

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.bytes(form.size))

    def end(self) -> None:
        if self._left:
            raise ClusterError(f"a frame has {len(self._left)} bytes too many")


def _packed(rows: Rows, form: str) -> bytes:
    if form == "f32":
        return np.ascontiguousarray(rows, "<f4").tobytes()
    with np.errstate(over="ignore"):
        halves = rows.astype("<f2")
    if not np.isfinite(halves).all():
        raise FormatError("a hidden row has values beyond f16's 65504: use f32 between the stages")
    return halves.tobytes()


def _unpacked(reader: _Reader, code: int, n: int, width: int) -> Rows:
    if code not in _TYPES:
        raise ClusterError(f"hidden rows of form {code}, which is none")
    kind, n_bytes = _TYPES[code]
    values = np.frombuffer(reader.bytes(n * width * n_bytes), kind)
    return values.reshape(n, width).astype(np.float32)
