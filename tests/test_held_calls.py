"""Calls of tools that a grammar holds to the tools' schemas."""

from pathlib import Path
from typing import Any

import pytest
from drawn import BPE, allowed, written
from jsonschema import validate
from test_toolcalls import (
    ASK,
    COMMAND_R,
    GEMMA,
    GLM,
    HARMONY,
    HERMES,
    LLAMA,
    MISTRAL,
    NONE,
    QWEN_CODER,
    SAID,
    SEED,
    TEMPLATES,
    caller,
    events_of,
    functions,
)
from vocabularies import CONTROL, MERGES, byte_level

import mmrt
from mmrt.text.channels import channels
from mmrt.text.constraint import Constraint
from mmrt.text.grammar import Grammar
from mmrt.text.tokenizer import Tokenizer
from mmrt.text.toolcalls import call_grammar, gather, held_grammar

PHI = "<|tool_call|>[]<|/tool_call|>"
MISTRAL_BY_NAME = MISTRAL + "[ARGS]"
FORMS = [*TEMPLATES, COMMAND_R, SEED, PHI, MISTRAL_BY_NAME]
PARAMETERS = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0},
        "flags": {"type": "array", "items": {"$ref": "#/$defs/flag"}, "maxItems": 2},
        "how": {"enum": ["ab", "ba"]},
        "note": {"type": "string", "description": "free text"},
    },
    "required": ["n", "how"],
    "$defs": {"flag": {"type": "boolean"}},
}
CALLABLE = [
    {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "g"}},
]


@pytest.mark.parametrize("template", FORMS)
def test_a_forced_call_is_a_call(template: str) -> None:
    texts = [written(BPE, call_grammar(template, CALLABLE), seed) for seed in range(8)]
    named = set()
    for text in texts:
        if text is None:
            continue
        rest, calls = gather(events_of(template, [text], CALLABLE))
        assert rest == ""
        ((name, arguments),) = functions(calls)
        named.add(name)
        validate(arguments, PARAMETERS if name == "f" else {"maxProperties": 0})
    assert named == {"f", "g"}
    text = written(BPE, call_grammar(template, CALLABLE, "g"), 1)
    assert text is not None
    assert functions(gather(events_of(template, [text]))[1]) == [("g", {})]


def fits(grammar: Grammar, text: str, tokenizer: Tokenizer = BPE) -> bool:
    """Whether `text` is all that the grammar asks for."""
    constraint = Constraint(tokenizer, grammar)
    try:
        for token in tokenizer.encode(text, add_bos=False):
            constraint.take(token)
    except mmrt.ArgumentError:
        return False
    return constraint.over or not tokenizer.stop_ids.isdisjoint(allowed(constraint, tokenizer))


@pytest.mark.parametrize("template", [t for t in FORMS if t not in (LLAMA, HARMONY)])
def test_calls_that_need_not_be_made_are_held(template: str) -> None:
    tools: list[dict[str, Any]] = [{"name": "weather", "parameters": PARAMETERS}, {"name": "time"}]
    grammar = held_grammar(template, tools)
    call = call_of(template, tools)
    assert call.count("weather") == 1 and fits(grammar, call)
    assert fits(grammar, "") and fits(grammar, "Hello, <b> [T")
    assert fits(grammar, f"I look. {call} and {call} so.")
    assert not fits(grammar, call.replace("weather", "whether"))
    assert not fits(grammar, f"So: {call[: len(call) // 2]}")


def call_of(template: str, tools: list[dict[str, Any]]) -> str:
    texts = (written(BPE, call_grammar(template, tools, "weather"), seed) for seed in range(20))
    return next(text for text in texts if text is not None)


def test_llamas_calls_are_held_from_their_brace_on() -> None:
    tools: list[dict[str, Any]] = [{"name": "weather", "parameters": PARAMETERS}, {"name": "time"}]
    grammar, call = held_grammar(LLAMA, tools), call_of(LLAMA, tools)
    for text in ("", "Hello {", " \n[1]", call, f"{call}; {call}", f'{call}; {{"name": "time'):
        whole = f'{text}", "parameters": {{}}}}' if text.endswith("time") else text
        assert fits(grammar, whole), whole
    for other in (
        "{",
        ' {"a": 1}',
        "\n{",
        call.replace("weather", "whether"),
        call[:-1],
        f"{call} x",
    ):
        assert not fits(grammar, other), other
    _, calls = gather(events_of(LLAMA, [f"{call}; {call}"], tools))
    assert [name for name, _ in functions(calls)] == ["weather"] * 2


MARKS = ["<|return|>", "<|call|>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>"]
OSS = Tokenizer.from_metadata(
    byte_level(MERGES, [(mark, CONTROL) for mark in [*MARKS, "<|constrain|>"]], eos_token_id=0),
    "oss",
)


@pytest.mark.parametrize("tokenizer", [BPE, OSS])
def test_gpt_osss_calls_are_held_behind_what_it_thinks(tokenizer: Tokenizer) -> None:
    """Also where its marks are control tokens."""
    tools: list[dict[str, Any]] = [{"name": "weather", "parameters": PARAMETERS}, {"name": "time"}]
    grammar, call = held_grammar(HARMONY, tools), call_of(HARMONY, tools)
    grammar = (*channels(HARMONY, "<|start|>assistant").thoughts, *grammar)
    final = "<|channel|>final<|message|>Yes {"
    thinks = "<|channel|>analysis<|message|>Hm {<|end|><|start|>assistant"
    tells = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    for text in (final, call, thinks + final, thinks + tells + thinks + call):
        assert fits(grammar, text, tokenizer), text
    for other in (
        *("", "Yes", thinks, final + call, call.replace("weather", "whether"), call[:-1]),
        *(thinks + call.replace("functions.", "browser."), call.replace("commentary", "final")),
    ):
        assert not fits(grammar, other, tokenizer), other


def test_gemmas_nested_arguments_are_held() -> None:
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
            "age": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        },
        "required": ["name"],
    }
    parameters = {
        "properties": {
            "any": {},
            "to": {"$ref": "#/$defs/person"},
            "cc": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        },
        "required": ["to"],
        "$defs": {"person": person},
    }
    tools = [{"name": "send", "parameters": parameters}]
    grammar = call_grammar(GEMMA, tools)
    for text in (
        'to:{name:<|"|>A, "b"<|"|>}',
        'any:1.5,to:{name:<|"|><|"|>,tags:[],age:null}',
        'to:{name:<|"|>A<|"|>,tags:[<|"|>a<|"|>,<|"|>b<|"|>]},cc:[{name:<|"|>C<|"|>,age:3}]',
    ):
        whole = f"<|tool_call>call:send{{{text}}}<tool_call|>"
        assert fits(grammar, whole), whole
        ((_, arguments),) = functions(gather(events_of(GEMMA, [whole]))[1])
        validate(arguments, parameters)
    for text in (
        "",
        "to:{}",
        'to:{name:<|"|>A<|"|>},',
        ',to:{name:<|"|>A<|"|>}',
        'to:{name:<|"|>A<|"|>,age:-1}',
        'to:{name:<|"|>A<|"|>,tags:[<|"|>c<|"|>]}',
    ):
        assert not fits(grammar, f"<|tool_call>call:send{{{text}}}<tool_call|>"), text


ENDLESS = {"$ref": "#/$defs/a"}
DEFINED = {"$defs": {"a": {"items": [ENDLESS, ENDLESS]}}}


def test_calls_that_cannot_be_forced() -> None:
    def tool(parameters: Any) -> list[dict[str, Any]]:
        return [{"function": {"name": "f", "parameters": parameters}}]

    patterned = tool({"properties": {"a": {"type": "string", "pattern": "a+"}}})
    assert call_grammar(HERMES, patterned)
    for template, tools, name, complaint in (
        (HERMES, CALLABLE, "h", "no tool has the name 'h'"),
        (HERMES, [], None, "no tools"),
        (HERMES, tool({"type": "array"}), None, "'f': expected the type object"),
        (GLM, patterned, None, "'a': this model writes it as plain text"),
        (QWEN_CODER, tool({"required": ["a"]}), None, "'a' is required"),
        (GEMMA, patterned, None, "'a': this model writes it as plain text"),
        (GEMMA, tool({"required": ["a"]}), None, "'a' is required"),
        (GEMMA, tool({"properties": {"a": {"type": "object"}}}), None, "'a': an object without"),
        (
            GEMMA,
            tool({"properties": {"a": ENDLESS}}),
            None,
            "'#/\\$defs/a' is referred",
        ),
        (GEMMA, tool({"properties": {"a": {"items": ENDLESS}}, **DEFINED}), None, "to themselves"),
    ):
        with pytest.raises(mmrt.ArgumentError, match=complaint):
            call_grammar(template, tools, name)
    with pytest.raises(mmrt.UnsupportedError, match="no way of calling tools"):
        call_grammar(NONE, CALLABLE)


@pytest.mark.parametrize("family", ["mistral", "llama", "granite"])
def test_a_model_that_must_call_calls(family: str, tmp_path: Path) -> None:
    template, says = SAID[family]
    with mmrt.Model(caller(tmp_path, template, "No.", *says)) as model:
        answer = model.chat(ASK, tools=CALLABLE, grammar=call_grammar(template, CALLABLE, "g"))
        assert functions(answer.tool_calls) == [("g", {})]
        assert (answer, answer.finish) == ("", "stop")
        prompt = model.chat_prompt(ASK, tools=CALLABLE)
        assert prompt.call("g") == call_grammar(template, CALLABLE, "g")
