"""Calls of tools, told from the text around them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import speaker
from vocabularies import CONTROL

import mmrt
from mmrt.text.toolcalls import (
    CallBegin,
    CallEnd,
    Event,
    TextDelta,
    gather,
    parser_for,
)

HERMES = "<tool_call>\n{{ call }}\n</tool_call>"
QWEN_CODER = "<tool_call>\n<function=f>\n<parameter=p>\nv\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>v</arg_value>\n</tool_call>"
MINIMAX = '<minimax:tool_call>\n<invoke name="f">\n</invoke>\n</minimax:tool_call>'
SEED = "<seed:tool_call>\n<function=f>\n</function>\n</seed:tool_call>"
LLAMA = '<|start_header_id|>assistant{"name": "f", "parameters": {}}'
MISTRAL = "[AVAILABLE_TOOLS][TOOL_CALLS][INST]"
HARMONY = "<|start|>assistant<|channel|>commentary to=functions.f<|message|>"
GRANITE = "write <|tool_call|> followed by a list"
COHERE = "<|START_ACTION|>[]<|END_ACTION|>"
COMMAND_R = "Write 'Action:' followed by ```json"
GEMMA = "<|tool_call>call:{{ name }}{...}<tool_call|>"
NONE = "<|im_start|>user"

PARIS = '{"city": "Paris"}'


class Case(NamedTuple):
    template: str
    written: str
    text: str
    calls: list[tuple[str, Any]]


CASES = {
    "hermes": Case(
        HERMES,
        'I look.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "I look.",
        [("weather", {"city": "Paris"})],
    ),
    "hermes, two": Case(
        HERMES,
        '<tool_call>{"name":"f","arguments":{"a":[1,{"b":null}],"c":"}\\"</tool_call>"}}</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "g"}\n</tool_call> Done.',
        "Done.",
        [("f", {"a": [1, {"b": None}], "c": '}"</tool_call>'}), ("g", {})],
    ),
    "hermes, without arguments": Case(
        HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]
    ),
    "hermes, arguments in a string": Case(
        HERMES,
        f'<tool_call>{{"name": "f", "arguments": {json.dumps(PARIS)}}}',
        "",
        [("f", {"city": "Paris"})],
    ),
    "hermes, a line feed in a string": Case(
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>',
        "",
        [("f", {"a": "x\ny"})],
    ),
    "qwen3 coder": Case(
        QWEN_CODER,
        "Yes.\n<tool_call>\n<function=write>\n<parameter=path>\na.py\n</parameter>\n"
        "<parameter=text>\n\nif a < b:\n    </p>\n\n</parameter>\n"
        "<parameter=mode>\n0644\n</parameter>\n"
        "<parameter=n>\n12\n</parameter>\n</function>\n</tool_call>\n",
        "Yes.",
        [("write", {"path": "a.py", "text": "\nif a < b:\n    </p>\n", "mode": "0644", "n": 12})],
    ),
    "qwen3 coder, two without a block": Case(
        QWEN_CODER,
        "<function=f>\n</function>\n<function=g>\n<parameter=x>\n[1]\n</parameter>\n</function>",
        "",
        [("f", {}), ("g", {"x": [1]})],
    ),
    "glm": Case(
        GLM,
        "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>\n"
        "<tool_call>time</tool_call>",
        "",
        [("weather", {"city": "Paris", "days": [1, 2]}), ("time", {})],
    ),
    "minimax": Case(
        MINIMAX,
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">x\ny</parameter>\n</invoke>\n'
        '<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        "",
        [("f", {"a": "x\ny"}), ("g", {})],
    ),
    "seed": Case(
        SEED,
        "<seed:tool_call>\n<function=f>\n<parameter=a>true</parameter>\n</function>\n</seed:tool_call>",
        "",
        [("f", {"a": True})],
    ),
    "llama": Case(
        LLAMA,
        ' {"name": "weather", "parameters": {"city": "Paris"}}',
        "",
        [("weather", {"city": "Paris"})],
    ),
    "llama, two behind a tag": Case(
        LLAMA,
        '<|python_tag|>{"name": "f", "parameters": {}}; '
        '{"type": "function", "name": "g", "parameters": {"a": 1}}',
        "",
        [("f", {}), ("g", {"a": 1})],
    ),
    "mistral, a list": Case(
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, '
        '{"name": "g", "arguments": {}, "id": "123456789"}]',
        "",
        [("f", {"a": 1}), ("g", {})],
    ),
    "mistral, by name": Case(
        MISTRAL,
        'Yes.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}'
        '[TOOL_CALLS]h{"b": 2}',
        "Yes.",
        [("f", {"a": 1}), ("g", {}), ("h", {"b": 2})],
    ),
    "gpt-oss": Case(
        HARMONY,
        "I look.<|channel|>commentary to=functions.weather <|constrain|>json"
        '<|message|>{"city":"Paris"}<|call|>',
        "I look.",
        [("weather", {"city": "Paris"})],
    ),
    "gpt-oss, named before the channel": Case(
        HARMONY,
        ' to=functions.weather<|channel|>commentary json<|message|>{"city":"Paris"}',
        "",
        [("weather", {"city": "Paris"})],
    ),
    "granite": Case(
        GRANITE,
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1.5e3}}, {"name": "g", "arguments": null}]',
        "",
        [("f", {"a": 1500.0}), ("g", {})],
    ),
    "cohere2": Case(
        COHERE,
        "<|START_ACTION|>[\n"
        '    {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]<|END_ACTION|>',
        "",
        [("f", {"a": 1})],
    ),
    "command-r": Case(
        COMMAND_R,
        'Action: ```json\n[\n    {"tool_name": "f", "parameters": {"a": 1}}\n]```',
        "",
        [("f", {"a": 1})],
    ),
    "gemma4": Case(
        GEMMA,
        'I look.<|tool_call>call:weather{city:<|"|>Paris, "75" \\n{x}<|"|>,days:[1,-2.5],'
        'of:{a:true,b:null,c:[]},<|"|>d e<|"|>:{}}<tool_call|><|tool_call>call:time{}<tool_call|>',
        "I look.",
        [
            (
                "weather",
                {
                    "city": 'Paris, "75" \\n{x}',
                    "days": [1, -2.5],
                    "of": {"a": True, "b": None, "c": []},
                    "d e": {},
                },
            ),
            ("time", {}),
        ],
    ),
    "gemma4, with spaces and JSON's quotes": Case(
        GEMMA,
        '<|tool_call> call:f { a : "x\\ty" , b: [ <|"|><|"|> , {c:1} ] } <tool_call|> Done.',
        "Done.",
        [("f", {"a": "x\ty", "b": ["", {"c": 1}]})],
    ),
}

MALFORMED = {
    "an empty tag": (HERMES, "a <tool_call></tool_call> b"),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    "no JSON": (HERMES, "<tool_call>{'name': 'f'}</tool_call>\n"),
    "a trailing comma": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>'),
    "a list for arguments": (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    "a number that is none": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 01}}'),
    "NaN": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}'),
    "an escape that is none": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\\x"}}'),
    "a name with spaces": (HERMES, '<tool_call>{"name": "a b", "arguments": {}}'),
    "a name of half a character": (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}'),
    "two names": (HERMES, '<tool_call>{"name": "f", "name": "g", "arguments": {}}'),
    "depth": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 1000),
    "cut off": (HERMES, 'So: <tool_call>{"name": "f", "arguments": {"a": "'),
    "cut in a tag": (HERMES, "a <tool_ca"),
    "white space": (HERMES, " \n a \n "),
    "no call": (LLAMA, '{"title": "x", "parameters": {}}'),
    "no arguments": (LLAMA, '{"name": "x"}'),
    "behind text": (LLAMA, 'It is {"name": "f", "parameters": {}}'),
    "Python": (LLAMA, "<|python_tag|>print(1)"),
    "an empty list": (MISTRAL, "[TOOL_CALLS] []"),
    "a name without arguments": (MISTRAL, "[TOOL_CALLS]f and so on"),
    "another channel": (HARMONY, "<|channel|>final<|message|>Hello"),
    "arguments in words": (HARMONY, "<|channel|>commentary to=functions.f<|message|>no"),
    "a parameter that does not end": (QWEN_CODER, "<tool_call>\n<function=f>\n<parameter=a>\n1"),
    "text among parameters": (QWEN_CODER, "<function=f>\nx\n</function>"),
    "a parameter twice": (
        MINIMAX,
        '<minimax:tool_call><invoke name="f"><parameter name="a">1'
        '</parameter><parameter name="a">2</parameter></invoke>',
    ),
    "no braces": (GEMMA, "<|tool_call>call:f<tool_call|>"),
    "bare text": (GEMMA, "<|tool_call>call:f{a:x}<tool_call|>"),
    "a text that does not end": (GEMMA, '<|tool_call>call:f{a:<|"|>x}<tool_call|>'),
    "a comma too many": (GEMMA, "<|tool_call>call:f{a:1,}<tool_call|>"),
    "a key without a name": (GEMMA, "<|tool_call>call:f{:1}<tool_call|>"),
    "lists too deep": (GEMMA, "<|tool_call>call:f{a:" + "[" * 1000),
    "no value": (GLM, "<tool_call>f\n<arg_key>a</arg_key>\n</tool_call>"),
}


def events_of(template: str, pieces: list[str], tools: Any = None) -> list[Event]:
    parser = parser_for(template, tools)
    assert parser is not None
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.end() + parser.end()


def plain(events: list[Event]) -> list[Any]:
    """`events` without ids, neighbours of one kind as one."""
    made: list[Any] = []
    for event in events:
        if isinstance(event, CallBegin):
            made.append(("begin", event.index, event.name))
        elif isinstance(event, CallEnd):
            made.append(("end", event.index))
        else:
            kind = "text" if isinstance(event, TextDelta) else f"arguments {event.index}"
            text = made.pop()[1] if made and made[-1][0] == kind else ""
            made.append((kind, text + event.text))
    return made


def functions(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    named = [call["function"] for call in calls]
    return [(function["name"], json.loads(function["arguments"])) for function in named]


@pytest.mark.parametrize("name", CASES)
def test_calls_are_told_from_text(name: str) -> None:
    case = CASES[name]
    for pieces in ([case.written], list(case.written)):
        text, calls = gather(events_of(case.template, pieces))
        assert text == case.text
        assert functions(calls) == case.calls


@pytest.mark.parametrize("name", CASES)
def test_every_call_has_an_end_and_an_id_of_its_own(name: str) -> None:
    case = CASES[name]
    events = events_of(case.template, [case.written])
    ids = [event.id for event in events if isinstance(event, CallBegin)]
    assert len(set(ids)) == len(ids) == len(case.calls)
    assert all(len(id_) == 9 and id_.isalnum() and id_.isascii() for id_ in ids)
    numbers = list(range(len(ids)))
    assert [event.index for event in events if isinstance(event, CallBegin)] == numbers
    assert [event.index for event in events if isinstance(event, CallEnd)] == numbers
    # Templates with Mistral's rule for ids take those of two answers in one conversation.
    assert not set(ids) & {
        e.id for e in events_of(case.template, [case.written]) if isinstance(e, CallBegin)
    }


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_call_is_text(name: str) -> None:
    template, written = MALFORMED[name]
    for pieces in ([written], list(written)):
        assert plain(events_of(template, pieces)) == [("text", written)]


def test_a_call_behind_one_that_is_none() -> None:
    bad, good = '<tool_call>{"name": <tool_call>', '{"name": "f", "arguments": {}}</tool_call>'
    text, calls = gather(events_of(HERMES, [bad + good]))
    assert text == '<tool_call>{"name":' and functions(calls) == [("f", {})]
    text, calls = gather(events_of(MISTRAL, ['[TOOL_CALLS][{"name": "f"}, {"nam": 1}]']))
    assert text == ', {"nam": 1}]' and functions(calls) == [("f", {})]


def test_long_arguments_come_before_their_end() -> None:
    parser = parser_for(HERMES)
    assert parser is not None
    events = parser.feed('<tool_call>{"name": "f", "arguments": {"a": "' + 2000 * "x")
    assert plain(events)[0] == ("begin", 0, "f") and len(plain(events)[1][1]) > 1000
    # Cut off, they have no end; what is no JSON any more is text.
    assert plain(events + parser.end())[2:] == []
    parser = parser_for(HERMES)
    assert parser is not None
    events = parser.feed('<tool_call>{"name": "f", "arguments": {"a": "' + 2000 * "x" + '"?')
    events += parser.feed('<tool_call>{"name": "g"}</tool_call>')
    assert plain(events + parser.end())[2:] == [
        ("text", "?"),
        ("begin", 1, "g"),
        ("arguments 1", "{}"),
        ("end", 1),
    ]


def test_text_is_passed_on_at_once() -> None:
    parser = parser_for(HERMES)
    assert parser is not None
    assert parser.feed("a <b") == [TextDelta("a <b")]
    assert parser.feed(" <tool") == []
    assert parser.feed("s>") == [TextDelta(" <tools>")]


TEMPLATES = [HERMES, QWEN_CODER, GLM, MINIMAX, LLAMA, MISTRAL, HARMONY, GRANITE, COHERE, GEMMA]
FRAGMENTS = sorted(
    {
        case.written[i:j]
        for case in CASES.values()
        for i in range(0, 60, 12)
        for j in (i + 12, i + 30)
    }
    | {
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", ',
        '"arguments": {}}',
        "[TOOL_CALLS]",
        "f[ARGS]{}",
        "}",
    }
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TEMPLATES),
    st.lists(
        st.sampled_from([*FRAGMENTS, *(case.written for case in CASES.values())])
        | st.text(max_size=8),
        max_size=8,
    ),
    st.data(),
)
def test_cuts_make_no_difference(template: str, fragments: list[str], data: st.DataObject) -> None:
    written = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=12)))
    pieces = [written[i:j] for i, j in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    whole = plain(events_of(template, [written]))
    assert plain(events_of(template, pieces)) == whole == plain(events_of(template, list(written)))
    begun = [event[1] for event in whole if event[0] == "begin"]
    ended = [event[1] for event in whole if event[0] == "end"]
    assert begun == list(range(len(begun))) and set(ended) <= set(begun)
    for index in ended:
        (arguments,) = [event[1] for event in whole if event[0] == f"arguments {index}"]
        assert isinstance(json.loads(arguments), dict)
    if not begun:
        assert whole == ([("text", written)] if written else [])


# ---- values in tags ----

PROPERTIES = {
    "text": {"type": "string"},
    "maybe": {"type": ["string", "null"]},
    "flag": {"type": "boolean"},
    "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    "choice": {"enum": ["1", "2"]},
    "number": {"type": "integer"},
    "unknown": {},
}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *(("text", "12", "12"), ("text", '{"a": 1}', '{"a": 1}'), ("text", "null", "null")),
        *(("maybe", "null", None), ("flag", "True", True), ("either", "5", "5")),
        *(("choice", "1", "1"), ("number", " 5 ", 5), ("number", "five", "five")),
        *(("unknown", "5", 5), ("unknown", "NaN", "NaN"), ("unknown", '"x"', '"x"')),
        *(("unknown", "1e999", float("inf")), ("else", "true", True), ("else", "True", "True")),
    ],
)
def test_values_have_the_types_that_tools_describe(key: str, value: str, expected: Any) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}}
    written = f"<tool_call>f\n<arg_key>{key}</arg_key><arg_value>{value}</arg_value></tool_call>"
    for tools in ([{"type": "function", "function": function}], [function]):
        _, calls = gather(events_of(GLM, [written], tools))
        assert functions(calls) == [("f", {key: expected})]


@pytest.mark.parametrize(
    "tools",
    [
        [{}],
        [{"function": None}],
        [{"parameters": 1}],
        [{"parameters": {"properties": {"a": 1}}, "name": []}],
    ],
)
def test_descriptions_may_be_of_any_kind(tools: Any) -> None:
    assert functions(gather(events_of(GLM, [CASES["glm"].written], tools))[1]) == CASES["glm"].calls


def test_templates_without_calls() -> None:
    assert parser_for(None) is None
    assert parser_for("") is None
    assert parser_for(NONE) is None


# ---- the model ----

ASK: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def caller(tmp_path: Path, template: str, *says: str) -> Path:
    """A model that says this, of which what stands in <| |> or [ ] is a control token."""
    model = speaker(*(word.encode() for word in says))
    model.metadata["tokenizer.chat_template"] = template + "{{ messages[0].content }}"
    texts, kinds = (model.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    for i, text in enumerate(texts):
        if text.startswith(("<|", "[T", "[A")):
            kinds[i] = CONTROL
    return model.write(tmp_path / "model.gguf")


SAID = {
    "mistral": ("[TOOL_CALLS]", ["Yes.", "[TOOL_CALLS]", "f", "[ARGS]", '{"a": ', "1}"]),
    "llama": ("<|python_tag|>", ["<|python_tag|>", '{"name": "f", "parameters": {"a": ', "1}}"]),
    "granite": ("<|tool_call|>", ["<|tool_call|>", '[{"name": "f", "arguments"', ': {"a": 1}}]']),
    "gpt-oss": (
        "{# <|message|> #}<|start|>assistant<|channel|>",
        [" to=functions.f", "<|channel|>", "commentary json", "<|message|>", '{"a":', "1}"],
    ),
    "hermes": (
        "<think><tool_call>",
        [
            "<think>Hm</think>",
            "<tool",
            '_call>{"name": "f", ',
            '"arguments": {"a": 1}}</tool_call>',
        ],
    ),
}


@pytest.mark.parametrize("family", SAID)
def test_a_model_calls_tools(family: str, tmp_path: Path) -> None:
    template, says = SAID[family]
    if family == "gpt-oss":
        template = template.replace("<|channel|>", "{# <|channel|> #}")
    with mmrt.Model(caller(tmp_path, template, *says)) as model:
        answer = model.chat(ASK, tools=TOOLS)
        assert functions(answer.tool_calls) == [("f", {"a": 1})]
        assert answer == ("Yes." if family == "mistral" else "")
        assert answer.reasoning == ("Hm" if family == "hermes" else "")
        parser = model.tool_parser(TOOLS)
        assert parser is not None
        events: list[Event] = []
        for piece in model.stream_chat(ASK, tools=TOOLS):
            if piece.channel == "final":
                events += parser.feed(piece.text)
        assert functions(gather(events + parser.end())[1]) == [("f", {"a": 1})]
        # Without tools nothing is looked for, and control tokens are not shown.
        assert model.chat(ASK).tool_calls == []
        if family == "mistral":
            assert model.chat(ASK) == 'Yes.f{"a": 1}'


def test_a_stop_string_may_spell_the_mark_of_a_call(tmp_path: Path) -> None:
    template, says = SAID["mistral"]
    with mmrt.Model(caller(tmp_path, template, *says)) as model:
        answer = model.chat(ASK, tools=TOOLS, stop=["[TOOL_CALLS]"])
        assert (answer, answer.finish, answer.tool_calls) == ("Yes.", "stop", [])


def test_a_model_without_calls_has_no_parser(tmp_path: Path) -> None:
    with mmrt.Model(caller(tmp_path, "", "[TOOL_CALLS]", "f")) as model:
        assert model.tool_parser(TOOLS) is None
        answer = model.chat(ASK, tools=TOOLS)
        assert (answer, answer.tool_calls) == ("f", [])
