"""The server as Anthropic's client sees it."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from served import TOOLS_TEMPLATE, Running, running, write_speaker, write_talker

THINKS = "{% for m in messages %}{{ m.content }}\n{% endfor %}{# <think> </think> #}"
CALL = [
    *("I look.", "<tool_call>", '{"name": "weather", "argu', 'ments": {"city": "Zürich"}}'),
    "</tool_call>",
]
TOOLS: Any = [
    {
        "name": "weather",
        "description": "How it is.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
HELLO: Any = [{"role": "user", "content": "Hello"}]


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
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_message(client: Any) -> None:
    message = client.messages.create(model="speaker", max_tokens=50, messages=HELLO)
    assert [(b.type, getattr(b, "text", "")) for b in message.content] == [("text", "Hello!")]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.role == "assistant" and message.id.startswith("msg_")
    assert message._request_id.startswith("req_")
    assert message.usage.output_tokens == 4 and message.usage.input_tokens > 0


def test_ends(client: Any) -> None:
    message = client.messages.create(model="speaker", max_tokens=2, messages=HELLO)
    assert message.stop_reason == "max_tokens"
    message = client.messages.create(
        model="speaker", max_tokens=50, messages=HELLO, stop_sequences=["xyz", "o!", "!"]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "o!")
    assert getattr(message.content[0], "text", "") == "Hell"


def test_a_stream(client: Any) -> None:
    with client.messages.stream(model="speaker", max_tokens=50, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "Hello!"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == 4
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) > 0


def test_events_come_in_order(server: Running) -> None:
    body = {"model": "caller", "max_tokens": 50, "messages": HELLO, "tools": TOOLS, "stream": True}
    reply = server.post("/v1/messages", body)
    names = [line[7:] for line in reply.body.decode().splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in reply.events]
    short = [name.removeprefix("content_block_") for name in names if name != "ping"]
    assert [name for i, name in enumerate(short) if i == 0 or short[i - 1] != name] == [
        *("message_start", "start", "delta", "stop", "start", "delta", "stop"),
        *("message_delta", "message_stop"),
    ]
    indexes = [event["index"] for event in reply.events if "index" in event]
    assert indexes == sorted(indexes) and set(indexes) == {0, 1}


def test_calls_of_tools(client: Any) -> None:
    asked: Any = {"model": "caller", "max_tokens": 50, "messages": HELLO, "tools": TOOLS}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        told = stream.get_final_message()
    for message in (whole, told):
        text, call = message.content
        assert text.type == "text" and text.text == "I look."
        assert call.type == "tool_use" and call.name == "weather" and call.id
        assert call.input == {"city": "Zürich"} and message.stop_reason == "tool_use"
    answered: Any = [
        *HELLO,
        {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "Fine"},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    after = client.messages.create(**{**asked, "messages": answered})
    assert after.stop_reason == "tool_use"


def test_thinking(client: Any) -> None:
    asked: Any = {"model": "thinker", "max_tokens": 50, "messages": HELLO}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        told = stream.get_final_message()
    for message in (whole, told):
        thought, text = message.content
        assert thought.type == "thinking" and thought.thinking == "Hm."
        assert text.type == "text" and text.text == "Yes."


def test_tokens_are_counted_and_the_cached_ones_apart(client: Any) -> None:
    messages: Any = [{"role": "user", "content": "a" * 400}]
    asked: Any = {"model": "talker", "messages": messages, "system": "Be brief."}
    count = client.messages.count_tokens(**asked).input_tokens
    first = client.messages.create(max_tokens=1, **asked).usage
    again = client.messages.create(max_tokens=1, **asked).usage
    for usage in (first, again):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count
    assert again.input_tokens <= 8


def test_a_line_that_changes_each_time_is_left_out(client: Any) -> None:
    def count(number: int) -> int:
        line = f"x-anthropic-billing-header: cc_version=2.1; cch={number};"
        system: Any = [{"type": "text", "text": line}, {"type": "text", "text": "b" * 300}]
        usage = client.messages.create(
            model="talker", max_tokens=1, messages=HELLO, system=system
        ).usage
        return int(usage.input_tokens)

    assert count(1) > 100 and count(22222) <= 8


def test_blocks_reach_the_template(server: Running) -> None:
    from mmrt.serving.anthropic_messages import read_messages, read_tools
    from mmrt.serving.fields import Fields

    body = {
        "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": "U"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "T", "signature": "x"},
                    {"type": "text", "text": "A"},
                    {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Z"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True}
                ],
            },
        ],
    }
    system, user, assistant, tool = read_messages(Fields(body))
    assert system == {"role": "system", "content": "S"} and user["content"] == "U"
    assert assistant["reasoning_content"] == "T"
    assert assistant["content"] == [{"type": "text", "text": "A"}]
    assert assistant["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "Z"},
    }
    assert tool == {"role": "tool", "tool_call_id": "1", "content": "Error: no"}
    (offered,) = read_tools(Fields(body)).offered or []
    assert offered["function"]["parameters"] == TOOLS[0]["input_schema"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"thinking": {"type": "very"}}, "thinking"),
    ],
)
def test_errors_have_anthropics_form(server: Running, fields: Any, word: str) -> None:
    body = {"model": "caller", "max_tokens": 5, "messages": HELLO} | fields
    reply = server.post("/v1/messages", body)
    assert reply.status == 400 and reply.json["type"] == "error"
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert word in reply.json["error"]["message"]


def test_a_prompt_that_is_too_long(client: Any) -> None:
    messages: Any = [{"role": "user", "content": "a" * 9000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048"):
        client.messages.create(model="talker", max_tokens=5, messages=messages)
    with pytest.raises(anthropic.NotFoundError, match="there is no model"):
        client.messages.create(model="nobody", max_tokens=5, messages=HELLO)


def test_an_error_in_a_stream_is_an_event(server: Running) -> None:
    from mmrt.errors import FormatError

    model = server.served("speaker").model
    run = model.run_step

    def broken(parts: Any, logits: Any = None) -> None:
        raise FormatError("NaN somewhere")

    model.run_step = broken
    try:
        body = {"max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "new!"}]}
        events = server.post("/v1/messages", body).events
    finally:
        model.run_step = run
    assert [event["type"] for event in events] == ["message_start", "error"]
    assert events[-1]["error"]["type"] == "api_error" and "NaN" in json.dumps(events[-1])
