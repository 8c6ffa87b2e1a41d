"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator
from typing import Any

from mmrt.serving import asking, messages, openai, tools
from mmrt.serving.answers import Answers, Said
from mmrt.serving.asking import Asked
from mmrt.serving.desk import Desk
from mmrt.serving.fields import Fields
from mmrt.serving.house import Served
from mmrt.serving.http import Request, Response, json_response
from mmrt.serving.kinds import Flag, Kind, Only, Record
from mmrt.serving.limits import Limits
from mmrt.serving.messages import read_messages, read_template_variables
from mmrt.serving.problems import Refused
from mmrt.serving.tools import read_tools

_OBJECT = "chat.completion"


def declare(limits: Limits) -> Record:
    echo = Only("an answer is told alone; /v1/completions tells prompts again")
    own: dict[str, Kind] = {
        "max_tokens": openai.TOKENS,
        "max_completion_tokens": openai.TOKENS,
        "logprobs": Flag(),
        "top_logprobs": openai.ALTERNATIVES,
        "modalities": Only("this server reads and makes text alone", (["text"],)),
        "echo": echo,
    }
    given = messages.declare(limits) | tools.declare(limits)
    return Record(asking.declare(limits) | given | own, ("messages",))


async def respond(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare)
    asked = desk.asked(request, fields, served)
    openai.limit_tokens(asked, fields.get("max_completion_tokens", fields.get("max_tokens")))
    _read_logprobs(fields, asked)
    given, offered = read_messages(fields), read_tools(fields)
    answers = await desk.chat(served, asked, given, offered, read_template_variables(fields))
    if asked.stream:
        return openai.stream(chunks(answers, asked, served), request, answers)
    try:
        return json_response(await whole(answers, asked, served))
    finally:
        request.note = openai.note(answers)
        answers.texts.close()


def _read_logprobs(fields: Fields, asked: Asked) -> None:
    top = fields.get("top_logprobs", 0)
    if fields.get("logprobs"):
        asked.ask_logprobs(top)
    elif top:
        raise Refused(400, "top_logprobs: wants logprobs to be true", param="top_logprobs")


async def whole(answers: Answers, asked: Asked, served: Served) -> dict[str, Any]:
    """The response when all has been written."""
    written: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""} for _ in answers.texts.handles
    ]
    reasons: list[str | None] = [None for _ in written]
    odds: list[list[dict[str, Any]]] = [[] for _ in written]
    async for said in answers:
        message = written[said.choice]
        if said.what == "end":
            reasons[said.choice] = said.text
        else:
            _add(message, said)
        if said.token is not None and said.drawn is not None:
            odds[said.choice].append(openai.token_odds(served.model, said.token, said.drawn))
    for message in written:
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None
    choices = [
        {
            "index": i,
            "message": message,
            "logprobs": None if asked.logprobs is None else {"content": odds[i], "refusal": None},
            "finish_reason": reasons[i],
        }
        for i, message in enumerate(written)
    ]
    head = openai.envelope("chatcmpl-", _OBJECT, served.name, asked)
    return {**head, "choices": choices, "usage": openai.usage(answers)}


def _add(message: dict[str, Any], said: Said) -> None:
    """Adds what was said to a message."""
    if said.what == "text":
        message["content"] += said.text
    elif said.what == "reasoning":
        message["reasoning_content"] = message.get("reasoning_content", "") + said.text
    elif said.what == "call":
        function = {"name": said.name, "arguments": ""}
        call = {"id": said.id, "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)
    else:
        message["tool_calls"][said.call]["function"]["arguments"] += said.text


async def chunks(answers: Answers, asked: Asked, served: Served) -> AsyncIterator[dict[str, Any]]:
    """The response as it is written."""
    head = openai.envelope("chatcmpl-", f"{_OBJECT}.chunk", served.name, asked)
    empty = {"usage": None} if asked.include_usage else {}

    def chunk(
        index: int, delta: dict[str, Any], odds: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": odds, "finish_reason": reason}
        return {**head, "choices": [choice], **empty}

    for i in range(len(answers.texts.handles)):
        yield chunk(i, {"role": "assistant", "content": ""})
    async for said in answers:
        if said.what == "end":
            yield chunk(said.choice, {}, reason=said.text)
            continue
        odds = None
        if said.token is not None and said.drawn is not None:
            one = openai.token_odds(served.model, said.token, said.drawn)
            odds = {"content": [one], "refusal": None}
        if said.what != "text" or said.text or odds:
            yield chunk(said.choice, _delta(said), odds)
    if asked.include_usage:
        yield {**head, "choices": [], "usage": openai.usage(answers)}


def _delta(said: Said) -> dict[str, Any]:
    if said.what == "text":
        return {"content": said.text}
    if said.what == "reasoning":
        return {"reasoning_content": said.text}
    if said.what == "call":
        function = {"name": said.name, "arguments": ""}
        call = {"index": said.call, "id": said.id, "type": "function", "function": function}
    else:
        call = {"index": said.call, "function": {"arguments": said.text}}
    return {"tool_calls": [call]}
