"""Gemma 4's calls: as JSON, but that keys stand bare, and texts between marks of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmrt.errors import ArgumentError
from mmrt.text.grammar import Grammar, Many, OneOf, json_by
from mmrt.text.toolcalls.parser import ToolParser
from mmrt.text.toolcalls.reader import Malformed, Steps, Write
from mmrt.text.toolcalls.values import quoted, text_by, types_of

_OPENING, _CLOSING, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'

_LONGEST_NAME = 256
_DEEPEST = 64

_LARGEST = 10_000  # parts of a schema, each as often as it is referred to
_ANY = frozenset(("string", "number", "boolean", "null"))  # where a schema names no type


class GemmaParser(ToolParser):
    """<|tool_call>call:f{city:<|"|>Paris<|"|>,days:[1,2]}<tool_call|>, where a text has no
    escapes."""

    marks = frozenset((_OPENING, _CLOSING, _QUOTE))

    def openings(self) -> Sequence[str]:
        return [_OPENING]

    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        return (f"{_OPENING}call:{name}", *_object_by(_inlined(parameters)), _CLOSING)

    def calls(self, opening: str) -> Steps[None]:
        yield from self.space()
        yield from self.expect("call:")
        name, _ = yield from self.until("{", most=_LONGEST_NAME)
        self.begin(name.strip())
        yield from self._group("}", self.argue)
        self.finish()
        yield from self.space()
        yield from self.choice(_CLOSING)

    def _group(self, closing: str, write: Write, depth: int = 1) -> Steps[None]:
        """The rest of an object or a list, written on as JSON."""
        if depth > _DEEPEST:
            raise Malformed
        write("{" if closing == "}" else "[")
        before = ""
        yield from self.space()
        while not (yield from self.choice(closing)):
            if before:
                yield from self.expect(",")
            write(before)
            if closing == "}":
                write(f"{quoted((yield from self._key()))}: ")
            yield from self._value(write, depth)
            yield from self.space()
            before = ", "
        write(closing)

    def _key(self) -> Steps[str]:
        yield from self.space()
        if (yield from self.choice(_QUOTE)):
            key, _ = yield from self.until(_QUOTE, most=_LONGEST_NAME)
            yield from self.space()
            yield from self.expect(":")
        else:
            key, _ = yield from self.until(":", most=_LONGEST_NAME)
            key = key.strip()
        if not key:
            raise Malformed
        return key

    def _value(self, write: Write, depth: int) -> Steps[None]:
        yield from self.space()
        opening = yield from self.choice(_QUOTE, "{", "[")
        if opening == _QUOTE:
            text, _ = yield from self.until(_QUOTE)
            write(quoted(text))
        elif opening:
            yield from self._group("}" if opening == "{" else "]", write, depth + 1)
        else:
            yield from self.value(write)


# ---- what calls are held to ----


def _inlined(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, what it refers to in place. Raises ArgumentError where that has no end."""
    named = {
        f"#/{key}/{name}": schema
        for key in ("$defs", "definitions")
        if isinstance(parameters.get(key), Mapping)
        for name, schema in parameters[key].items()
    }
    left = _LARGEST

    def inline(part: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise ArgumentError("parameters: too large, or they refer to themselves")
        if isinstance(part, list):
            return [inline(item, depth + 1) for item in part]
        if not isinstance(part, Mapping):
            return part
        if isinstance(name := part.get("$ref"), str):
            if name not in named:
                raise ArgumentError(f"parameters: {name!r:.60} is referred to, and not there")
            return inline(named[name], depth + 1)
        return {key: inline(item, depth + 1) for key, item in part.items()}

    return {
        key: inline(part, 0)
        for key, part in parameters.items()
        if key not in ("$defs", "definitions")
    }


def _value_by(key: str, schema: Any) -> Grammar:
    """How a value by `schema` is written. Raises ArgumentError for what cannot be held."""
    schema = schema if isinstance(schema, Mapping) else {}
    if _is_json(schema):
        return (json_by(schema, f"parameters: {key}"),)
    choices = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(choices, list) and choices:
        return (OneOf(tuple(_value_by(key, choice) for choice in choices)),)
    types, ways = types_of(schema) or _ANY, list[Grammar]()
    if "string" in types:
        ways.append((_QUOTE, *text_by(key, {**schema, "type": "string"}, {}, _QUOTE, "")))
    if "object" in types:
        if not schema.get("properties"):
            raise ArgumentError(f"parameters: {key!r:.60}: an object without described properties")
        ways.append(_object_by(schema))
    if "array" in types:
        if {"minItems", "maxItems", "uniqueItems"} & schema.keys():
            raise ArgumentError(f"parameters: {key!r:.60}: lists of texts have no bounds here")
        item = _value_by(key, schema.get("items"))
        ways.append(("[", OneOf(((), (*item, Many((",", *item))))), "]"))
    if plain := sorted(types - {"string", "object", "array"}):
        ways.append((json_by({**schema, "type": plain}, f"parameters: {key}"),))
    return (OneOf(tuple(ways)),)


def _is_json(schema: Any) -> bool:
    """Whether its values are written as in JSON: there are no texts and no keys in them."""
    if not isinstance(schema, Mapping):
        return False
    types = types_of(schema)
    if types == {"array"}:
        return _is_json(schema.get("items"))
    listed = schema.get("enum", [schema["const"]] if "const" in schema else [""])
    if isinstance(listed, list) and all(not isinstance(v, str | list | dict) for v in listed):
        return True
    return bool(types) and types <= {"integer", "number", "boolean", "null"}


def _object_by(schema: Mapping[str, Any]) -> Grammar:
    """Its properties in order."""
    properties, needed = schema.get("properties", {}), schema.get("required", [])
    unknown = sorted(set(needed) - set(properties))
    if unknown:
        raise ArgumentError(f"parameters: {unknown[0]!r:.60} is required, and not described")
    first: Grammar = ()  # of them, where none stands before
    rest: Grammar = ()  # behind another
    for key, below in reversed(properties.items()):
        value = (f"{key}:", *_value_by(key, below))
        if key in needed:
            first, rest = (*value, *rest), (",", *value, *rest)
        else:
            first = (OneOf(((*value, *rest), first)),)
            rest = (OneOf(((",", *value), ())), *rest)
    return ("{", *first, "}")
