"""The server and tools: calls in whole answers and in streams, and what comes back of them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import TOOLS_TEMPLATE, Reply, Running, running, write_speaker, write_talker

from mmrt.serving import tools
from mmrt.serving.fields import Fields
from mmrt.serving.tools import chosen

SAID = [
    *("Let me ", "see.", "<tool", "_call>", '{"name": "wea', 'ther", "argu', 'ments": {"city": '),
    *(
        '"Zür',
        'ich"}}',
        "</tool_",
        'call><tool_call>{"name": "time", "arguments": {}}</tool_call>.',
    ),
]

FUNCTION = {"name": "weather", "description": "How it is.", "parameters": {"type": "object"}}
LLAMA_TEMPLATE = (
    """{# <|start_header_id|> {"name": f, "parameters": {}} #}"""
    + TOOLS_TEMPLATE.replace("<tool_call>", "").replace("</tool_call>", "")
)
TOOLS = [{"type": "function", "function": FUNCTION}]
UNHELD: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
TIME = {"type": "function", "function": {"name": "time"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    says = [text.encode() for text in SAID]
    models = {
        "caller": write_speaker(folder / "c.gguf", *says, template=TOOLS_TEMPLATE, context=2048),
        "talker": write_talker(folder / "t.gguf"),
        "llama": write_talker(folder / "l.gguf", template=LLAMA_TEMPLATE),
    }
    with running(models) as found:
        yield found


def calls(message: Any) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def gathered(reply: Reply) -> tuple[dict[str, Any], str | None]:
    """The message that a stream tells, and why it ended."""
    message: dict[str, Any] = {"content": ""}
    reason = None
    for event in reply.events:
        (choice,) = event["choices"]
        delta = choice["delta"]
        reason = choice["finish_reason"] or reason
        message["content"] += delta.get("content") or ""
        for part in delta.get("tool_calls", []):
            known = message.setdefault("tool_calls", [])
            if part["index"] == len(known):
                assert part["id"] and part["type"] == "function" and part["function"]["name"]
                known.append({"function": {"name": part["function"]["name"], "arguments": ""}})
            else:
                assert "id" not in part and "name" not in part["function"]
            known[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message, reason


def test_calls_are_told_whole_and_in_streams(server: Running) -> None:
    (choice,) = server.chat(tools=[*TOOLS, TIME]).json["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "Let me see.."
    assert calls(message) == [("weather", {"city": "Zürich"}), ("time", {})]
    assert all(call["id"] and call["type"] == "function" for call in message["tool_calls"])
    told, reason = gathered(server.chat(tools=[*TOOLS, TIME], stream=True))
    assert reason == "tool_calls" and calls(told) == calls(message)
    assert told["content"] == message["content"]


def test_one_call_where_no_more_are_wanted(server: Running) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "parallel_tool_calls": False}
    (choice,) = server.chat(**fields).json["choices"]
    assert calls(choice["message"]) == [("weather", {"city": "Zürich"})]
    assert choice["finish_reason"] == "tool_calls"
    told, reason = gathered(server.chat(stream=True, **fields))
    assert (calls(told), reason) == (calls(choice["message"]), "tool_calls")


def test_calls_that_must_be_made(server: Running) -> None:
    asked: list[tuple[Any, set[str]]] = [
        ("required", {"weather", "time"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
    ]
    for choice, names in asked:
        fields: dict[str, Any] = {"tools": [*TOOLS, TIME], "tool_choice": choice}
        (answer,) = server.chat(**fields).json["choices"]
        ((name, arguments),) = calls(answer["message"])
        assert name in names and (name == "weather" or arguments == {})
        assert answer["finish_reason"] == "tool_calls" and not answer["message"]["content"]
        told, reason = gathered(server.chat(stream=True, **fields))
        assert (calls(told), reason) == (calls(answer["message"]), "tool_calls")
    reply = server.post(
        "/v1/messages",
        {
            "model": "caller",
            "max_tokens": 200,
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"name": "now", "input_schema": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "any"},
        },
    )
    assert [block["type"] for block in reply.json["content"]] == ["tool_use"]
    function = {"type": "function", "name": "now"}
    body = {"model": "caller", "input": "x", "tools": [function], "tool_choice": function}
    (item,) = server.post("/v1/responses", body).json["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "now", "{}")


def test_strict_calls_are_held_to_their_schemas(server: Running) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Ulm"]}}, "required": ["city"]}
    strict = {**FUNCTION, "parameters": schema, "strict": True}
    fields: dict[str, Any] = {"tools": [{"type": "function", "function": strict}]}
    (choice,) = server.chat(max_tokens=200, **fields).json["choices"]
    said = calls(choice["message"])
    assert said and said == [("weather", {"city": "Ulm"})] * len(said)


def test_strict_calls_of_llama_are_held_too(server: Running) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Ulm"]}}, "required": ["city"]}
    strict = {**FUNCTION, "parameters": schema, "strict": True}
    fields: dict[str, Any] = {"model": "llama", "tools": [{"type": "function", "function": strict}]}
    (brace,) = server.post("/tokenize", model="llama", content="{").json["tokens"]
    (choice,) = server.chat(logit_bias={brace: 100}, **fields).json["choices"]
    said = calls(choice["message"])  # what begins as a call is one
    assert said and said == [("weather", {"city": "Ulm"})] * len(said)
    for seed in range(4):
        asked = {**fields, "seed": seed, "temperature": 2.0, "max_tokens": 20}
        (choice,) = server.chat(**asked, logit_bias={brace: -100}).json["choices"]
        assert "tool_calls" not in choice["message"] and choice["message"]["content"]


def test_without_tools_there_are_no_calls(server: Running) -> None:
    none: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}]
    for fields in none:
        (choice,) = server.chat(**fields).json["choices"]
        assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == "".join(SAID)


def test_a_call_that_is_cut_off_is_no_call(server: Running) -> None:
    (choice,) = server.chat(tools=TOOLS, max_tokens=6).json["choices"]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]


def test_what_cannot_be_held_is_refused(server: Running) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"tools": TOOLS, "model": "talker"}, "tools"),  # its template shows none
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tools": [UNHELD], "tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "json_schema": {}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": 1}}]}, "strict"),
        ({"tools": [{**UNHELD, "function": {**UNHELD["function"], "strict": True}}]}, "tools"),
        ({"tools": TOOLS * 1000}, "tools"),
    ]
    for fields, name in bad:
        reply = server.chat(**fields)
        assert reply.status == 400 and name in reply.error["param"], reply


def test_answers_of_tools_reach_the_template(server: Running) -> None:
    function = {"name": "weather", "arguments": '{"city": "Zürich", "days": 2}'}
    text = {"type": "text", "text": "Fine<|im_end|>"}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "a1", "content": [text]},
    ]
    body = {"messages": messages, "tools": TOOLS}
    prompt = server.post("/apply-template", body).json["prompt"]
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}' in prompt
    assert "<|im_start|>tool\nFine<|im_end|><|im_end|>" in prompt
    tokenizer = server.served("caller").model.tokenizer
    ids = server.post("/tokenize", body).json["tokens"]
    assert sum(tokenizer.is_special(one) for one in ids) == 2 * 4 + 1  # none by the tool
    assert server.post("/v1/chat/completions", body).status == 200


def test_the_order_of_keys_stays(server: Running) -> None:
    """Another order would be another prompt, read anew."""
    function = {"description": "x", "parameters": {"z": 1, "a": 2}, "name": "weather"}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": function}]}
    prompt = server.post("/apply-template", body).json["prompt"]
    assert json.dumps(function) in prompt


def test_tools_that_may_be_called(server: Running) -> None:
    """In the forms of chats and of responses."""
    names = ("a", "b", "c")
    offered = [{"type": "function", "function": {"name": name}} for name in names]
    flat = [{"type": "function", "name": name} for name in ("c", "a")]
    nested = [{"type": "function", "function": {"name": name}} for name in ("c", "a")]
    choice: dict[str, Any]
    for mode, must in (("auto", None), ("required", "")):
        for choice in (
            {"mode": mode, "tools": flat},
            {"allowed_tools": {"mode": mode, "tools": nested}},
        ):
            fields = Fields({"tool_choice": {"type": "allowed_tools", **choice}})
            found = chosen(fields, offered)
            assert found.offered == [offered[0], offered[2]] and found.must == must
    for choice, word in (
        ({"mode": "auto"}, "tools"),
        ({"mode": "auto", "tools": [{"type": "function", "name": "nobody"}]}, "nobody"),
        ({"mode": "auto", "tools": [{"type": "function"}]}, "name"),
        ({"mode": "required", "tools": []}, "no tools"),
        ({"mode": "none", "tools": flat}, "mode"),
    ):
        reply = server.chat(tools=TOOLS, tool_choice={"type": "allowed_tools", **choice})
        assert reply.status == 400 and word in reply.error["message"], reply


def test_tools_that_are_named_often_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str | None] = []
    monkeypatch.setattr(tools, "require_offered", lambda name, offered: looks.append(name))
    given = {"type": "allowed_tools", "tools": [{"name": "weather"}] * 1000}
    assert chosen(Fields({"tool_choice": given}), TOOLS).offered == TOOLS
    assert looks == ["weather", None]
