"""Calls of tools in what a chat model writes, told from the text around them as it comes.

    parser = parser_for(model.chat_template)
    events = parser.feed("Let me see. <tool_call>{")  # TextDelta, CallBegin, CallArguments, CallEnd
    events += parser.end()

How a model writes calls, its chat template shows: each family has tags of its own.
"""

from mmrt.text.toolcalls.elements import GLM, MINIMAX, QWEN, SEED, ElementParser, Tools
from mmrt.text.toolcalls.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Event,
    TextDelta,
    gather,
)
from mmrt.text.toolcalls.named import HarmonyParser, MistralParser
from mmrt.text.toolcalls.objects import BareParser, ObjectParser
from mmrt.text.toolcalls.parser import ToolParser

__all__ = [
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Event",
    "TextDelta",
    "ToolParser",
    "gather",
    "parser_for",
]


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
        return MistralParser()
    for text, tags in elements.items():
        if shows(text):
            return ElementParser(tags, tools or ())
    if shows("<|START_ACTION|>"):
        return ObjectParser(["<|START_ACTION|>"], "<|END_ACTION|>")
    if shows("<|tool_call|>"):  # Granite 3, Phi-4-mini
        return ObjectParser(["<|tool_call|>", "<tool_call>"], "<|/tool_call|>")
    if shows("<tool_call>"):  # Hermes, Qwen, SmolLM3, Granite 4
        return ObjectParser(["<tool_call>"], "</tool_call>")
    if shows("Action:", "```json"):  # Command R
        return ObjectParser(["Action: ```json", "Action:```json"], "```")
    if shows("<|python_tag|>") or shows("<|start_header_id|>", '"parameters"'):  # Llama 3
        return BareParser()
    return None
