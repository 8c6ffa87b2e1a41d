"""Calls of tools in what a chat model writes, told from the text around them as it comes.

    parser = parser_for(model.chat_template)
    events = parser.feed("Let me see. <tool_call>{")  # TextDelta, CallBegin, CallArguments, CallEnd
    events += parser.end()

How a model writes calls, its chat template shows: each family has tags of its own.
"""

from collections.abc import Mapping
from typing import Any

from mmrt.errors import ArgumentError, UnsupportedError
from mmrt.text.grammar import Grammar, OneOf
from mmrt.text.toolcalls.elements import GLM, MINIMAX, QWEN, SEED, ElementParser
from mmrt.text.toolcalls.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Event,
    TextDelta,
    gather,
)
from mmrt.text.toolcalls.gemma import GemmaParser
from mmrt.text.toolcalls.named import HarmonyParser, MistralParser
from mmrt.text.toolcalls.objects import BareParser, ObjectParser
from mmrt.text.toolcalls.parser import ToolParser
from mmrt.text.toolcalls.values import Tools, functions

__all__ = [
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Event",
    "TextDelta",
    "ToolParser",
    "call_grammar",
    "gather",
    "held_grammar",
    "parser_for",
]


COHERE = "tool_name", "parameters"  # keys

# What may name properties beside `properties`.
_MORE = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")


def parser_for(template: str | None, tools: Tools | None = None) -> ToolParser | None:
    """A parser of the calls that a model with this chat template writes; None: it writes none, as
    far as the template says.

    tools: OpenAI's descriptions of the functions. Families that write values as plain text
    (Qwen3-Coder, GLM) need the types of parameters.
    """
    template = template or ""

    def shows(*texts: str) -> bool:
        return all(text in template for text in texts)

    elements = {
        "<arg_key>": GLM,
        "<minimax:tool_call>": MINIMAX,
        "<seed:tool_call>": SEED,
        "<function=": QWEN,
    }
    if shows("<|channel|>", "<|message|>"):
        return HarmonyParser()
    if shows("[TOOL_CALLS]"):
        return MistralParser(by_name=shows("[ARGS]"))
    for text, tags in elements.items():
        if shows(text):
            return ElementParser(tags, tools or ())
    if shows("<|START_ACTION|>"):
        frame = "[\n    ", "\n]"
        return ObjectParser(["<|START_ACTION|>"], "<|END_ACTION|>", frame, COHERE)
    if shows("<|tool_call>", "call:"):
        return GemmaParser()
    if shows("<|tool_call|>"):  # Granite 3, Phi-4-mini
        closing = "<|/tool_call|>" if shows("<|/tool_call|>") else ""
        return ObjectParser(["<|tool_call|>", "<tool_call>"], closing, ("[", "]"))
    if shows("<tool_call>"):  # Hermes, Qwen, SmolLM3, Granite 4
        return ObjectParser(["<tool_call>"], "</tool_call>", ("\n", "\n"))
    if shows("Action:", "```json"):  # Command R
        frame = "\n[\n    ", "\n]"
        return ObjectParser(["Action: ```json", "Action:```json"], "```", frame, COHERE)
    if shows("<|python_tag|>") or shows("<|start_header_id|>", '"parameters"'):  # Llama 3
        return BareParser()
    return None


def call_grammar(template: str | None, tools: Tools, name: str | None = None) -> Grammar:
    """What a model with this chat template has to write to call the function `name`, or one of
    `tools`: for the option `grammar`, which holds it to that and to the schema of the arguments.

    Raises ArgumentError if no tool has the name, or for arguments that cannot be held;
    UnsupportedError if the template shows none of the ways to write calls that mmrt knows.
    """
    ways = _ways(_parser(template, tools), tools, name)
    return ways[0] if len(ways) == 1 else (OneOf(tuple(ways)),)


def held_grammar(template: str | None, tools: Tools) -> Grammar:
    """Any text, in which calls are of `tools` and their arguments held to the schemas: for Llama 3,
    whose calls are bare objects, a text that begins with a brace is a call. Arguments and errors as
    for call_grammar()."""
    parser = _parser(template, tools)
    return parser.held(_ways(parser, tools, None))


def _parser(template: str | None, tools: Tools) -> ToolParser:
    parser = parser_for(template, tools)
    if parser is None:
        raise UnsupportedError("the chat template shows no way of calling tools that mmrt knows")
    return parser


def _ways(parser: ToolParser, tools: Tools, name: str | None) -> list[Grammar]:
    ways = [
        parser.written(named, _of_objects(named, parameters))
        for named, parameters in functions(tools)
        if name is None or named == name
    ]
    if not ways:
        raise ArgumentError(f"no tool has the name {name!r:.60}" if name else "there are no tools")
    return ways


def _of_objects(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A function's schema, of objects that have no other properties than it describes."""
    schema = {"type": "object", **(parameters or {"properties": {}})}
    if schema["type"] != "object":
        raise ArgumentError(f"parameters of {name!r:.60}: expected the type object")
    if "properties" in schema and not any(key in parameters for key in _MORE):
        schema["additionalProperties"] = False
    return schema
