"""What texts say, sorted for clients: reasoning, answer, calls of tools, the end.

All kinds of responses are made of these, whole ones and streams, so that both say the same.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Literal, NamedTuple

from mmrt.core.draw import Drawn
from mmrt.run.generation import Piece
from mmrt.serving.house import Texts
from mmrt.text.toolcalls import CallArguments, CallBegin, Event, TextDelta, ToolParser

What = Literal["reasoning", "text", "call", "arguments", "end"]


class Said(NamedTuple):
    """A part of the answer `choice`.

    what: "text" and "reasoning": `text` more of it; "call": the call number `call` of a tool
    begins, with an `id` and the tool's `name`; "arguments": `text` more of its arguments; "end":
    nothing more comes, for the reason in `text`: "stop", "length" or "tool_calls"; stop: the stop
    string that it came before. token, drawn: with text that a token ends with, that token and its
    log-probability, if it was asked for; tokens of a stop string are told too, those that end a
    text by themselves are not.
    """

    choice: int
    what: What
    text: str = ""
    call: int = 0
    id: str = ""
    name: str = ""
    token: int | None = None
    drawn: Drawn | None = None
    stop: str | None = None


class _Answer:
    """One of them, as it is written."""

    def __init__(self, choice: int, parser: ToolParser | None, most_calls: int | None) -> None:
        self._choice = choice
        self._parser = parser
        self._most_calls = most_calls
        self._calls = 0  # that are whole
        self.is_over = False

    def take(self, piece: Piece) -> list[Said]:
        """What a piece adds."""
        if self.is_over:
            return []
        said: list[Said] = []
        if piece.channel == "reasoning":
            said += [Said(self._choice, "reasoning", piece.text)] if piece.text else []
        elif piece.drawn is not None and (piece.finish != "stop" or piece.stop is not None):
            token = piece.token
            text = piece.text if self._parser is None else ""
            said.append(Said(self._choice, "text", text, token=token, drawn=piece.drawn))
        elif self._parser is None and piece.text:
            said.append(Said(self._choice, "text", piece.text))
        if self._parser is not None:
            events = self._parser.feed(piece.text) if piece.channel == "final" else []
            if piece.finish is not None:
                events = [*events, *self._parser.end()]
            said += self._of_events(events)
        if piece.finish is not None and not self.is_over:
            said.append(self._end(piece.finish, piece.stop))
        return said

    def _of_events(self, events: Iterable[Event]) -> list[Said]:
        said: list[Said] = []
        for event in events:
            if isinstance(event, TextDelta):
                said.append(Said(self._choice, "text", event.text))
            elif isinstance(event, CallBegin):
                said.append(
                    Said(self._choice, "call", call=event.index, id=event.id, name=event.name)
                )
            elif isinstance(event, CallArguments):
                said.append(Said(self._choice, "arguments", event.text, call=event.index))
            else:
                self._calls += 1
                if self._calls == self._most_calls:
                    said.append(self._end("stop"))
                    break
        return said

    def _end(self, finish: str, stop: str | None = None) -> Said:
        self.is_over = True
        reason = "tool_calls" if finish == "stop" and self._calls else finish
        return Said(self._choice, "end", reason, stop=stop)


class Answers:
    """The answers that a request has asked for: an asynchronous iterator of Said."""

    def __init__(
        self,
        texts: Texts,
        parser: Callable[[], ToolParser | None] = lambda: None,
        most_calls: int | None = None,
    ) -> None:
        """parser: makes one for each answer, where calls of tools may come. most_calls: of tools,
        after which an answer ends."""
        self.texts = texts
        self._answers = [_Answer(i, parser(), most_calls) for i in range(len(texts.handles))]
        self.reasoning_tokens = 0

    async def __aiter__(self) -> AsyncIterator[Said]:
        async for choice, piece in self.texts:
            if piece.channel == "reasoning":
                self.reasoning_tokens += piece.token is not None
            answer = self._answers[choice]
            for said in answer.take(piece):
                yield said
            if answer.is_over and piece.finish is None:
                self.texts.handles[choice].cancel()
