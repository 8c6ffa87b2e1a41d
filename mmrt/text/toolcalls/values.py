"""Descriptions of functions, and values of their parameters that are written as plain text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmrt.errors import ArgumentError
from mmrt.text.grammar import Grammar, OneOf, Until, json_by
from mmrt.text.toolcalls.reader import Malformed, loaded

Tools = Sequence[Mapping[str, Any]]
"""OpenAI's descriptions of functions."""

# What a schema of a string may say beside its type, without a rule for the string.
_REMARKS = frozenset(
    ("type", "title", "description", "default", "examples", "$comment", "deprecated")
)


def functions(tools: Tools) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name of each function, and the schema of its arguments."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            parameters = function.get("parameters")
            yield name, parameters if isinstance(parameters, Mapping) else {}


def types_of(schema: Any) -> frozenset[str]:
    """The types of JSON that a schema allows; none: it does not say."""
    if not isinstance(schema, Mapping):
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset((named,))
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    choices = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(choices, list) and all(map(types_of, choices)):
        return frozenset().union(*map(types_of, choices))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return frozenset(("string",))
    return frozenset()


def as_json(value: str, types: frozenset[str] = frozenset()) -> str:
    """The text `value` of a parameter, as JSON of one of `types`, or of any if there are none."""
    bare = value.strip()
    if "string" in types:
        return "null" if bare == "null" and "null" in types else quoted(value)
    if types:
        bare = {"True": "true", "False": "false", "None": "null"}.get(bare, bare)
    try:
        read = loaded(bare)
    except Malformed:
        return quoted(value)
    return quoted(value) if isinstance(read, str) else bare


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def text_by(key: str, schema: Any, beside: Mapping[str, Any], end: str, around: str) -> Grammar:
    """The text of a parameter by `schema` up to `end`, `around` which it stands. beside: what
    schemas refer to. Raises ArgumentError where plain text cannot be held to it."""
    schema = schema if isinstance(schema, Mapping) else {}
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    types = types_of(schema)
    if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
        return (OneOf(tuple((choice,) for choice in choices)), around + end)
    if types and "string" not in types:
        return (json_by({**beside, **schema}, f"parameters: {key}"), around + end)
    if schema.keys() - _REMARKS:
        raise ArgumentError(
            f"parameters: {key!r:.60}: this model writes it as plain text, which no schema holds"
        )
    return (Until(end),)
