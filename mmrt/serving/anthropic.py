"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients expect."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mmrt.serving import anthropic_messages, asking, sse
from mmrt.serving.answers import Answers
from mmrt.serving.anthropic_messages import (
    read_format,
    read_messages,
    read_tools,
    read_variables,
)
from mmrt.serving.asking import MOST
from mmrt.serving.desk import Desk, chat_prompt
from mmrt.serving.http import Request, Response, json_response
from mmrt.serving.kinds import Kind, List, Only, Record, Text, Whole
from mmrt.serving.limits import Limits
from mmrt.serving.openai import limit_tokens, new_id, note
from mmrt.serving.problems import Refused, refused

PATH = "/v1/messages"

_PING = sse.event({"type": "ping"}, "ping")

# The `type` of an error, where it is not OpenAI's.
_TYPES = {"server_error": "api_error", "exceed_context_size_error": "invalid_request_error"}

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}

_UNSUPPORTED = {
    "n": Only("a message has one answer", (1,)),
    "mcp_servers": Only("this server reaches no others"),
    "container": Only("this server runs no code"),
    "output_format": Only("say it with output_config.format"),
}


def declare(limits: Limits) -> Record:
    stop = List(Text(1, limits.stop_bytes), limits.stop)
    own: dict[str, Kind] = {"max_tokens": Whole(1, MOST), "stop_sequences": stop}
    chat = anthropic_messages.declare(limits)
    return Record(asking.declare(limits) | chat | own | _UNSUPPORTED, ("messages", "max_tokens"))


def declare_count(limits: Limits) -> Record:
    return Record({"model": Text(), **anthropic_messages.declare(limits)}, ("messages",))


async def respond(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare)
    asked = desk.asked(request, fields, served)
    limit_tokens(asked, fields.get("max_tokens"))
    messages, tools = read_messages(fields), read_tools(fields)
    asked.options |= read_format(fields)
    answers = await desk.chat(served, asked, messages, tools, read_variables(fields))
    events = _events(answers, served.name)

    def end() -> None:
        request.note = note(answers)
        answers.texts.close()

    if asked.stream:
        headers = list(sse.HEADERS)
        return Response(200, _named(events), sse.CONTENT_TYPE, headers, end, _PING)
    try:
        return json_response(await _whole(events))
    finally:
        end()


async def count_tokens(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare_count)
    messages, tools = read_messages(fields), read_tools(fields)
    variables = {**served.variables, **read_variables(fields)}
    prompt = await desk.house.apart(chat_prompt, served.model, messages, tools.offered, variables)
    return json_response({"input_tokens": len(prompt.ids)})


def problem_body(problem: Refused) -> dict[str, Any]:
    """An error in Anthropic's form."""
    message = problem.message
    if problem.code == "context_length_exceeded":  # as its clients recognise it
        asked, most = problem.extra["n_prompt_tokens"], problem.extra["n_ctx"]
        message = f"prompt is too long: {asked} tokens > {most} maximum"
    type_ = _TYPES.get(problem.type, problem.type)
    return {"type": "error", "error": {"type": type_, "message": message}}


def _usage(answers: Answers) -> dict[str, int]:
    """input_tokens: without those that were in memory."""
    texts = answers.texts
    return {
        "input_tokens": texts.prompt_tokens - texts.cached_tokens,
        "cache_read_input_tokens": texts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": texts.tokens,
    }


_BLOCKS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
}


async def _events(answers: Answers, name: str) -> AsyncIterator[dict[str, Any]]:
    message: dict[str, Any] = {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(answers),
    }
    yield {"type": "message_start", "message": message}
    kind, index = "", -1  # of the block that is open
    async for said in answers:
        if said.what == "end":
            for event in _close(kind, index):
                yield event
            reason = _REASONS[said.text] if said.stop is None else "stop_sequence"
            delta = {"stop_reason": reason, "stop_sequence": said.stop}
            yield {"type": "message_delta", "delta": delta, "usage": _usage(answers)}
            yield {"type": "message_stop"}
            continue
        what = "call" if said.what == "arguments" else said.what
        if said.what == "call" or (what != kind and said.text):
            for event in _close(kind, index):
                yield event
            kind, index = what, index + 1
            called = {"type": "tool_use", "id": said.id, "name": said.name, "input": {}}
            block = dict(_BLOCKS.get(what, called))
            yield {"type": "content_block_start", "index": index, "content_block": block}
        if said.text:
            yield {"type": "content_block_delta", "index": index, "delta": _delta(kind, said.text)}


def _delta(kind: str, text: str) -> dict[str, str]:
    if kind == "call":
        return {"type": "input_json_delta", "partial_json": text}
    if kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _close(kind: str, index: int) -> list[dict[str, Any]]:
    """The events that end a block, if one is open. Thinking is not signed: there is nobody who
    would check it."""
    stop = {"type": "content_block_stop", "index": index}
    if kind != "reasoning":
        return [stop] if kind else []
    signature = {"type": "signature_delta", "signature": ""}
    return [{"type": "content_block_delta", "index": index, "delta": signature}, stop]


async def _named(events: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes, None]:
    try:
        async for event in events:
            yield sse.event(event, event["type"])
    except Exception as error:  # the status was sent long ago
        yield sse.event(problem_body(refused(error)), "error")


async def _whole(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events tell."""
    message: dict[str, Any] = {}
    inputs: dict[int, str] = {}
    async for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            message["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
            else:
                field = delta["type"].removesuffix("_delta")
                block[field] += delta[field]
        elif kind == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    for index, text in inputs.items():
        with contextlib.suppress(ValueError):  # it is cut off
            message["content"][index]["input"] = json.loads(text)
    return message


def is_path(path: str) -> bool:
    return path == PATH or path.startswith(PATH + "/")
