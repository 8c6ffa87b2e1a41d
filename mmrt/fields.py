"""Metadata read with its types checked, so that a wrong field is named where it is met."""

from collections.abc import Mapping
from typing import Any

from mmrt.errors import FormatError

_LEAST, _LARGEST = 1e-37, 1e38  # well within float32's range


class Fields:
    """The fields `prefix.name` of a file's metadata.

    Each reader returns `default` where the field is missing, or raises FormatError, naming file
    and field, if there is none; all raise it for a value of the wrong kind or out of range.
    """

    def __init__(self, metadata: Mapping[str, Any], source: str, prefix: str) -> None:
        self._metadata = metadata
        self._source = source
        self._prefix = prefix

    def error(self, name: str, what: str) -> FormatError:
        return FormatError(f"{self._source}: {self._prefix}.{name}: {what}")

    def _value(self, name: str, default: Any) -> Any:
        value = self._metadata.get(f"{self._prefix}.{name}", default)
        if value is None:
            raise self.error(name, "missing")
        return value

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
            expected = f"a whole number from {least} to {(1 << 31) - 1}"
            raise self.error(name, f"expected {expected}, found {value!r:.60}")
        return value

    def number(self, name: str, default: float | None = None, *, or_zero: bool = False) -> float:
        """A number above zero, or zero where that is allowed, that float32 can hold."""
        value = self._value(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (_LEAST <= value <= _LARGEST or (or_zero and value == 0)):
            expected = f"a number above zero{', or zero' if or_zero else ''}"
            raise self.error(name, f"expected {expected}, found {value!r:.60}")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"expected a string, found {value!r:.60}")
        return value
