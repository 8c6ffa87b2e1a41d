"""Calls whose function and arguments stand in tags, each value as the text that it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrt.text.toolcalls.parser import ToolParser
from mmrt.text.toolcalls.reader import Malformed, Steps, loaded

_LONGEST_NAME = 256

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tags:
    """block, block_end: around calls. call: before the name of a function, and name_end behind it
    ("": a tag or white space ends it). key, key_end, value, value_end: around a parameter's name
    and value. call_end: behind the last parameter. lines: a value stands on lines of its own."""

    block: str
    call: str
    name_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    call_end: str
    block_end: str
    lines: bool


QWEN = Tags(
    block="<tool_call>",
    call="<function=",
    name_end=">",
    key="<parameter=",
    key_end=">",
    value="",
    value_end="</parameter>",
    call_end="</function>",
    block_end="</tool_call>",
    lines=True,
)
SEED = replace(QWEN, block="<seed:tool_call>", block_end="</seed:tool_call>", lines=False)
MINIMAX = Tags(
    block="<minimax:tool_call>",
    call='<invoke name="',
    name_end='">',
    key='<parameter name="',
    key_end='">',
    value="",
    value_end="</parameter>",
    call_end="</invoke>",
    block_end="</minimax:tool_call>",
    lines=False,
)
GLM = Tags(
    block="<tool_call>",
    call="",
    name_end="",
    key="<arg_key>",
    key_end="</arg_key>",
    value="<arg_value>",
    value_end="</arg_value>",
    call_end="</tool_call>",
    block_end="",
    lines=False,
)


class ElementParser(ToolParser):
    """Functions and parameters in `tags`. What a value is, its type in `tools` says, OpenAI's
    descriptions of functions; of others, what reads as JSON is that, and all else text."""

    def __init__(self, tags: Tags, tools: Tools = ()) -> None:
        self._tags = tags
        self._openings = [opening for opening in (tags.block, tags.call) if opening]
        self._types = {
            name: {key: _types(schema) for key, schema in properties.items()}
            for name, properties in _functions(tools)
        }
        self.marks = frozenset(
            text for text in vars(tags).values() if isinstance(text, str) and text
        )
        super().__init__()

    def openings(self) -> Sequence[str]:
        return self._openings

    def calls(self, opening: str) -> Steps[None]:
        tags = self._tags
        if opening == tags.block:
            yield from self.space()
            yield from self.expect(tags.call)
        yield from self._call()
        while tags.call:
            yield from self.space()
            if not (yield from self.choice(tags.call)):
                break
            yield from self._call()
        if tags.block_end:
            yield from self.choice(tags.block_end)

    def _call(self) -> Steps[None]:
        """One call, from the name on."""
        tags = self._tags
        name = yield from self._name()
        self.begin(name)
        types = self._types.get(name, {})
        keys: set[str] = set()
        while True:
            yield from self.space()
            tag = yield from self.choice(tags.key, tags.call_end)
            if tag == tags.call_end:
                break
            if not tag:
                raise Malformed
            key, _ = yield from self.until(tags.key_end, most=_LONGEST_NAME)
            if key in keys:
                raise Malformed
            if tags.value:
                yield from self.space()
                yield from self.expect(tags.value)
            value, _ = yield from self.until(tags.value_end)
            if tags.lines:
                value = value.removeprefix("\n").removesuffix("\n")
            written = as_json(value, types.get(key, frozenset()))
            self.argue(f"{', ' if keys else '{'}{_quoted(key)}: {written}")
            keys.add(key)
        self.argue("}" if keys else "{}")
        self.finish()

    def _name(self) -> Steps[str]:
        if self._tags.name_end:
            name, _ = yield from self.until(self._tags.name_end, most=_LONGEST_NAME)
            return name.strip()
        yield from self.space()
        name = ""
        while (character := (yield from self.next())) not in ("", "<") and not character.isspace():
            name += character
        self.back(character)
        return name


def _functions(tools: Tools) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The name of each function, and the schemas of its parameters."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping):
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            name = function.get("name")
            if isinstance(properties, Mapping) and isinstance(name, str):
                yield name, properties


def _types(schema: Any) -> frozenset[str]:
    """The types of JSON that a schema allows; none: it does not say."""
    if not isinstance(schema, Mapping):
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset((named,))
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    choices = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(choices, list) and all(map(_types, choices)):
        return frozenset().union(*map(_types, choices))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return frozenset(("string",))
    return frozenset()


def as_json(value: str, types: frozenset[str] = frozenset()) -> str:
    """The text `value` of a parameter, as JSON of one of `types`, or of any if there are none."""
    bare = value.strip()
    if "string" in types:
        return "null" if bare == "null" and "null" in types else _quoted(value)
    if types:
        bare = {"True": "true", "False": "false", "None": "null"}.get(bare, bare)
    try:
        read = loaded(bare)
    except Malformed:
        return _quoted(value)
    return _quoted(value) if isinstance(read, str) else bare


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
