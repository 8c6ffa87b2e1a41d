"""A conversation with a model, none of which is read twice."""

from collections.abc import Generator, Mapping
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Any, Protocol

from mmrt.run.generation import Options, Piece, Stream, Text
from mmrt.run.sequence import Sequence
from mmrt.text.chat import require_variables

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ChatModel(Protocol):
    """What a conversation needs of a Model."""

    def render_chat(self, messages: List[dict[str, Any]], **variables: Any) -> str: ...

    def sequence(self) -> Sequence: ...

    def stream_chat(
        self,
        messages: List[dict[str, Any]],
        *,
        sequence: Sequence,
        chat_template_kwargs: Mapping[str, Any] | None,
        **options: "Unpack[Options]",
    ) -> Stream: ...


class Conversation:
    """Messages, and the keys and values of what the model has read of them; a context manager.

    messages: what was said so far, each a dict with `role` and `content`. The list is the caller's
    to change, between answers: what then still begins as before is not read again.

    One thread at a time. Raises UnsupportedError at once for a model without a chat template.
    """

    def __init__(
        self,
        model: ChatModel,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """system: what the model is told beforehand; a conversation that is cleared keeps it.
        chat_template_kwargs: what else the template reads, as of Model.stream_chat()."""
        self._model = model
        self._variables = require_variables(chat_template_kwargs)
        self._beginning = [] if system is None else [_message("system", system)]
        model.render_chat([*self._beginning, _message("user", "")], **self._variables)
        self._sequence = model.sequence()
        self.messages: list[dict[str, Any]] = []
        self.clear()

    def clear(self) -> None:
        """Forgets all but the system message; a stream that goes on ends."""
        self._sequence.end_writer()
        self.messages = list(self._beginning)

    def instruct(self, system: str | None) -> None:
        """Changes what the model is told beforehand, None: nothing; the conversation goes on."""
        self._sequence.end_writer()
        rest = self.messages[1:] if _begins_with_system(self.messages) else self.messages
        self._beginning = [] if system is None else [_message("system", system)]
        self.messages = [*self._beginning, *rest]

    def undo(self) -> str | None:
        """Forgets the last question and all that followed; returns its text. None: there is
        none."""
        self._sequence.end_writer()
        asked = [i for i, message in enumerate(self.messages) if message.get("role") == "user"]
        if not asked:
            return None
        question = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return question if isinstance(question, str) else ""

    def take_up(self, messages: List[dict[str, Any]]) -> None:
        """Goes on from other messages, a system message first if there is one.

        Raises ArgumentError for what are no messages, FormatError where the template fails.
        """
        self._model.render_chat([*messages, _message("user", "")], **self._variables)
        self._sequence.end_writer()
        self.messages = [dict(message) for message in messages]
        self._beginning = self.messages[:1] if _begins_with_system(self.messages) else []

    def stream(self, text: str, **options: "Unpack[Options]") -> Stream:
        """Yields pieces of the answer to `text`; options and errors as for Model.stream().

        What was yielded becomes part of the conversation, also if the rest is not awaited. If there
        was nothing, the question does not become part of it either.
        """
        question = _message("user", text)
        messages = [*self.messages, question]
        stream = self._model.stream_chat(
            messages, sequence=self._sequence, chat_template_kwargs=self._variables, **options
        )
        stream.pieces = self._remembering(question, stream.pieces)
        return stream

    def say(self, text: str, **options: "Unpack[Options]") -> Text:
        """The answer to `text`, whole; options and errors as for Model.stream()."""
        return self.stream(text, **options).text()

    def close(self) -> None:
        """Gives the memory of its keys and values back. It can still go on, and reads all again."""
        self._sequence.close()

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Conversation of {len(self.messages)} messages with {self._model!r}>"

    def _remembering(
        self, question: dict[str, Any], pieces: Generator[Piece, None, None]
    ) -> Generator[Piece, None, None]:
        answer = ""
        try:
            for piece in pieces:
                answer += piece.text if piece.channel == "final" else ""
                yield piece
        finally:
            if answer:
                self.messages += [question, _message("assistant", answer)]


def _begins_with_system(messages: List[Mapping[str, Any]]) -> bool:
    return bool(messages) and messages[0].get("role") == "system"


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
