"""Calls that are JSON: an object with a name and arguments, or several in a list."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmrt.text.grammar import Grammar, Many, OneOf, Without, json_by
from mmrt.text.toolcalls.parser import ToolParser
from mmrt.text.toolcalls.reader import Malformed, Steps

_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_MEMBERS = ("name", "arguments", "type", "id")


class ObjectParser(ToolParser):
    """Objects, or a list of them, behind a tag: <tool_call>{"name": .., "arguments": ..}."""

    def __init__(
        self,
        openings: Sequence[str],
        closing: str = "",
        frame: tuple[str, str] = ("", ""),
        keys: tuple[str, str] = ("name", "arguments"),
    ) -> None:
        """frame: what models write between the tags and an object. keys: of the object."""
        super().__init__()
        self._openings, self._closing = openings, closing
        self._frame, self._keys = frame, keys
        self.marks = frozenset((*openings, closing)) - {""}

    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        named, arguments = self._keys
        opening, before, after = self._openings[0], *self._frame
        return (
            f'{opening}{before}{{"{named}": {json.dumps(name)}, "{arguments}": ',
            json_by(parameters, "parameters"),
            f"}}{after}{self._closing}",
        )

    def openings(self) -> Sequence[str]:
        return self._openings

    def calls(self, opening: str) -> Steps[None]:
        yield from self.listed()
        if self._closing:
            yield from self.space()
            yield from self.choice(self._closing)

    def listed(self) -> Steps[None]:
        """An object, or a list of them."""
        yield from self.space()
        if (yield from self.choice("[")):
            while True:
                yield from self.object()
                yield from self.space()
                if (yield from self.choice("]")):
                    return
                yield from self.expect(",")
        yield from self.object()

    def object(self) -> Steps[None]:
        """One call."""
        yield from self.space()
        yield from self.expect("{")
        yield from self.members()

    def members(self, strict: bool = False) -> Steps[None]:
        """What is in a call's object. strict: nothing else than belongs there."""
        named = False
        arguments: list[str] = []
        seen: set[str] = set()
        while (key := (yield from self.key(first=not seen))) is not None:
            kind = "name" if key in _NAMES else "arguments" if key in _ARGUMENTS else key
            if kind in seen or (strict and kind not in _MEMBERS):
                raise Malformed
            seen.add(kind)
            if kind == "name":
                self.begin((yield from self.text()))
                named = True
                self.argue("".join(arguments))
            elif kind == "arguments":
                yield from self.arguments(self.argue if named else arguments.append)
            else:
                yield from self.value(lambda _: None)
        if not named or (strict and "arguments" not in seen):
            raise Malformed
        if "arguments" not in seen:
            self.argue("{}")
        self.finish()


class BareParser(ObjectParser):
    """Llama's: an object that the answer begins with, or several; what is no call is an answer in
    JSON, of which nothing may be held back."""

    def __init__(self) -> None:
        super().__init__(["<|python_tag|>"], keys=("name", "parameters"))

    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        first, *rest = super().written(name, parameters)
        return (str(first).removeprefix(self._openings[0]), *rest)

    def held(self, ways: Sequence[Grammar]) -> Grammar:
        """What begins as an object is a call."""
        call = OneOf(tuple(ways))
        text = Without(tuple(self._openings), begins=("{",))
        return (OneOf(((call, Many(("; ", call))), (text,))),)

    def openings(self) -> Sequence[str]:
        return self._openings if self.said else [*self._openings, "{"]

    def calls(self, opening: str) -> Steps[None]:
        if opening != "{":
            yield from self.space()
            yield from self.expect("{")
        yield from self.members(strict=True)
        yield from self.space()
        yield from self.choice(";")
