"""The server's OpenAPI document: what it says of requests and answers is so."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from served import TOOLS_TEMPLATE, Running, running, write_speaker, write_talker

from mmrt.serving import openapi
from mmrt.serving.access import Access
from mmrt.serving.answered import CHAT_CHUNK, COMPLETION, MESSAGE, RESPONSE
from mmrt.serving.app import ROUTES
from mmrt.serving.limits import Limits

# Small ones, so that what is beyond them is small too.
LIMITS = Limits(messages=3, tools=2, n=2, stop=2, stop_bytes=8, logit_bias=2)

CONFIG = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    call = b'<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    thinks = b"<think>Hm</think>Well"
    models = {
        "speaker": write_speaker(
            folder / "s.gguf", b"Hel", b"lo", template=TOOLS_TEMPLATE, context=128
        ),
        "talker": write_talker(folder / "t.gguf", template=TOOLS_TEMPLATE, context=256),
        "caller": write_speaker(folder / "c.gguf", call, template=TOOLS_TEMPLATE),
        "thinker": write_speaker(
            folder / "th.gguf", thinks, template=TOOLS_TEMPLATE + "{# <think></think> #}"
        ),
    }
    with running(models, LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return server.get("/openapi.json").json


def test_all_paths_are_there(server: Running, document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    told = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert told == {(route.method, route.path or "/") for route in ROUTES}
    limits = server.server.limits
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    fields = chat["application/json"]["schema"]["properties"]
    assert fields["n"] == {"type": ["integer", "null"], "minimum": 1, "maximum": limits.n}
    assert fields["messages"]["maxItems"] == limits.messages
    assert "Not supported" in fields["min_tokens"]["description"]
    jsonschema.Draft202012Validator.check_schema(chat["application/json"]["schema"])


TOOL = {"name": "f", "parameters": {"type": "object"}}
ASKED: list[dict[str, Any]] = [
    {"model": "speaker"},
    {"model": "talker", "max_tokens": 3, "max_output_tokens": 3, "temperature": 1},
    {"model": "thinker"},
    {"model": "caller"},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: str(asked["model"]))
def test_answers_are_as_described(server: Running, asked: dict[str, Any]) -> None:
    tools = (
        {"tools": [{"type": "function", "function": TOOL}]} if asked["model"] == "caller" else {}
    )
    given = {"messages": MESSAGES, "stream": True, **asked}
    given["stream_options"] = {"include_usage": True}
    for event in server.post("/v1/chat/completions", {**given, **tools, "logprobs": True}).events:
        jsonschema.validate(event, CHAT_CHUNK)
    for event in server.post("/v1/completions", {**given, "prompt": "x", "logprobs": 2}).events:
        jsonschema.validate(event, COMPLETION)
    flat = {"tools": [{"type": "function", **TOOL}]} if tools else {}
    jsonschema.validate(
        server.post("/v1/responses", {**asked, **flat, "input": "x"}).json, RESPONSE
    )
    flat = {"tools": [{"name": "f", "input_schema": {"type": "object"}}]} if tools else {}
    body = {"max_tokens": 90, **asked, **flat, "messages": MESSAGES}
    jsonschema.validate(server.post("/v1/messages", body).json, MESSAGE)


# What the document describes, asked for at random.
API = schemathesis.openapi.from_dict(
    openapi.document(ROUTES, LIMITS, Access().without_key), config=CONFIG
)


@API.hook
def map_body(context: Any, body: Any) -> Any:
    """Names no model: a random name is nobody's."""
    return {k: v for k, v in body.items() if k != "model"} if isinstance(body, dict) else body


@API.parametrize()
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_is_answered_as_described(server: Running, case: Any) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS)
