"""The server as OpenAI's client sees it: chats, streams, tools, JSON, completions, errors."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from served import TOOLS_TEMPLATE, Running, running, write_speaker, write_talker
from test_serve_anthropic import CALL

from mmrt.serving.limits import Limits

HELLO: Any = [{"role": "user", "content": "Hello"}]
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    says = [text.encode() for text in CALL]
    models = {
        "speaker": write_speaker(folder / "s.gguf", b"Hel", b"lo", b"!"),
        "caller": write_speaker(folder / "c.gguf", *says, template=TOOLS_TEMPLATE, context=2048),
        "talker": write_talker(folder / "t.gguf", template=TOOLS_TEMPLATE),
    }
    with running(models, Limits(queue=4)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["speaker", "caller", "talker"]
    assert client.models.retrieve("talker").owned_by == "mmrt"


def test_a_chat(client: Any) -> None:
    reply = client.chat.completions.create(model="speaker", messages=HELLO)
    assert reply.choices[0].message.content == "Hello!"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 4
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0
    assert reply._request_id.startswith("req_")


def test_a_stream(client: Any) -> None:
    asked = {"model": "speaker", "messages": HELLO, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(stream=True, **asked))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == "Hello!" and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 4


def test_the_client_gathers_calls_of_streams(client: Any) -> None:
    asked = {"model": "caller", "messages": HELLO, "tools": TOOLS}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        told = stream.get_final_completion().choices[0]
    for choice in (whole, told):
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "weather")
        assert call.function.arguments == '{"city": "Zürich"}' and call.id
        assert choice.message.content == "I look." and choice.finish_reason == "tool_calls"


def test_an_answer_of_a_tool_goes_back(client: Any) -> None:
    first = client.chat.completions.create(model="caller", messages=HELLO, tools=TOOLS)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Fine."}
    again = client.chat.completions.create(
        model="caller", messages=[*HELLO, message, result], tools=TOOLS
    )
    assert again.choices[0].message.tool_calls
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens - 8


class Thing(BaseModel):
    kind: Literal["small", "large"]
    count: int = Field(ge=0, le=99)  # or a model may write digits without end


def test_answers_are_parsed_into_classes(client: Any) -> None:
    reply = client.chat.completions.parse(
        model="talker", messages=HELLO, response_format=Thing, temperature=1.0, seed=3
    )
    assert isinstance(reply.choices[0].message.parsed, Thing)
    response = client.responses.parse(
        model="talker", input="Hello", text_format=Thing, temperature=1.0
    )
    assert isinstance(response.output_parsed, Thing)


def test_completions(client: Any) -> None:
    reply = client.completions.create(model="talker", prompt="ab", echo=True, logprobs=2)
    assert reply.choices[0].text.startswith("ab")
    listed = reply.choices[0].logprobs
    assert listed.token_logprobs[0] is None and len(listed.tokens) == 17
    chunks = client.completions.create(model="talker", prompt="ab", stream=True)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert reply.choices[0].text == "ab" + text


def test_log_probabilities_and_several_answers(client: Any) -> None:
    reply = client.chat.completions.create(
        model="talker", messages=HELLO, n=2, logprobs=True, top_logprobs=2, max_tokens=3, seed=1,
        temperature=1.0,
    )  # fmt: skip
    assert [choice.index for choice in reply.choices] == [0, 1]
    for choice in reply.choices:
        assert len(choice.logprobs.content) == 3
        assert len(choice.logprobs.content[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, None),
        ({"n": 100}, openai.BadRequestError, None),
        (
            {"messages": [{"role": "user", "content": "a" * 9000}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        ({"functions": [FUNCTION]}, openai.BadRequestError, "unsupported_parameter"),
    ],
)
def test_errors_are_the_clients_own(
    client: Any, fields: dict[str, Any], error: type[openai.APIStatusError], code: str | None
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as raised:
            client.chat.completions.create(
                **({"model": "talker", "messages": HELLO, "stream": stream} | fields)
            )
        assert raised.value.code == code


def test_an_error_in_a_stream_is_raised(server: Running, client: Any) -> None:
    from mmrt.errors import FormatError

    model = server.served("speaker").model
    run = model.run_step

    def broken(parts: Any, logits: Any = None) -> None:
        raise FormatError("NaN somewhere")

    model.run_step = broken
    try:
        with pytest.raises(openai.APIError, match="NaN somewhere"):
            list(
                client.chat.completions.create(
                    model="speaker", stream=True, messages=[{"role": "user", "content": "new!"}]
                )
            )
    finally:
        model.run_step = run


def test_clients_that_are_refused_come_again(server: Running) -> None:
    """Ten at once, of whom four find room: the client waits as it is told, and all are answered."""

    async def ask() -> list[Any]:
        made = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20)
        async with made as client:
            asked = {"model": "speaker", "messages": HELLO}
            return await asyncio.gather(
                *(client.chat.completions.create(**asked) for _ in range(10))
            )

    replies = asyncio.run(ask())
    assert [reply.choices[0].message.content for reply in replies] == ["Hello!"] * 10


def test_a_base_url_without_its_version(server: Running) -> None:
    """As other servers take it, too."""
    messages: Any = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        made = client.chat.completions.create(model="speaker", messages=messages)
        assert made.choices[0].message.content
        assert [one.id for one in client.models.list()] == ["speaker", "caller", "talker"]
        response = client.responses.create(model="speaker", input="Hello")
        assert client.responses.retrieve(response.id).output_text == response.output_text
    assert server.get("/nothing").status == 404
