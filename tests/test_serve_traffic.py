"""The server and whatever may come: bodies and heads that are made at random, from good ones."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import TOOLS_TEMPLATE, Reply, Running, running, write_talker
from test_serve_limits import raw, rest, until

from mmrt.serving.limits import Limits

LIMITS = replace(Limits(), messages=6, tools=3, header_seconds=2.0, body_seconds=2.0)
MANY = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = write_talker(tmp_path_factory.mktemp("served") / "t.gguf", template=TOOLS_TEMPLATE)
    with running({"talker": path}, LIMITS) as found:
        yield found
        until(lambda: found.served().under_way == 0)
        assert not [note for note in found.notes if note.startswith("error")]


# ---- values ----

texts = st.sampled_from(["", "x", "ab c", "<|im_end|>", "\x00", "\ud800", "é\u2028", "a" * 300])
numbers = st.sampled_from([0, 1, 2, -1, 0.5, -0.0, 1.0, 1e308, 2**31, 2**63, -(2**70), 10**30])
plain = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.sampled_from(["type", "text", "name"]), inner, max_size=3)
    ),
    max_leaves=6,
)
flags = st.booleans()


def rarely(good: Any) -> Any:
    """A good value, or now and then any."""
    return st.one_of(good, good, good, values)


def objects(needed: dict[str, Any], **optional: Any) -> Any:
    return st.fixed_dictionaries(needed, optional=optional)


schemas = st.sampled_from(
    [
        *({}, True, False, {"type": "object"}, {"enum": ["a", 1]}, {"not": {}}, {"$ref": "#/x"}),
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        *({"type": "string", "pattern": "("}, {"type": 5}, {"anyOf": []}, {"minLength": -1}),
    ]
)
functions = objects(
    {"name": st.sampled_from(["f", "g", "", "a b"])},
    description=texts, parameters=schemas, strict=flags,
)  # fmt: skip
tools = st.lists(objects({"type": st.just("function"), "function": functions}), max_size=4)
choices = st.sampled_from(
    ["none", "auto", "required", {"type": "function", "function": {"name": "f"}}, {"type": "x"}]
)
parts = st.lists(
    objects({"type": st.sampled_from(["text", "image_url"]), "text": texts}), max_size=2
)
calls = st.just([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}])
messages = st.lists(
    objects(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"])},
        content=texts | parts, tool_calls=calls, tool_call_id=texts, name=texts,
    ),
    max_size=7,
)  # fmt: skip
formats = st.sampled_from(
    [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "y"}]
) | schemas.map(lambda schema: {"type": "json_schema", "json_schema": {"schema": schema}})

SAMPLING = {
    "model": st.sampled_from(["talker", "nobody", ""]),
    "temperature": numbers, "top_p": numbers, "top_k": numbers, "min_p": numbers, "seed": numbers,
    "presence_penalty": numbers, "frequency_penalty": numbers, "repeat_penalty": numbers,
    "repeat_last_n": numbers, "ignore_eos": flags, "n": st.sampled_from([1, 2, 9]),
    "stop": texts | st.lists(texts, max_size=3), "stream": flags, "best_of": numbers,
    "logit_bias": st.dictionaries(st.sampled_from(["1", "5", "-1", "x", "9" * 40]), numbers),
    "stream_options": objects({}, include_usage=flags), "priority": numbers, "cache_salt": texts,
    "service_tier": st.sampled_from(["auto", "flex", "x"]), "user": texts, "typical_p": numbers,
}  # fmt: skip
CHAT = {
    "tools": tools, "tool_choice": choices, "parallel_tool_calls": flags,
    "response_format": formats, "chat_template_kwargs": values, "reasoning_effort": texts,
}  # fmt: skip

blocks = st.lists(
    st.sampled_from(
        [
            {"type": "text", "text": "x"},
            {"type": "tool_use", "id": "1", "name": "f", "input": {}},
            {"type": "tool_result", "tool_use_id": "1", "content": "x"},
            {"type": "thinking", "thinking": "x"},
            {"type": "image"},
        ]
    ),
    max_size=3,
)
turns = st.lists(
    objects({"role": st.sampled_from(["user", "assistant"]), "content": texts | blocks}), max_size=4
)
items = st.lists(
    st.sampled_from(
        [
            {"role": "user", "content": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "x"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]},
            {"type": "item_reference", "id": "x"},
        ]
    ),
    max_size=4,
)
prompts = texts | st.lists(numbers | texts, max_size=3) | st.lists(st.lists(numbers), max_size=2)
FEW = st.sampled_from([1, 2])  # tokens

BODIES = {
    "/v1/chat/completions": objects(
        {"messages": messages, "max_completion_tokens": FEW},
        **SAMPLING, **CHAT, logprobs=flags, top_logprobs=numbers,
    ),
    "/v1/completions": objects(
        {"prompt": prompts, "max_tokens": FEW},
        **SAMPLING, logprobs=numbers, echo=flags, suffix=texts, json_schema=schemas,
    ),
    "/v1/responses": objects(
        {"input": texts | items, "max_output_tokens": FEW},
        **SAMPLING, **CHAT, instructions=texts, store=flags, previous_response_id=texts,
        text=objects({}, format=formats), reasoning=objects({}, effort=texts),
        include=st.just(["message.output_text.logprobs"]) | values, truncation=texts,
    ),
    "/v1/messages": objects(
        {"messages": turns, "max_tokens": FEW},
        **SAMPLING, system=texts | blocks, stop_sequences=st.lists(texts, max_size=2),
        thinking=objects({"type": st.sampled_from(["enabled", "disabled", "x"])}),
        tools=st.lists(objects({"name": texts}, input_schema=schemas, strict=flags), max_size=2),
        tool_choice=objects({"type": st.sampled_from(["any", "auto", "tool"])}, name=texts),
    ),
    "/v1/messages/count_tokens": objects({"messages": turns}, system=texts),
    "/tokenize": objects({}, content=texts, prompt=texts, messages=messages, with_pieces=flags),
    "/detokenize": objects({"tokens": st.lists(numbers, max_size=4)}),
    "/apply-template": objects({"messages": messages}, tools=tools),
}  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """All containers in a body with their keys."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


@st.composite
def spoilt(draw: st.DrawFn, path: str) -> Any:
    """A body for `path` in which up to two values are others, or missing."""
    body = json.loads(json.dumps(draw(BODIES[path])))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        spots = [(where, key) for where, key in places(body) if "max_" not in str(key)]
        if not spots:
            break
        where, key = draw(st.sampled_from(spots))
        if isinstance(where, dict) and draw(st.booleans()):
            del where[key]
        else:
            where[key] = draw(values)
    return body


# ---- what comes back ----


def check(reply: Reply) -> None:
    """An answer, or one clear error."""
    assert reply.status < 500 and reply.status != 408, reply
    kind = reply.headers["content-type"]
    if kind.startswith("text/event-stream"):
        assert reply.status == 200 and reply.events
        assert not [event for event in reply.events if event.get("error")], reply
        return
    assert kind == "application/json" and isinstance(reply.json, dict)
    if reply.status != 200:
        error = reply.error
        assert error["type"] and 5 < len(error["message"]) < 400 and "\n" not in error["message"]
        assert "Traceback" not in error["message"] and ".py" not in error["message"]


@pytest.mark.parametrize("path", BODIES)
def test_bodies_get_an_answer_or_one_clear_error(server: Running, path: str) -> None:
    statuses = set()

    @MANY
    @given(spoilt(path))
    def ask(body: Any) -> None:
        reply = server.post(path, body)
        check(reply)
        statuses.add(reply.status)

    ask()
    assert {200, 400} <= statuses  # both kinds were among them


# ---- heads ----

GOOD = raw("/tokenize", b'{"content": "ab"}', "Connection: close")
PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\x00",
        b"\xff",
        b":",
        b"GET ",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"//",
    ),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n"),
    *(b"Host: evil.example\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n", b"0\r\n\r\n"),
    *(b"Origin: http://[\r\n", b"http://localhost/", b"%zz%00", b"?", b"#", b"*", b"x" * 5000),
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A good request, with pieces put in, left out or twice."""
    sent = GOOD
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(sent)))
        end = draw(st.integers(at, min(at + 12, len(sent))))
        sent = sent[:at] + draw(st.sampled_from(PIECES) | st.just(b"")) + sent[end:]
    return sent[: draw(st.integers(0, len(sent)))] if draw(st.integers(0, 4)) == 0 else sent


def test_heads_get_an_answer_or_the_end_of_the_connection(server: Running) -> None:
    @settings(MANY, max_examples=300)
    @given(requests())
    def ask(sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            try:
                found = rest(connection)
            except ConnectionResetError:  # it had sent more than was read
                return
        assert not found or found.startswith(b"HTTP/1.1 "), (sent, found)
        for line in found.splitlines():
            if line.startswith(b"HTTP/1.1 "):
                status = int(line.split()[1])
                assert status < 500 or (status == 501 and b"Transfer-Encoding" in sent), found

    ask()
    assert server.get("/health").status == 200
