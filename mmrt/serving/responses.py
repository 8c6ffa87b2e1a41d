"""POST /v1/responses, as OpenAI's clients and Codex expect, and openresponses.org describes."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from mmrt.serving import asking, responses_input, sse
from mmrt.serving.answers import Answers, Said
from mmrt.serving.asking import MOST, Asked
from mmrt.serving.desk import Desk, chat_prompt
from mmrt.serving.fields import Fields
from mmrt.serving.house import Served
from mmrt.serving.http import Request, Response, json_response
from mmrt.serving.kept import Kept, size_of
from mmrt.serving.kinds import Flag, Kind, List, Only, Record, Text, Whole
from mmrt.serving.limits import Limits
from mmrt.serving.openai import ALTERNATIVES, limit_tokens, new_id, note, token_odds
from mmrt.serving.problems import Refused, refused
from mmrt.serving.responses_input import (
    read_format,
    read_items,
    read_messages,
    read_tools,
    read_variables,
)

PATH = "/v1/responses"

_LOGPROBS = "message.output_text.logprobs"

_UNSUPPORTED = {
    "n": Only("a response has one answer", (1,)),
    "conversation": Only("this server keeps responses alone: say it with previous_response_id"),
    "background": Only("this server answers those who wait"),
    "prompt": Only("this server keeps no prompts"),
    "max_tool_calls": Only("this server calls no tools itself"),
}


def declare(limits: Limits) -> Record:
    own: dict[str, Kind] = {
        "max_output_tokens": Whole(1, MOST),
        "include": List(Text()),
        "top_logprobs": ALTERNATIVES,
        "previous_response_id": Text(),
        "store": Flag(),
    }
    return Record(
        asking.declare(limits) | responses_input.declare(limits) | own | _UNSUPPORTED, ("input",)
    )


async def respond(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare)
    asked = desk.asked(request, fields, served)
    limit_tokens(asked, fields.get("max_output_tokens"))
    if _LOGPROBS in fields.get("include", []):
        asked.ask_logprobs(fields.get("top_logprobs", 0))
    asked.options |= read_format(fields)
    owner = desk.access.owner(request)
    earlier, own = _earlier(desk, fields, owner), read_items(fields)
    messages = read_messages(fields, earlier, own, desk.limits)
    tools = read_tools(fields)
    stores = fields.get("store", True)
    answers = await desk.chat(served, asked, messages, tools, read_variables(fields))
    head = _head(fields, asked, served, tools.offered or [])
    told = _Told(answers, head, served)

    async def keep() -> None:
        """Before a client learns that it is there."""
        if stores:
            items = [*earlier, *own, *told.response["output"]]
            n_bytes = await desk.house.apart(size_of, told.response, items)
            desk.kept.put(Kept(owner, told.response, items, n_bytes))

    def end() -> None:
        request.note = note(answers)
        answers.texts.close()

    if asked.stream:
        return Response(200, _named(told, keep), sse.CONTENT_TYPE, list(sse.HEADERS), end)
    try:
        async for _ in told.events():
            pass
        await keep()
        return json_response(told.response)
    finally:
        end()


def _earlier(desk: Desk, fields: Fields, owner: str) -> list[dict[str, Any]]:
    """The items that the request goes on from. Raises Refused."""
    identity = fields.get("previous_response_id")
    if not identity:
        return []
    kept = desk.kept.get(identity, owner)
    if kept is None:
        raise Refused(
            400,
            f"previous_response_id: no response {identity!r:.80} is kept (any more)",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return kept.items


async def count(desk: Desk, request: Request) -> Response:
    """POST /v1/responses/input_tokens"""
    fields, served = await desk.read(request, declare)
    earlier = _earlier(desk, fields, desk.access.owner(request))
    messages = read_messages(fields, earlier, read_items(fields), desk.limits)
    chat = messages, read_tools(fields).offered
    variables = {**served.variables, **read_variables(fields)}
    prompt = await desk.house.apart(chat_prompt, served.model, *chat, variables)
    return json_response({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})


async def retrieve(desk: Desk, request: Request) -> Response:
    """GET /v1/responses/ID"""
    identity = _id_in(request)
    kept = desk.kept.get(identity, desk.access.owner(request))
    if kept is None:
        raise _missing(identity)
    return json_response(kept.response)


async def delete(desk: Desk, request: Request) -> Response:
    """DELETE /v1/responses/ID"""
    identity = _id_in(request)
    if not desk.kept.remove(identity, desk.access.owner(request)):
        raise _missing(identity)
    return json_response({"id": identity, "object": "response", "deleted": True})


def _id_in(request: Request) -> str:
    return request.path.removeprefix(PATH).strip("/")


def _missing(identity: str) -> Refused:
    return Refused(404, f"no response {identity!r:.80} is kept (any more)", code="not_found")


def _head(
    fields: Fields, asked: Asked, served: Served, tools: list[dict[str, Any]]
) -> dict[str, Any]:
    """The response before anything is said."""
    options = asked.options
    told = ("instructions", "max_output_tokens", "metadata", "user", "safety_identifier")
    text, reasoning = fields.object("text"), fields.object("reasoning")
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        **{name: fields.get(name) for name in told},
        "max_tool_calls": None,
        "model": served.name,
        "output": [],
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "presence_penalty": options.get("presence_penalty", 0.0),
        "frequency_penalty": options.get("frequency_penalty", 0.0),
        "previous_response_id": fields.get("previous_response_id"),
        "prompt_cache_key": fields.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "service_tier": asked.tier,
        "store": fields.get("store", True),
        "temperature": options.get("temperature", 0.0),
        "text": {"format": text.get("format", {"type": "text"})},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in tools],
        "top_logprobs": asked.logprobs or 0,
        "top_p": options.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
    }


def _usage(answers: Answers) -> dict[str, Any]:
    texts = answers.texts
    return {
        "input_tokens": texts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": texts.cached_tokens},
        "output_tokens": texts.tokens,
        "output_tokens_details": {"reasoning_tokens": answers.reasoning_tokens},
        "total_tokens": texts.prompt_tokens + texts.tokens,
    }


class _Told:
    """A response as it comes to be: its events, and what they make of it."""

    def __init__(self, answers: Answers, head: dict[str, Any], served: Served) -> None:
        self.response = head
        self._answers = answers
        self._served = served
        self._number = 0
        self._kind = ""  # of the item that is open

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **fields}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        yield self._event("created", response=dict(self.response))
        yield self._event("in_progress", response=dict(self.response))
        async for said in self._answers:
            for event in self._of(said):
                yield event

    def fail(self, error: BaseException) -> dict[str, Any]:
        """The last event, where something went wrong."""
        problem = refused(error)
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": problem.message}
        return self._event("failed", response=dict(self.response))

    def _of(self, said: Said) -> Iterator[dict[str, Any]]:
        if said.what == "end":
            yield from self._end(said.text)
            return
        kind = "call" if said.what == "arguments" else said.what
        if said.what == "call" or kind != self._kind:
            if not (said.text or said.drawn or said.what == "call"):
                return
            yield from self._close("completed")
            yield from self._open(kind, said)
        yield from self._add(said)

    # ---- items ----

    def _open(self, kind: str, said: Said) -> Iterator[dict[str, Any]]:
        self._kind = kind
        output = self.response["output"]
        item: dict[str, Any]
        if kind == "call":
            item = {"id": new_id("fc_"), "type": "function_call", "status": "in_progress"}
            item |= {"call_id": said.id, "name": said.name, "arguments": ""}
        elif kind == "reasoning":
            item = {"id": new_id("rs_"), "type": "reasoning", "status": "in_progress"}
            item |= {"summary": [], "content": []}
        else:
            item = {"id": new_id("msg_"), "type": "message", "status": "in_progress"}
            item |= {"role": "assistant", "content": []}
        output.append(item)
        shown = {**item, "content": []} if "content" in item else dict(item)
        yield self._event("output_item.added", output_index=len(output) - 1, item=shown)
        if kind != "call":
            item["content"].append(self._new_part())
            yield self._event("content_part.added", **self._place(), part=self._new_part())

    def _new_part(self) -> dict[str, Any]:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": ""}
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}

    @property
    def _item(self) -> dict[str, Any]:
        item: dict[str, Any] = self.response["output"][-1]
        return item

    def _place(self) -> dict[str, Any]:
        place = {"item_id": self._item["id"], "output_index": len(self.response["output"]) - 1}
        return place if self._kind == "call" else {**place, "content_index": 0}

    def _add(self, said: Said) -> Iterator[dict[str, Any]]:
        if self._kind == "call":
            self._item["arguments"] += said.text
            if said.text:
                yield self._event("function_call_arguments.delta", **self._place(), delta=said.text)
            return
        part = self._item["content"][0]
        part["text"] += said.text
        if self._kind == "reasoning":
            yield self._event("reasoning_text.delta", **self._place(), delta=said.text)
            return
        odds: list[dict[str, Any]] = []
        if said.drawn is not None and said.token is not None:
            odds = [token_odds(self._served.model, said.token, said.drawn)]
            part["logprobs"] += odds
        yield self._event("output_text.delta", **self._place(), delta=said.text, logprobs=odds)

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """Ends the item that is open, if one is."""
        if not self._kind:
            return
        item, place = self._item, self._place()
        if self._kind == "call":
            name, arguments = item["name"], item["arguments"]
            yield self._event(
                "function_call_arguments.done", **place, name=name, arguments=arguments
            )
        else:
            part = item["content"][0]
            done = {"text": part["text"]}
            if self._kind == "text":
                done["logprobs"] = part["logprobs"]
            what = "reasoning_text" if self._kind == "reasoning" else "output_text"
            yield self._event(f"{what}.done", **place, **done)
            yield self._event("content_part.done", **place, part=part)
        item["status"] = status
        yield self._event("output_item.done", output_index=place["output_index"], item=item)
        self._kind = ""

    def _end(self, reason: str) -> Iterator[dict[str, Any]]:
        status = "incomplete" if reason == "length" else "completed"
        if not self.response["output"]:  # clients expect one item at least
            yield from self._open("text", Said(0, "text"))
        yield from self._close(status)
        self.response["status"] = status
        self.response["usage"] = _usage(self._answers)
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        yield self._event(status, response=dict(self.response))


async def _named(told: _Told, keep: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes, None]:
    try:
        async for event in told.events():
            if told.response["status"] != "in_progress":
                await keep()
            yield sse.event(event, event["type"])
    except Exception as error:  # the status was sent long ago
        event = told.fail(error)
        yield sse.event(event, event["type"])
