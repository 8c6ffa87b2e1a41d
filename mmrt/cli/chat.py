"""`mmrt chat`: a conversation."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mmrt.cli.options import (
    add_generation_arguments,
    add_model_arguments,
    generation,
    one_model,
    open_model,
)
from mmrt.cli.output import note, progress
from mmrt.errors import ArgumentError

if TYPE_CHECKING:
    from mmrt.model import Model

COMMANDS = """\
/clear  forget the conversation
/help   show this
/exit   leave (as Ctrl-D does)
Ctrl-C stops an answer; where a line is awaited, it leaves."""

DESCRIPTION = f"""\
Converses with a model, by the chat template that its file carries. Each line
is a turn, from the terminal or piped in. Lines with a meaning of their own:

{COMMANDS}\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told beforehand")
    add_generation_arguments(parser, n_predict=512)


def run(arguments: argparse.Namespace) -> None:
    options = generation(arguments)
    with open_model(one_model(arguments), arguments, arguments.ctx_size) as model:
        conversation = Conversation(model, arguments.system)
        for line in _lines():
            if line == "/exit":
                break
            elif line == "/clear":
                conversation.clear()
            elif line == "/help":
                print(COMMANDS)
            elif line.startswith("/"):
                note(f"no command {line}: there are /clear, /help and /exit")
            elif line:
                _turn(conversation, line, options)


class Conversation:
    """Messages, and the sequence in which the model keeps what it has read of them."""

    def __init__(self, model: "Model", system: str | None) -> None:
        """Raises UnsupportedError at once if the model is none to converse with."""
        self._model = model
        self._sequence = model.sequence()
        self._beginning = [_message("system", system)] if system else []
        model.render_chat([*self._beginning, _message("user", "")])
        self.clear()

    def clear(self) -> None:
        self._messages = list(self._beginning)

    def say(self, text: str, options: dict[str, Any]) -> Iterator[str]:
        """Yields the answer to `text` in parts. What was yielded becomes part of the conversation,
        also if the rest is not awaited; if there was nothing, the question does not either.
        """
        question = _message("user", text)
        ids = self._model.chat_tokens([*self._messages, question])
        # What the new prompt shares with the last one is not read again, but for one token: the
        # answer begins with the logits after it.
        shared = _common_prefix(self._sequence.tokens, ids[:-1])
        self._sequence.truncate(shared)
        answer = ""
        try:
            for piece in self._model.stream(ids[shared:], sequence=self._sequence, **options):
                answer += piece.text
                yield piece.text
        finally:
            if answer:
                self._messages += [question, _message("assistant", answer)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _turn(conversation: Conversation, line: str, options: dict[str, Any]) -> None:
    try:
        with progress("reading") as update:
            answer = conversation.say(line, options | {"on_prefill": update})
            first = next(answer, "")
        print(first, end="", flush=True)
        for text in answer:
            print(text, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        print()
    except ArgumentError as error:  # too long for the context: a shorter line may fit
        if not sys.stdin.isatty():
            raise
        note(f"{error} (/clear forgets the conversation)")


def _lines() -> Iterator[str]:
    """The lines of stdin, from a terminal with a prompt and a history."""
    if not sys.stdin.isatty():
        yield from map(str.strip, sys.stdin)
        return
    with suppress(ImportError):  # not every Python has it; a line can be typed without
        import readline  # noqa: F401
    note("/help shows what there is besides talking")
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
