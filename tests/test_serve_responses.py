"""The server's /v1/responses, as OpenAI's client sees it."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from served import TOOLS_TEMPLATE, Running, client_of, running, write_speaker, write_talker
from test_serve_anthropic import CALL, THINKS
from test_serve_json import SCHEMA

TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    says = [text.encode() for text in CALL]
    thoughts = [b"<think>", b"Hm.", b"</think>", b"Yes", b"."]
    models = {
        "speaker": write_speaker(folder / "s.gguf", b"Hel", b"lo", b"!"),
        "caller": write_speaker(folder / "c.gguf", *says, template=TOOLS_TEMPLATE, context=2048),
        "thinker": write_speaker(folder / "h.gguf", *thoughts, template=THINKS),
        "talker": write_talker(folder / "t.gguf", template=TOOLS_TEMPLATE),
    }
    with running(models) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def test_a_response(client: Any) -> None:
    response = client.responses.create(model="speaker", input="Hello", instructions="Be brief.")
    assert response.output_text == "Hello!" and response.status == "completed"
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert response.id.startswith("resp_") and item.id.startswith("msg_")
    assert response.usage.output_tokens == 4 and response.usage.input_tokens > 0
    assert response.usage.total_tokens == response.usage.input_tokens + 4
    assert response.instructions == "Be brief." and response.error is None


def test_a_response_that_is_cut(client: Any) -> None:
    response = client.responses.create(model="speaker", input="Hello", max_output_tokens=2)
    assert response.output_text == "Hello" and response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


@pytest.mark.parametrize("model", ["speaker", "caller", "thinker"])
def test_a_stream_makes_the_same(client: Any, model: str) -> None:
    asked = {"model": model, "input": "Hello", "tools": TOOLS if model == "caller" else []}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"

    def said(response: Any) -> Any:
        found = json.loads(response.model_dump_json())
        for item in found["output"]:
            del item["id"]
            item.pop("call_id", None)
        return found["output"]

    assert said(events[-1].response) == said(whole)
    for index, item in enumerate(events[-1].response.output):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        assert own[0].type == "response.output_item.added" and own[0].item.id == item.id
        assert own[-1].type == "response.output_item.done" and own[-1].item == item
        deltas = "".join(event.delta for event in own if event.type.endswith(".delta"))
        done = [event for event in own if event.type.endswith((".done",))]
        if item.type == "function_call":
            assert deltas == item.arguments == done[0].arguments
        else:
            assert deltas == item.content[0].text == done[0].text
        assert {e.item_id for e in own if hasattr(e, "item_id")} == {item.id}


def test_the_client_gathers_streams(client: Any) -> None:
    with client.responses.stream(model="speaker", input="Hello") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == "Hello!"


def test_a_session_of_several_turns(client: Any) -> None:
    """As Codex has it: all items are sent again each time."""
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "How?"}]}]
    read = 0
    for _ in range(5):
        response = client.responses.create(model="caller", input=items, tools=TOOLS, store=False)
        text, call = response.output
        assert text.content[0].text == "I look." and call.name == "weather"
        assert json.loads(call.arguments) == {"city": "Zürich"}
        cached = response.usage.input_tokens_details.cached_tokens
        assert cached >= read - 8
        read = response.usage.input_tokens
        items += [item.model_dump(exclude_none=True) for item in response.output]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": "Fine"})


def test_items_reach_the_template() -> None:
    from mmrt.serving.fields import Fields
    from mmrt.serving.limits import Limits
    from mmrt.serving.responses_input import read_items, read_messages

    body = {
        "instructions": "I",
        "input": [
            {"role": "developer", "content": "D"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "U"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "R"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": ""},
            {"type": "function_call_output", "call_id": "1", "output": "O"},
        ],
    }
    fields = Fields(body)
    items = read_items(fields)
    system, developer, user, assistant, tool = read_messages(fields, [], items, Limits())
    assert system == {"role": "system", "content": "I"}
    assert developer == {"role": "system", "content": "D"}
    assert user["content"] == [{"type": "text", "text": "U"}]
    assert assistant["reasoning_content"] == "R"
    assert assistant["content"] == [{"type": "text", "text": "A"}]
    functions = [call["function"] for call in assistant["tool_calls"]]
    assert functions == [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
    assert tool == {"role": "tool", "tool_call_id": "1", "content": "O"}


def test_json_by_a_schema(client: Any) -> None:
    wanted = {"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA, "strict": True}}
    response = client.responses.create(model="talker", input="x", text=wanted, temperature=1.0)
    jsonschema.validate(json.loads(response.output_text), SCHEMA)
    assert response.text.format.name == "thing"


def test_log_probabilities(client: Any) -> None:
    response = client.responses.create(
        model="talker", input="x", max_output_tokens=4, top_logprobs=2,
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    listed = response.output[0].content[0].logprobs
    assert len(listed) == 4 and all(len(one.top_logprobs) == 2 for one in listed)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "type"),
        ({"input": [{"role": "user"}]}, "content"),
        ({"input": [{"type": "function_call", "call_id": "1"}]}, "name"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
            "input[0].call_id",
        ),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "code_interpreter"}]}, "type"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": [{**TOOLS[0], "strict": 1}]}, "strict"),
        ({"text": {"format": {"type": "grammar"}}}, "type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_not_kept_or_known_is_refused(server: Running, fields: Any, name: str) -> None:
    reply = server.post("/v1/responses", {"model": "caller", "input": "x"} | fields)
    assert reply.status == 400 and name in reply.error["param"], reply


def test_an_error_in_a_stream_fails_the_response(server: Running, client: Any) -> None:
    from mmrt.errors import FormatError

    model = server.served("speaker").model
    run = model.run_step

    def broken(parts: Any, logits: Any = None) -> None:
        raise FormatError("NaN somewhere")

    model.run_step = broken
    try:
        events = list(client.responses.create(model="speaker", input="new!", stream=True))
    finally:
        model.run_step = run
    assert events[-1].type == "response.failed"
    assert "NaN" in events[-1].response.error.message
