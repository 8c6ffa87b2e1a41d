"""What an engine holds and does at one moment, between two steps: for people to look at."""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, get_args

from mmrt.core.state import Page, StateStore
from mmrt.errors import FormatError
from mmrt.memory.counters import anonymous_share
from mmrt.run.phases import Doing, Phases, Span
from mmrt.run.prefixes import Kept

_FORMAT = "mmrt engine 1"
_MOST = 1 << 53  # JSON readers may have numbers up to this


@dataclass(frozen=True)
class TextState:
    """A text: its number in the engine, by order of submit(), 0 for what the engine did not write
    itself; what it is doing, None once it has ended and stays for those that begin alike; its class
    and P; the tokens of its prompt, and those of prompt and answer that it holds; its pages, of 32
    tokens each; and where its checkpoints are, in tokens."""

    number: int
    doing: Doing | None
    priority: int
    p: int
    prompt_tokens: int
    tokens: int
    pages: list[Page]
    checkpoints: list[int]


def kept_text(kept: Kept) -> TextState:
    """One that has ended."""
    cache = kept.cache
    return TextState(kept.number, None, 0, 0, 0, cache.length, cache.pages(), cache.checkpoints)


@dataclass(frozen=True)
class Snapshot:
    """An engine: the name of its model's file, and its process; bytes of a page; bytes that keys
    and values take (`held`), would take if no two texts shared any (`logical`), and may take (`kv`,
    None: what there is); pages that were copied as a text went on in one that others held; bytes
    written to the disk, of texts that gave their memory up or are to be kept, and read from it; the
    process's anonymous memory as the kernel counts it (Pss_Anon; None: it does not say); seconds
    since the engine began; its texts; what they did."""

    model: str
    process: int
    page_bytes: int
    held: int
    logical: int
    kv: int | None
    copies: int
    written: int
    read: int
    pss: int | None
    seconds: float
    texts: list[TextState]
    spans: list[Span]

    @property
    def saved(self) -> int:
        """Bytes that sharing saves."""
        return self.logical - self.held

    def to_json(self) -> str:
        """For from_json()."""
        return json.dumps(self.as_dict(), separators=(",", ":"))

    def as_dict(self) -> dict[str, Any]:
        """All of it in lists and numbers."""
        return {"format": _FORMAT, **asdict(self)}

    @staticmethod
    def from_json(text: str | bytes) -> "Snapshot":
        """Raises FormatError, naming the field, for anything but what to_json() gives."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise FormatError("expected JSON") from None
        if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
            raise FormatError(f"format: expected {_FORMAT!r}")
        snapshot: Snapshot = _read_snapshot(found, "")
        return snapshot


def taken(
    model: str,
    process: int,
    store: StateStore,
    kv: int | None,
    moved: tuple[int, int],
    texts: list[TextState],
    phases: Phases,
) -> Snapshot:
    """What there is now; see Snapshot. moved: bytes written and read."""
    now = time.monotonic()
    return Snapshot(
        model=model,
        process=process,
        page_bytes=store.page_bytes,
        **store.sharing._asdict(),
        kv=kv,
        written=moved[0],
        read=moved[1],
        pss=anonymous_share(),
        seconds=now - phases.began,
        texts=sorted(texts, key=lambda text: text.number),
        spans=phases.spans(now),
    )


# ---- reading what another process wrote ----

_Reader = Callable[[Any, str], Any]


def _refusal(where: str, expected: str, found: object) -> FormatError:
    return FormatError(f"{where}: expected {expected}, found {found!r:.40}")


def _from(least: int) -> _Reader:
    def read(value: Any, where: str) -> int:
        if type(value) is not int or not least <= value <= _MOST:
            raise _refusal(where, f"a whole number from {least} on", value)
        return value

    return read


def _seconds(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST:
        raise _refusal(where, "seconds", value)
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _refusal(where, "a text", value)
    return value


def _doing(value: Any, where: str) -> Any:
    words = get_args(Doing)
    if value not in words:
        raise _refusal(where, f"one of {', '.join(words)}", value)
    return value


def _optional(read: _Reader) -> _Reader:
    return lambda value, where: None if value is None else read(value, where)


def _each(read: _Reader) -> _Reader:
    def each(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _refusal(where, "a list", value)
        return [read(one, f"{where}[{i}]") for i, one in enumerate(value)]

    return each


def _row(make: Callable[..., Any], *readers: _Reader) -> _Reader:
    """A tuple, as an array."""

    def row(value: Any, where: str) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            raise _refusal(where, f"{len(readers)} values", value)
        pairs = enumerate(zip(readers, value, strict=True))
        return make(*(read(one, f"{where}[{i}]") for i, (read, one) in pairs))

    return row


def _record(make: Callable[..., Any], readers: dict[str, _Reader]) -> _Reader:
    """An object."""

    def record(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _refusal(where or "the whole", "an object", value)
        before = f"{where}." if where else ""
        for name in [*readers.keys() - value.keys(), *value.keys() - readers.keys()]:
            raise FormatError(
                f"{before}{name}: {'is missing' if name in readers else 'is not known'}"
            )
        return make(**{name: read(value[name], before + name) for name, read in readers.items()})

    return record


_read_snapshot = _record(
    Snapshot,
    {
        "model": _text,
        "process": _from(0),
        "page_bytes": _from(0),
        "held": _from(0),
        "logical": _from(0),
        "kv": _optional(_from(1)),
        "copies": _from(0),
        "written": _from(0),
        "read": _from(0),
        "pss": _optional(_from(0)),
        "seconds": _seconds,
        "texts": _each(
            _record(
                TextState,
                {
                    "number": _from(0),
                    "doing": _optional(_doing),
                    "priority": _from(-(1 << 31)),
                    "p": _from(0),
                    "prompt_tokens": _from(0),
                    "tokens": _from(0),
                    "pages": _each(_row(Page, _from(0), _from(1))),
                    "checkpoints": _each(_from(0)),
                },
            )
        ),
        "spans": _each(_row(Span, _from(0), _doing, _seconds, _seconds)),
    },
)


def answer_all(asked: Iterable[Future[Snapshot]], look: Callable[[], Snapshot]) -> None:
    """Gives each who has asked what `look` finds, or raises."""
    for answer in asked:
        try:
            answer.set_result(look())
        except Exception as error:
            answer.set_exception(error)
