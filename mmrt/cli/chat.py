"""`mmrt chat`: a conversation."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
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
    from mmrt.conversation import Conversation

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
        conversation = model.conversation(arguments.system)
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


def _turn(conversation: "Conversation", line: str, options: dict[str, Any]) -> None:
    try:
        with progress("reading") as update:
            answer = conversation.stream(line, **(options | {"on_prefill": update}))
            first = next(answer)
        for piece in chain([first], answer):
            print(piece.text, end="", flush=True)
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
