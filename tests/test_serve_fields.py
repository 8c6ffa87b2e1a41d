"""The server and fields of requests: each that is known is honoured, or refused by its name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from served import TOOLS_TEMPLATE, Running, running, write_speaker, write_talker
from test_serve_json import SCHEMA, formatted

import mmrt
from mmrt.serving.anthropic_messages import read_variables
from mmrt.serving.fields import Fields

MESSAGES = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    says = [b"Hel", b"lo", b", ", "wö".encode()[:2], "wö".encode()[2:], b"rld"]
    models = {
        "speaker": write_speaker(folder / "s.gguf", *says),
        "talker": write_talker(folder / "t.gguf", template=TOOLS_TEMPLATE),
    }
    with running(models) as found:
        yield found


REFUSED: dict[str, list[Any]] = {
    "typical_p": [0.9, 0, "1"],
    "suffix": ["x"],
    "prediction": [{}, {"type": "content", "content": "x"}],
    "web_search_options": [{}],
    "audio": [{}, {"voice": "a"}],
    "functions": [[{}]],
    "function_call": ["auto"],
    "min_tokens": [1],
    "skip_special_tokens": [False],
    "add_generation_prompt": [False],
    "chat_template": ["{{ 1 }}"],
    "documents": [[{}]],
    "grammar": ["root ::= x"],
    "guided_regex": ["x"],
    "mirostat": [2],
    "dry_multiplier": [0.5],
    "top_n_sigma": [2, 0.5],
    "samplers": [["top_k"]],
    "id_slot": [0, 3],
    "n_discard": [-1],
    "n_probs": [3],
    "n_predict": [5, 0],
    "include_reasoning": [False],
    "parse_tool_calls": [False],
    "truncation": ["auto"],
}
HARMLESS: dict[str, Any] = {
    "typical_p": 1.0,
    "suffix": "",
    "prediction": None,
    "functions": [],
    "function_call": "none",
    "verbosity": "low",
    "min_tokens": 0,
    "length_penalty": 1,
    "skip_special_tokens": True,
    "mirostat": 0,
    "top_n_sigma": -1,
    "id_slot": -1,
    "truncate_prompt_tokens": -1,
    "truncation": "disabled",
    "best_of": 1,
    "metadata": {"a": "b"},
    "store": True,
    "user": "u",
    "of_nobody": [1],
}


def test_what_is_known_and_not_honoured_is_refused_by_name(server: Running) -> None:
    for path, given in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 1}),
        ("/v1/responses", {"input": "x"}),
    ):
        for name, values in REFUSED.items():
            for value in values:
                reply = server.post(path, {**given, name: value})
                assert reply.status == 400, (path, name, value)
                assert reply.error["message"].startswith(f"{name}: ")
        assert server.post(path, {**given, **HARMLESS}).status == 200


def test_best_of_is_n(server: Running) -> None:
    cases: list[tuple[dict[str, Any], int]] = [({"best_of": 2}, 400), ({"best_of": 2, "n": 2}, 200)]
    for fields, expected in cases:
        assert server.chat(max_tokens=1, **fields).status == expected
        body = {"prompt": "x", "max_tokens": 1, **fields}
        assert server.post("/v1/completions", body).status == expected


def test_nothing_but_its_length_cuts_json(server: Running) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES, "response_format": formatted(SCHEMA)}),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "response_format": {"type": "json_object"}},
        ),
        ("/v1/completions", {"prompt": "x", "json_schema": SCHEMA}),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"},
        ),
        (
            "/v1/responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
    ):
        reply = server.post(path, {"model": "talker", "stop": ["a"], **body})
        assert reply.status == 400 and reply.error["param"] == "stop", reply
        reply = server.post(path, {"model": "talker", "stop": [], "max_tokens": 2, **body})
        assert reply.status == 200, reply
    by_format = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    body = {"model": "talker", "messages": MESSAGES, "max_tokens": 2, **by_format}
    reply = server.post("/v1/messages", {**body, "stop_sequences": ["a"]})
    assert reply.status == 400 and "stop" in reply.error["message"]
    assert server.served("talker").under_way == 0


@pytest.mark.parametrize("stop", [None, "lo", "el", "wö", "ö", "zzz"])
def test_each_token_is_told_with_its_probability(server: Running, stop: str | None) -> None:
    """Those of a stop string, too; not the one that ends a text by itself."""
    fields: dict[str, Any] = {"logprobs": True, **({} if stop is None else {"stop": stop})}
    reply = server.chat(**fields).json
    (choice,) = reply["choices"]
    listed = choice["logprobs"]["content"]
    ends_itself = choice["message"]["content"] == "Hello, wörld"
    assert len(listed) == reply["usage"]["completion_tokens"] - ends_itself
    spelled = b"".join(bytes(one["bytes"]) for one in listed).decode("utf-8", "ignore")
    assert spelled.startswith(choice["message"]["content"])
    assert stop in (None, "zzz") or str(stop) in spelled
    told = [
        one
        for event in server.chat(stream=True, **fields).events
        for one in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert told == listed


def test_offsets_of_tokens_are_those_in_the_text(server: Running) -> None:
    (choice,) = server.post("/v1/completions", prompt="x", logprobs=1).json["choices"]
    listed = choice["logprobs"]
    assert choice["text"] == "Hello, wörld"
    assert listed["tokens"] == ["Hel", "lo", ", ", r"bytes:\x77\xc3", r"bytes:\xb6", "rld"]
    assert listed["text_offset"] == [0, 3, 5, 7, 8, 9]
    assert [next(iter(top)) for top in listed["top_logprobs"]] == listed["tokens"]


def offsets(path: Path, prompt: Any, **fields: Any) -> tuple[str, list[str], list[int]]:
    with running({"it": path}) as server:
        body = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 0, **fields}
        (choice,) = server.post("/v1/completions", body).json["choices"]
    return choice["text"], choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]


def test_offsets_leave_out_what_the_text_lacks(tmp_path: Path) -> None:
    """A token that marks the beginning."""
    made = tiny_models.llama(type="Q8_0", context=512)
    made.metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 299}
    text, tokens, found = offsets(made.write(tmp_path / "m.gguf"), "ab c")
    assert text == "ab c" and tokens[0] == "<|im_end|>" and found[:2] == [0, 0]
    assert all(text[at:].startswith(token) for at, token in zip(found[1:], tokens[1:], strict=True))


def test_offsets_behind_what_is_no_character(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=512).write(tmp_path / "m.gguf")
    with mmrt.Model(path) as model:
        (broken,) = [i for i in range(300) if model.tokenizer.token_bytes(i) == b"\xf0"]
        (plain,) = [i for i in range(300) if model.tokenizer.token_bytes(i) == b"x"]
    text, tokens, found = offsets(path, [broken, broken, plain, broken])
    assert text == "\ufffd\ufffdx\ufffd" and tokens[0] == r"bytes:\xf0"
    assert found == [0, 1, 2, 3]


def test_calls_and_their_results_belong_together(server: Running) -> None:
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "Fine"}

    def reply(*said: tuple[str, Any]) -> Any:
        messages = [{"role": role, "content": content} for role, content in said]
        body = {"model": "talker", "messages": messages, "max_tokens": 1}
        return server.post("/v1/messages", body)

    good = reply(("user", "x"), ("assistant", [call]), ("user", [result, result]))
    assert good.status == 200, good
    for said, name in (
        ([("user", [call])], "messages[0].content[0].type"),
        ([("assistant", [result])], "messages[0].content[0].type"),
        ([("user", [{"type": "thinking", "thinking": "x"}])], "messages[0].content[0].type"),
        ([("user", [result])], "messages[0].content[0].tool_use_id"),
        ([("user", [result]), ("assistant", [call])], "messages[0].content[0].tool_use_id"),
        ([("user", [{**result, "tool_use_id": None}])], "messages[0].content[0].tool_use_id"),
        ([("user", [{**result, "tool_use_id": 5}])], "messages[0].content[0].tool_use_id"),
        ([("assistant", [{**call, "id": None}])], "messages[0].content[0].id"),
        ([("tool", "x")], "messages[0].role"),
        ([(["user"], "x")], "messages[0].role"),
    ):
        refused = reply(*said)
        assert refused.status == 400 and refused.error["message"].startswith(f"{name}: "), refused


def test_answers_of_tools_belong_to_calls(server: Running) -> None:
    function = {"name": "f", "arguments": "{}"}
    call = {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]}
    unnamed = {"role": "assistant", "tool_calls": [{"function": function}]}

    def reply(*messages: dict[str, Any]) -> Any:
        body = {"model": "talker", "messages": [*MESSAGES, *messages], "max_tokens": 1}
        return server.post("/v1/chat/completions", body)

    answer = {"role": "tool", "content": "Fine"}
    for good in ((call, {**answer, "tool_call_id": "a"}), (unnamed, answer)):
        assert reply(*good).status == 200
    for messages, code in (
        ([call, answer], "missing_required_parameter"),
        ([answer], "missing_required_parameter"),
        ([call, {**answer, "tool_call_id": "b"}], None),
        ([{**answer, "tool_call_id": "a"}, call], None),
        ([call, {**answer, "tool_call_id": 5}], None),
    ):
        refused = reply(*messages)
        assert refused.status == 400, messages
        assert refused.error["param"].endswith(".tool_call_id") and refused.error["code"] == code


def test_one_answer_where_there_is_room_for_one_alone(server: Running) -> None:
    for path, body in (
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 1}),
    ):
        refused = server.post(path, {**body, "n": 2})
        assert refused.status == 400 and refused.error["message"].startswith("n: ")
        for one in (1, 1.0):
            assert server.post(path, {**body, "n": one}).status == 200


def test_numbers_that_no_float_holds(server: Running) -> None:
    for value in (10**400, -(10**400)):
        cases: list[tuple[str, dict[str, Any]]] = [
            ("temperature", {"temperature": value}),
            ("logit_bias.1", {"logit_bias": {"1": value}}),
            ("max_tokens", {"max_tokens": value}),
        ]
        for name, given in cases:
            refused = server.chat(**given)
            assert refused.status == 400 and refused.error["param"] == name, refused


def test_what_templates_are_told_of_thinking() -> None:
    body: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 9}}
    assert read_variables(Fields(body)) == {"enable_thinking": True}
    body = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    assert read_variables(Fields(body)) == {"reasoning_effort": "low"}


def test_strict_tools_of_anthropic_are_held(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {}}}}
    tool = {"name": "f", "input_schema": schema}
    body = {"model": "talker", "messages": MESSAGES, "max_tokens": 1}
    assert server.post("/v1/messages", {**body, "tools": [tool]}).status == 200
    refused = server.post("/v1/messages", {**body, "tools": [{**tool, "strict": True}]})
    assert refused.status == 400 and "tools" in refused.error["message"], refused


def test_tokens_of_a_prompt_as_vllm_has_it(server: Running) -> None:
    plain = server.post("/tokenize", content="x").json["tokens"]
    with_bos = server.post("/tokenize", content="x", add_special=True).json["tokens"]
    assert server.post("/tokenize", prompt="x").json["tokens"] == with_bos
    assert server.post("/tokenize", prompt="x", add_special_tokens=True).json["tokens"] == with_bos
    assert server.post("/tokenize", prompt="x", add_special_tokens=False).json["tokens"] == plain
    for body in ({}, {"prompt": 5}, {"content": "x", "prompt": "x"}):
        assert server.post("/tokenize", body).status == 400, json.dumps(body)
