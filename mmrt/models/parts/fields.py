"""Metadata read with its types checked, so that a wrong field is named where it is met."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrt.errors import FormatError, UnsupportedError

_LEAST, _LARGEST = 1e-37, 1e38  # well within float32's range


@dataclass(frozen=True)
class PerLayer:
    """A whole number for each layer."""

    values: tuple[int, ...]  # one for each, or a single one for all

    def __getitem__(self, layer: int) -> int:
        return self.values[layer if len(self.values) > 1 else 0]


class Fields:
    """The fields `prefix.name` of a file's metadata.

    Each reader returns `default` where the field is missing, or raises FormatError, naming file
    and field, if there is none; all raise it for a value of the wrong kind or out of range. Whole
    numbers may be written as floats, and flags as 0 and 1.
    """

    def __init__(self, metadata: Mapping[str, Any], source: str, prefix: str) -> None:
        self._metadata = metadata
        self._source = source
        self.prefix = prefix
        self._read: set[str] = set()

    def error(self, name: str, what: str) -> FormatError:
        return FormatError(f"{self._source}: {self.prefix}.{name}: {what}")

    def unsupported(self, name: str, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self._source}: {self.prefix}.{name}: {what}")

    def unread(self) -> dict[str, Any]:
        """The fields that the file has and nobody has asked for."""
        start = f"{self.prefix}."
        names = (key[len(start) :] for key in self._metadata if key.startswith(start))
        return {n: self._metadata[start + n] for n in names if n not in self._read}

    def spelling(self, *names: str) -> str:
        """The first of these names that the file has: they are spellings of one field."""
        self._read.update(names)
        return next((n for n in names if f"{self.prefix}.{n}" in self._metadata), names[0])

    def _value(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise self.error(name, "missing")
        return value

    def _whole(self, name: str, value: Any, least: int) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
            expected = f"a whole number from {least} to {(1 << 31) - 1}"
            raise self.error(name, f"expected {expected}, found {value!r:.60}")
        return value

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1."""
        return self._whole(name, self._value(name, default), least)

    def integers(
        self, name: str, n_layers: int, default: PerLayer | None = None, *, least: int = 1
    ) -> PerLayer:
        """A whole number from `least` on for each layer: the file has one for all, or an array."""
        value = self._value(name, default)
        if isinstance(value, PerLayer):
            return value
        values = self._array(name, value, n_layers) if isinstance(value, list) else [value]
        whole = tuple(self._whole(name, each, least) for each in values)
        return PerLayer(whole if len(set(whole)) > 1 else whole[:1])

    def flags(self, name: str, n: int) -> tuple[bool, ...]:
        """An array of n flags."""
        values = self._array(name, self._value(name, None), n)
        return tuple(self._truth(name, value) for value in values)

    def _array(self, name: str, value: Any, n: int) -> list[Any]:
        if not isinstance(value, list) or len(value) != n:
            found = f"one of {len(value)}" if isinstance(value, list) else f"{value!r:.60}"
            raise self.error(name, f"expected an array of {n}, for so many layers, found {found}")
        return value

    def is_array(self, name: str) -> bool:
        return isinstance(self._metadata.get(f"{self.prefix}.{name}"), list)

    def number(self, name: str, default: float | None = None, *, or_zero: bool = False) -> float:
        """A number above zero, or zero where that is allowed, that float32 can hold."""
        value = self._value(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (_LEAST <= value <= _LARGEST or (or_zero and value == 0)):
            expected = f"a number above zero{', or zero' if or_zero else ''}"
            raise self.error(name, f"expected {expected}, found {value!r:.60}")
        return float(value)

    def factor(self, name: str) -> float:
        """A number to multiply or divide by; missing or zero: 1."""
        return self.number(name, 0.0, or_zero=True) or 1.0

    def flag(self, name: str, default: bool | None = None) -> bool:
        return self._truth(name, self._value(name, default))

    def _truth(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool | int) or value not in (0, 1):
            raise self.error(name, f"expected true or false, found {value!r:.60}")
        return bool(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"expected a string, found {value!r:.60}")
        return value
