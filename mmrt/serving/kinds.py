"""Kinds of fields of requests: each checks values, and says in JSON Schema which it takes.

So the OpenAPI document is made of what is checked. What only a model knows, such as the ids of its
tokens, is checked later and not described.
"""

import reprlib
from collections.abc import Mapping
from typing import Any, Protocol

from mmrt.serving.problems import Refused

Schema = dict[str, Any]

_LONGEST_FOUND = 100  # characters of a value in an error


class Kind(Protocol):
    """wanted: what it takes, in words for an error."""

    wanted: str

    def suits(self, value: Any) -> bool:
        """Whether `value` is of the right type of JSON, whatever is in it."""

    def read(self, value: Any, name: str) -> Any:
        """The value of the field `name` as it is used. Raises Refused, a 400 that names the field,
        for what this does not take. `value` is not None."""

    def schema(self) -> Schema:
        """What it takes, as JSON Schema."""


def bad(name: str, wanted: str, value: Any) -> Refused:
    found = reprlib.repr(value)
    return Refused(400, f"{name}: expected {wanted}, found {found:.{_LONGEST_FOUND}}", param=name)


def missing(name: str) -> Refused:
    return Refused(400, f"{name}: missing", param=name, code="missing_required_parameter")


def or_null(schema: Schema) -> Schema:
    """null stands for a field that is not there."""
    if not schema.keys() - {"description"}:
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    found = dict(schema)
    if None not in found.get("enum", [None]):
        found["enum"] = [*found["enum"], None]
    if "type" in found:
        found["type"] = [found["type"], "null"]
    return found


class Anything:
    wanted = "anything"

    def suits(self, value: Any) -> bool:
        return True

    def read(self, value: Any, name: str) -> Any:
        return value

    def schema(self) -> Schema:
        return {}


class Text:
    def __init__(self, least: int = 0, most_bytes: int | None = None) -> None:
        """least: characters."""
        self._least, self._most = least, most_bytes
        self.wanted = "a string that is not empty" if least else "a string"
        if most_bytes is not None:
            self.wanted += f" of {most_bytes} bytes at most"

    def suits(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or len(value) < self._least:
            raise bad(name, self.wanted, value)
        if self._most is not None and len(value.encode("utf-8", "replace")) > self._most:
            raise bad(name, self.wanted, value)
        return value

    def schema(self) -> Schema:
        schema: Schema = {"type": "string"}
        if self._least:
            schema["minLength"] = self._least
        if self._most is not None:  # which has no more characters than bytes
            schema["maxLength"] = self._most
        return schema


class Flag:
    wanted = "true or false"

    def suits(self, value: Any) -> bool:
        return isinstance(value, bool)

    def read(self, value: Any, name: str) -> bool:
        if not isinstance(value, bool):
            raise bad(name, self.wanted, value)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


class Whole:
    """A whole number; 3.0 is one too, as in JSON Schema."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.wanted = f"a whole number from {least} to {most}"

    def suits(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def read(self, value: Any, name: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad(name, self.wanted, value)
        if not self._least <= value <= self._most:
            raise bad(name, self.wanted, value)
        return value

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self._least, "maximum": self._most}


class Number:
    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self.wanted = f"a number from {least:g} to {most:g}"

    def suits(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def read(self, value: Any, name: str) -> float:
        if not self.suits(value) or not self._least <= value <= self._most:
            raise bad(name, self.wanted, value)
        return float(value)

    def schema(self) -> Schema:
        return {"type": "number", "minimum": self._least, "maximum": self._most}


class Choice:
    def __init__(self, *words: str) -> None:
        self._words = words
        self.wanted = f"one of {', '.join(words)}"

    def suits(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in self._words:
            raise bad(name, self.wanted, value)
        return value

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self._words)}


class Only:
    """A field that changes nothing here, and so may only ask for what is so anyway."""

    # What asks for nothing.
    NOTHING: tuple[Any, ...] = (False, 0, "", [])

    def __init__(self, why: str, harmless: tuple[Any, ...] = NOTHING) -> None:
        self._why, self._harmless = why, harmless
        self.wanted = why

    def suits(self, value: Any) -> bool:
        return True

    def read(self, value: Any, name: str) -> Any:
        is_flag = isinstance(value, bool)  # True == 1, but not in JSON
        for one in self._harmless:
            if value == one and isinstance(one, bool) == is_flag:
                return one  # 1, where the value is 1.0
        raise Refused(400, f"{name}: {self._why}", param=name, code="unsupported_parameter")

    def schema(self) -> Schema:
        return {"enum": [*self._harmless, None], "description": f"Not supported: {self._why}"}


class List:
    wanted = "a list"

    def __init__(self, of: Kind, most: int | None = None, least: int = 0) -> None:
        self._of, self._most, self._least = of, most, least

    def suits(self, value: Any) -> bool:
        return isinstance(value, list) and (not value or self._of.suits(value[0]))

    def read(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            raise bad(name, self.wanted, value)
        if len(value) < self._least:
            raise Refused(400, f"{name}: the list is empty", param=name)
        if self._most is not None and len(value) > self._most:
            raise Refused(400, f"{name}: {len(value)} are more than {self._most}", param=name)
        for i, one in enumerate(value):
            if one is None:
                raise bad(f"{name}[{i}]", self._of.wanted, one)
        return [self._of.read(one, f"{name}[{i}]") for i, one in enumerate(value)]

    def schema(self) -> Schema:
        schema: Schema = {"type": "array", "items": self._of.schema()}
        if self._least:
            schema["minItems"] = self._least
        if self._most is not None:
            schema["maxItems"] = self._most
        return schema


class Table:
    """An object whose keys are whole numbers in words."""

    def __init__(self, of: Kind, most: int) -> None:
        self._of, self._most = of, most
        self.wanted = "an object whose keys are token ids"

    def suits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, name: str) -> dict[int, Any]:
        if not isinstance(value, dict):
            raise bad(name, self.wanted, value)
        if len(value) > self._most:
            raise Refused(400, f"{name}: {len(value)} are more than {self._most}", param=name)
        for word in value:
            if not (word.isascii() and word.isdigit() and len(word) < 10):
                raise Refused(400, f"{name}: {word!r:.60} is no token id", param=name)
        return {
            int(word): 0.0 if one is None else self._of.read(one, f"{name}.{word}")
            for word, one in value.items()
        }

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": or_null(self._of.schema()),
            "maxProperties": self._most,
        }


class Record:
    """An object. Fields of other names are passed over, as clients of other servers send many."""

    def __init__(self, fields: Mapping[str, Kind] | None = None, required: tuple[str, ...] = ()):
        self.fields, self._required = dict(fields or {}), required
        self.wanted = "an object"

    def suits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise bad(name, self.wanted, value)
        prefix = f"{name}." if name else ""
        for field in self._required:
            if value.get(field) is None:
                raise missing(prefix + field)
        read = {
            field: kind.read(value[field], prefix + field)
            for field, kind in self.fields.items()
            if value.get(field) is not None
        }
        return {**value, **read}

    def schema(self) -> Schema:
        properties = {
            field: kind.schema() if field in self._required else or_null(kind.schema())
            for field, kind in self.fields.items()
        }
        schema: Schema = {"type": "object"}
        if properties:
            schema["properties"] = properties
        if self._required:
            schema["required"] = list(self._required)
        return schema


class Tagged:
    """An object of one of several kinds, named by one of its fields."""

    wanted = "an object"

    def __init__(
        self, cases: Mapping[str, Record], tag: str = "type", default: str | None = None
    ) -> None:
        """default: where the tag is not there."""
        self._cases, self._tag, self._default = dict(cases), tag, default

    def suits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise bad(name, self.wanted, value)
        tag, place = value.get(self._tag), f"{name}.{self._tag}"
        if tag is None:
            if self._default is None:
                raise missing(place)
            tag = self._default
        return self._cases[Choice(*self._cases).read(tag, place)].read(value, name)

    def schema(self) -> Schema:
        return {"anyOf": [self._case(word) for word in self._cases]}

    def _case(self, word: str) -> Schema:
        schema = self._cases[word].schema()
        tag: Schema = {"type": "string", "enum": [word]}
        is_default = word == self._default
        schema["properties"] = {
            self._tag: or_null(tag) if is_default else tag, **schema.get("properties", {})
        }  # fmt: skip
        if not is_default:
            schema["required"] = [self._tag, *schema.get("required", [])]
        return schema


class Either:
    """The first of several kinds that a value suits."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds
        self.wanted = " or ".join(dict.fromkeys(kind.wanted for kind in kinds))

    def suits(self, value: Any) -> bool:
        return any(kind.suits(value) for kind in self._kinds)

    def read(self, value: Any, name: str) -> Any:
        for kind in self._kinds:
            if kind.suits(value):
                return kind.read(value, name)
        raise bad(name, self.wanted, value)

    def schema(self) -> Schema:
        return {"anyOf": [kind.schema() for kind in self._kinds]}
