"""What texts say, sorted for clients: reasoning, answer, calls of tools, the end.

All kinds of responses are made of these, whole ones and streams, so that both say the same.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, NamedTuple, Protocol

from mmrt.core.draw import Drawn
from mmrt.run.generation import Piece
from mmrt.serving.house import Texts

What = Literal["reasoning", "text", "call", "arguments", "end"]


class Said(NamedTuple):
    """A part of the answer `choice`.

    what: "text" and "reasoning": `text` more of it; "call": the call number `call` of a tool
    begins, with an `id` and the tool's `name`; "arguments": `text` more of its arguments; "end":
    nothing more comes, for the reason in `text`: "stop", "length" or "tool_calls". token, drawn:
    with text that a token ends with, that token and its log-probability, if it was asked for.
    """

    choice: int
    what: What
    text: str = ""
    call: int = 0
    id: str = ""
    name: str = ""
    token: int | None = None
    drawn: Drawn | None = None


class Parser(Protocol):
    """Finds calls of tools in an answer as it comes: see mmrt.text.toolcalls."""

    def feed(self, text: str) -> list[Any]: ...

    def end(self) -> list[Any]: ...


class Answers:
    """The answers that a request has asked for: an asynchronous iterator of Said."""

    def __init__(self, texts: Texts, parser: Callable[[], Parser | None] = lambda: None) -> None:
        """parser: makes one for each answer, where calls of tools may come."""
        self.texts = texts
        self._parsers = [parser() for _ in texts.handles]
        self._calls = [0] * len(texts.handles)
        self.reasoning_tokens = 0

    async def __aiter__(self) -> AsyncIterator[Said]:
        async for index, piece in self.texts:
            for said in self._said(index, piece):
                yield said

    def _said(self, index: int, piece: Piece) -> list[Said]:
        written = piece.token is not None and piece.finish != "stop"
        token, drawn = (piece.token, piece.drawn) if written else (None, None)
        if piece.channel == "reasoning":
            self.reasoning_tokens += piece.token is not None
            said = [Said(index, "reasoning", piece.text)] if piece.text else []
        else:
            said = [Said(index, "text", piece.text, token=token, drawn=drawn)]
        if piece.finish is not None:
            said.append(Said(index, "end", piece.finish))
        return said
