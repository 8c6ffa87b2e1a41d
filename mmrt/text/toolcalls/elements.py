"""Calls whose function and arguments stand in tags, each value as the text that it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrt.errors import ArgumentError
from mmrt.text.grammar import Grammar, OneOf
from mmrt.text.toolcalls.parser import ToolParser
from mmrt.text.toolcalls.reader import Malformed, Steps
from mmrt.text.toolcalls.values import Tools, as_json, functions, quoted, text_by, types_of

_LONGEST_NAME = 256


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
            name: {key: types_of(schema) for key, schema in properties.items()}
            for name, parameters in functions(tools)
            if isinstance(properties := parameters.get("properties"), Mapping)
        }
        self.marks = frozenset(
            text for text in vars(tags).values() if isinstance(text, str) and text
        )
        super().__init__()

    def openings(self) -> Sequence[str]:
        return self._openings

    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        tags = self._tags
        start = f"{tags.block}\n{tags.call}" if tags.call else tags.block
        parts: list[Any] = [f"{start}{name}{tags.name_end}\n"]
        properties = parameters.get("properties", {})
        needed = parameters.get("required", [])
        unknown = sorted(set(needed) - set(properties))
        if unknown:
            raise ArgumentError(f"parameters: {unknown[0]!r:.60} is required, and not described")
        # What schemas refer to stands beside them.
        beside = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
        around, gap = "\n" * tags.lines, "\n" * bool(tags.value)
        for key, schema in properties.items():
            opening = f"{tags.key}{key}{tags.key_end}{gap}{tags.value}{around}"
            value = text_by(key, schema, beside, tags.value_end, around)
            part: Grammar = (opening, *value, "\n")
            parts += part if key in needed else [OneOf((part, ()))]
        end = f"{tags.call_end}\n{tags.block_end}" if tags.block_end else tags.call_end
        return (*parts, end)

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
            self.argue(f"{', ' if keys else '{'}{quoted(key)}: {written}")
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
