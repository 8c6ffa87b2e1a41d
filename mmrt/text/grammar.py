"""What a text has to be: parts in order, of which some are JSON by a schema. constraint.py holds a
model to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrt.core.arguments import instance
from mmrt.errors import ArgumentError

# Deeper schemas might overflow the stack of what compiles them.
_DEEPEST = 100
_LARGEST = 1 << 20  # bytes of a schema as JSON

# White space between the elements of JSON: none, a space, or a line feed and what indents. Models
# that may write any amount of it sometimes write nothing else.
_SPACE = r" ?|\n[ \t]{0,24}"

# How the compiler reads a schema, which a schema cannot change: what it does not know is refused.
_READING = {"whitespace_pattern": _SPACE, "lenient": False, "coerce_one_of": False}


@dataclass(frozen=True)
class Json:
    """JSON that is valid by a schema, itself the JSON text of an object."""

    schema: str


@dataclass(frozen=True)
class Until:
    """Any text up to `end`, which may be a control token, and `end` itself."""

    end: str


@dataclass(frozen=True)
class Without:
    """Any text in which none of `texts` occurs, which may be control tokens, and that does not
    begin with one of `begins` behind white space."""

    texts: tuple[str, ...]
    begins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Many:
    """`way` any number of times, also none."""

    way: "Grammar"


@dataclass(frozen=True)
class OneOf:
    """One of several ways to go on; () is to leave it out."""

    ways: tuple["Grammar", ...]


Grammar = tuple[str | Json | Until | Without | Many | OneOf, ...]
"""A str stands for itself; control tokens that are spelled in it are those tokens."""


def json_by(schema: Any, name: str = "json_schema") -> Json:
    """JSON by `schema`: a dict, a bool, or the JSON text of one of them.

    Raises ArgumentError, which names it as `name`, for what is no schema, allows nothing or is too
    large. What of it cannot be held is found when a text begins.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"{name}: no JSON: {error}") from None
    if schema is False:
        raise ArgumentError(f"{name}: false allows nothing")
    given = {} if schema is True else schema
    instance(name, given, Mapping, "a JSON schema: an object, true or false")
    _require_held(given, name)
    try:
        text = json.dumps({**given, "x-guidance": _READING}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: no JSON: {error}") from None
    if len(text) > _LARGEST:
        raise ArgumentError(f"{name}: {len(text)} bytes are more than the limit of {_LARGEST}")
    return Json(text)


def _require_held(schema: Any, name: str) -> None:
    """Raises ArgumentError for what the compiler might crash over, or takes and does not hold."""
    level, depth = [schema], 0
    while level:
        if depth > _DEEPEST:
            raise ArgumentError(f"{name}: nested deeper than {_DEEPEST}")
        for item in level:
            if isinstance(item, Mapping) and _closes_open_range(item):
                raise ArgumentError(
                    f"{name}: numbers with two bounds, of which one is exclusive, "
                    "cannot be held: use minimum and maximum, or integers"
                )
        lists = [item.values() if isinstance(item, Mapping) else item for item in level]
        deeper = [item for items in lists for item in items]
        level = [item for item in deeper if isinstance(item, Mapping | list | tuple)]
        depth += 1


def _closes_open_range(schema: Mapping[Any, Any]) -> bool:
    """Whether numbers have two bounds of which one is exclusive: that, llguidance 1.9 takes for a
    range with its ends."""
    joined = [schema]
    for key in ("allOf", "anyOf", "oneOf") if _bounds(schema) else ("allOf",):
        members = schema.get(key)
        joined += (
            [m for m in members if isinstance(m, Mapping)] if isinstance(members, list) else []
        )
    bounds = set().union(*map(_bounds, joined))
    if not any(key.startswith("exclusive") for key in bounds):
        return False
    sides = {key.lower().removeprefix("exclusive") for key in bounds}
    return len(sides) > 1 and not any(member.get("type") == "integer" for member in joined)


def _bounds(schema: Mapping[Any, Any]) -> set[str]:
    limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return {key for key in limits if isinstance(schema.get(key), int | float)}
