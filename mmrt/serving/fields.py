"""The fields of a request's body, each checked as it is read."""

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from mmrt.serving.problems import Refused

_LONGEST_FOUND = 100  # characters of a value in an error


class Fields:
    """An object of a request's body. null stands for a field that is not there.

    Every reader raises Refused, a 400 that names the field, for a value of the wrong kind or out of
    its range.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    def name(self, field: str) -> str:
        return f"{self._where}.{field}" if self._where else field

    def bad(self, field: str, wanted: str) -> Refused:
        name, found = self.name(field), reprlib.repr(self._values.get(field))
        return Refused(
            400, f"{name}: expected {wanted}, found {found:.{_LONGEST_FOUND}}", param=name
        )

    def has(self, field: str) -> bool:
        return self._values.get(field) is not None

    def get(self, field: str) -> Any:
        return self._values.get(field)

    def require(self, field: str) -> None:
        if not self.has(field):
            name = self.name(field)
            raise Refused(400, f"{name}: missing", param=name, code="missing_required_parameter")

    def text(self, field: str, default: str | None = None) -> str | None:
        value = self.get(field)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.bad(field, "a string")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(field, "true or false")
        return value

    def whole(self, field: str, least: int, most: int, default: int | None = None) -> int | None:
        value = self.get(field)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.bad(field, f"a whole number from {least} to {most}")
        return value

    def number(self, field: str, least: float, most: float) -> float | None:
        value = self.get(field)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not least <= value <= most:
            raise self.bad(field, f"a number from {least:g} to {most:g}")
        return float(value)

    def choice(self, field: str, words: Iterable[str], default: str | None = None) -> str | None:
        value = self.get(field)
        if value is None:
            return default
        words = list(words)
        if value not in words or not isinstance(value, str):
            raise self.bad(field, "one of " + ", ".join(words))
        return value

    def objects(self, field: str, most: int) -> list["Fields"] | None:
        """A list of objects."""
        value = self.get(field)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.bad(field, "a list of objects")
        for i, one in enumerate(value):
            if not isinstance(one, dict):
                raise Fields({f"{field}[{i}]": one}, self._where).bad(f"{field}[{i}]", "an object")
        if len(value) > most:
            name = self.name(field)
            raise Refused(400, f"{name}: {len(value)} are more than {most}", param=name)
        return [Fields(one, f"{self.name(field)}[{i}]") for i, one in enumerate(value)]

    def object(self, field: str) -> "Fields | None":
        value = self.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(field, "an object")
        return Fields(value, self.name(field))

    def plain(self) -> dict[str, Any]:
        """All of it."""
        return dict(self._values)

    def refuse(self, unsupported: Mapping[str, str]) -> None:
        """Raises Refused for a field of `unsupported` that is there and says something; its value
        is the reason. false, 0, "" and empty lists say nothing; {} asks for what it names."""
        for field, why in unsupported.items():
            if self.get(field) or self.get(field) == {}:
                name = self.name(field)
                raise Refused(400, f"{name}: {why}", param=name, code="unsupported_parameter")
