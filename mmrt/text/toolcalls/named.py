"""Calls whose function is named outside the JSON of its arguments."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrt.text.grammar import Grammar, Many, OneOf, Until, Without, json_by
from mmrt.text.toolcalls.objects import ObjectParser
from mmrt.text.toolcalls.parser import ToolParser
from mmrt.text.toolcalls.reader import Malformed, Steps

_LONGEST_HEADER = 256


class MistralParser(ObjectParser):
    """[TOOL_CALLS] and a list of objects, or since late 2024 a name, [ARGS] and the arguments, once
    for each call."""

    def __init__(self, by_name: bool) -> None:
        """by_name: the model writes the newer form."""
        super().__init__(["[TOOL_CALLS]"], frame=("[", "]"))
        self._by_name = by_name
        self.marks |= {"[ARGS]", "[CALL_ID]"}

    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        if self._by_name:
            return (f"[TOOL_CALLS]{name}[ARGS]", json_by(parameters, "parameters"))
        return super().written(name, parameters)

    def calls(self, opening: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.peek()) in ("[", "{"):
            yield from self.listed()
            return
        name, end = yield from self.until("[ARGS]", "[CALL_ID]", "{", most=_LONGEST_HEADER)
        if end == "[CALL_ID]":
            _, end = yield from self.until("[ARGS]", "{", most=_LONGEST_HEADER)
        if end == "{":
            self.back(end)
        self.begin(name.strip())
        yield from self.arguments(self.argue)
        self.finish()


class HarmonyParser(ToolParser):
    """gpt-oss: a part of the answer whose header has "to=functions." and a name. The header may
    lack what stands before that."""

    marks = frozenset(("<|channel|>", "<|constrain|>", "<|message|>", "<|start|>"))

    def openings(self) -> Sequence[str]:
        return ["<|channel|>", "to=functions."]

    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        return (header, json_by(parameters, "parameters"))

    def held(self, ways: Sequence[Grammar]) -> Grammar:
        """Parts that think or tell what is to come, then the answer or a call."""
        next_part: Grammar = (Until("<|end|>"), "<|start|>assistant")
        others = ("<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>")
        before = OneOf(tuple((header, *next_part) for header in others))
        answer = ("<|channel|>final<|message|>", Without(("<|end|>", *sorted(self.marks))))
        return (Many((before,)), OneOf((answer, *ways)))

    def calls(self, opening: str) -> Steps[None]:
        header, _ = yield from self.until("<|message|>", most=_LONGEST_HEADER)
        named = re.search(r"to=functions\.([\w.:/-]+)", opening + header)
        if named is None:
            raise Malformed
        self.begin(named[1])
        yield from self.arguments(self.argue)
        self.finish()
        yield from self.space()
        yield from self.choice("<|call|>", "<|end|>", "<|return|>")
