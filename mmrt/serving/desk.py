"""From a request to texts under way: what all kinds of requests for answers share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from mmrt.errors import ArgumentError, MmrtError, OutOfMemoryError, UnsupportedError
from mmrt.run.text_model import TextModel
from mmrt.serving import asking
from mmrt.serving.access import Access
from mmrt.serving.answers import Answers
from mmrt.serving.asking import Asked
from mmrt.serving.fields import Fields
from mmrt.serving.house import House, Served, Texts, Wanted
from mmrt.serving.http import Request
from mmrt.serving.kept import Shelf
from mmrt.serving.kinds import Record
from mmrt.serving.limits import Limits, parse_json
from mmrt.serving.problems import Refused
from mmrt.serving.tools import Tools
from mmrt.text.channels import Channels
from mmrt.text.chat import ChatPrompt
from mmrt.text.grammar import Grammar

# Bytes of a body from which on it is parsed in another thread.
_LARGE_BODY = 1 << 18


class Desk:
    """Reads requests and has texts begun."""

    def __init__(self, house: House, access: Access, limits: Limits) -> None:
        self.house, self.access, self.limits = house, access, limits
        self.kept = Shelf(limits)

    async def read(
        self, request: Request, declare: Callable[[Limits], Record]
    ) -> tuple[Fields, Served]:
        """The body's fields, which are as declared, and the model that they name. Raises
        Refused."""
        declared = _declared(declare, self.limits)

        def read() -> Fields:
            return Fields(declared.read(parse_json(request.body), ""))

        is_large = len(request.body) >= _LARGE_BODY
        fields = await self.house.apart(read) if is_large else read()
        request.body = b""
        return fields, self.house.get(fields.get("model"))

    def asked(self, request: Request, fields: Fields, served: Served) -> Asked:
        """How the texts are to be written."""
        return asking.read(fields, served, self.access.owner(request))

    async def chat(
        self,
        served: Served,
        asked: Asked,
        messages: Sequence[Mapping[str, Any]],
        tools: Tools,
        variables: Mapping[str, Any],
    ) -> Answers:
        """Begins the answers to a chat. Raises Refused."""
        served.require_room_for(sum(map(_length, messages)))
        variables = {**served.variables, **variables}
        offered = tools.offered
        prompt = await self.house.apart(chat_prompt, served.model, messages, offered, variables)
        if offered and prompt.parser() is None:
            raise Refused(
                400,
                f"tools: the chat template of {served.name} shows no known way to call them",
                param="tools",
                code="unsupported_parameter",
            )
        if tools.must is not None or tools.strict:
            grammar = await self.house.apart(_calls, prompt, tools.must)
            options = {**asked.options, "grammar": grammar}
            asked = replace(asked, options=options, must_call=tools.must is not None)
        texts = await self._texts(served, asked, [prompt.ids], prompt.channels)
        return Answers(texts, prompt.parser, tools.most_calls)

    async def begin(
        self, served: Served, asked: Asked, prompts: Sequence[Sequence[int]]
    ) -> Answers:
        """Begins `asked.n` texts after each prompt. Raises Refused."""
        return Answers(await self._texts(served, asked, prompts, lambda: None))

    async def _texts(
        self,
        served: Served,
        asked: Asked,
        prompts: Sequence[Sequence[int]],
        channels: Callable[[], Channels | None],
    ) -> Texts:
        for ids in prompts:
            served.require_room(len(ids))
        if asked.is_whole and asked.options.get("stop"):
            raise Refused(
                400,
                "stop: it might cut what has to be whole: JSON by response_format, or a call that "
                "tool_choice wants",
                param="stop",
            )
        wanted = [
            Wanted(ids, asked.options_of(i), channels())
            for i, ids in enumerate(ids for ids in prompts for _ in range(asked.n))
        ]
        try:
            return await Texts.begin(
                self.house, served, wanted, asked.n, asked.priority, asked.salt
            )
        except (ArgumentError, UnsupportedError) as error:
            if asked.is_held:
                raise Refused(400, str(error), param="response_format") from None
            if "grammar" in asked.options:
                raise Refused(400, f"tools: {error}", param="tools") from None
            raise


@cache
def _declared(declare: Callable[[Limits], Record], limits: Limits) -> Record:
    return declare(limits)


def _length(message: Mapping[str, Any]) -> int:
    """Characters of a message."""
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return sum(map(len, texts))


Messages = Sequence[Mapping[str, Any]]
Offered = Sequence[Mapping[str, Any]] | None


def chat_prompt(
    model: TextModel, messages: Messages, tools: Offered, variables: Mapping[str, Any]
) -> ChatPrompt:
    """The prompt of a chat. Raises Refused."""
    with _of_the_client(model):
        return model.chat_prompt(messages, tools=tools, chat_template_kwargs=variables)


def chat_text(
    model: TextModel, messages: Messages, tools: Offered, variables: Mapping[str, Any]
) -> str:
    """The prompt of a chat, as text. Raises Refused."""
    with _of_the_client(model):
        return model.render_chat(messages, tools=tools, **variables)


def _calls(prompt: ChatPrompt, must: str | None) -> Grammar:
    """The grammar of an answer whose calls are held to their tools. Raises Refused."""
    try:
        return prompt.calls() if must is None else prompt.call(must or None)
    except ArgumentError as error:
        raise Refused(400, f"tools: {error}", param="tools") from None


@contextmanager
def _of_the_client(model: TextModel) -> Iterator[None]:
    """What a chat template does not take is the client's fault, who is not told where files lie."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except MmrtError as error:
        message = str(error).removeprefix(f"{model.path}: ")
        raise Refused(400, message, param="messages", code="chat_template") from None
