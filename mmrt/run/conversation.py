"""A conversation with a model, none of which is read twice."""

from collections.abc import Generator, Mapping
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Any, Protocol

from mmrt.run.generation import Options, Piece, Reading, Stream, Text
from mmrt.run.handle import Handle
from mmrt.run.loan import Loan
from mmrt.run.rounds import Rounds
from mmrt.run.writing import Serving
from mmrt.text.chat import require_variables

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ChatModel(Serving, Protocol):
    """What a conversation needs of a Model."""

    def render_chat(self, messages: List[dict[str, Any]], **variables: Any) -> str: ...


class Conversation:
    """Messages, and the keys and values of what the model has read of them; a context manager.

    messages: what was said so far, each a dict with `role` and `content`. The list is the caller's
    to change, between answers: what then begins as it once did is not read again, also after other
    questions. All that was said holds memory, up to a quarter of what is free, until close().

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
        self._engine: Rounds | None = None
        self._handle: Handle | None = None  # of the last answer
        self._loan = Loan()
        self.messages: list[dict[str, Any]] = []
        self.clear()

    def clear(self) -> None:
        """Forgets all but the system message; a stream that goes on ends."""
        self._loan.end_writer()
        self.messages = list(self._beginning)

    def instruct(self, system: str | None) -> None:
        """Changes what the model is told beforehand, None: nothing; the conversation goes on."""
        self._loan.end_writer()
        rest = self.messages[1:] if _begins_with_system(self.messages) else self.messages
        self._beginning = [] if system is None else [_message("system", system)]
        self.messages = [*self._beginning, *rest]

    def undo(self) -> str | None:
        """Forgets the last question and all that followed; returns its text. None: there is
        none."""
        self._loan.end_writer()
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
        self._loan.end_writer()
        self.messages = [dict(message) for message in messages]
        self._beginning = self.messages[:1] if _begins_with_system(self.messages) else []

    def stream(self, text: str, **options: "Unpack[Options]") -> Stream:
        """Yields pieces of the answer to `text`; options and errors as for Model.stream().

        What was yielded becomes part of the conversation, also if the rest is not awaited. If there
        was nothing, the question does not become part of it either.
        """
        question = _message("user", text)
        self._loan.require_free()
        if self._handle is not None:
            self._handle.cancel()  # its stream may have been dropped before it began
        if self._engine is not None and not self._engine.is_sound:  # after an interrupt
            self.close()
        if self._engine is None:
            self._engine = Rounds(self._model, drafts=True)
        self._handle = self._engine.submit_chat(
            [*self.messages, question], chat_template_kwargs=self._variables, **options
        )
        reading = Reading(self._handle.prompt_tokens)
        return Stream(reading, self._remembering(question, self._handle, reading), self._loan)

    def say(self, text: str, **options: "Unpack[Options]") -> Text:
        """The answer to `text`, whole; options and errors as for Model.stream()."""
        return self.stream(text, **options).text()

    def close(self) -> None:
        """Gives the memory of its keys and values back. It can still go on, and reads all again."""
        self._loan.end_writer()
        if self._engine is not None:
            self._engine.close()
        self._engine = self._handle = None

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Conversation of {len(self.messages)} messages with {self._model!r}>"

    def _remembering(
        self, question: dict[str, Any], handle: Handle, reading: Reading
    ) -> Generator[Piece, None, None]:
        answer = ""
        try:
            for piece in handle:
                reading.cached = handle.cached_tokens
                answer += piece.text if piece.channel == "final" else ""
                yield piece
        finally:
            handle.cancel()
            if answer:
                self.messages += [question, _message("assistant", answer)]


def _begins_with_system(messages: List[Mapping[str, Any]]) -> bool:
    return bool(messages) and messages[0].get("role") == "system"


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
