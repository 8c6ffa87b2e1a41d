"""The server and JSON: answers that are valid by a schema, or a refusal."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from served import Running, running, write_talker

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "size", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = write_talker(tmp_path_factory.mktemp("served") / "t.gguf")
    with running({"talker": path}) as found:
        yield found


def formatted(schema: Any) -> dict[str, Any]:
    described = {"name": "thing", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": described}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": formatted(SCHEMA)},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
    ],
)
def test_answers_are_valid_whole_and_in_streams(server: Running, fields: dict[str, Any]) -> None:
    for seed in range(4):
        asked = {**fields, "temperature": 1.0, "seed": seed}
        (choice,) = server.chat(**asked).json["choices"]
        assert choice["finish_reason"] == "stop"
        text = choice["message"]["content"]
        jsonschema.validate(json.loads(text), SCHEMA)
        chunks = server.chat(stream=True, **asked).events
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text


def test_an_object_of_any_kind(server: Running) -> None:
    fields: dict[str, Any] = {"response_format": {"type": "json_object"}, "seed": 3}
    (choice,) = server.chat(temperature=0.5, max_tokens=400, **fields).json["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")


def test_completions_and_messages_are_held_too(server: Running) -> None:
    body = {"prompt": "ab", "max_tokens": 99, "response_format": formatted(SCHEMA)}
    (choice,) = server.post("/v1/completions", body).json["choices"]
    jsonschema.validate(json.loads(choice["text"]), SCHEMA)
    asked = {
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "x"}],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    (block,) = server.post("/v1/messages", asked).json["content"]
    jsonschema.validate(json.loads(block["text"]), SCHEMA)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        formatted("string"),
        formatted({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}),
        formatted({"$ref": "#/nowhere"}),
        formatted({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        formatted({"type": "string", "minLength": 5, "maxLength": 2}),
    ],
)
def test_what_cannot_be_held_is_refused(server: Running, response_format: Any) -> None:
    for stream in (False, True):
        reply = server.chat(response_format=response_format, stream=stream)
        assert reply.status == 400, reply
        assert "response_format" in reply.error["param"]
    assert server.served().under_way == 0
