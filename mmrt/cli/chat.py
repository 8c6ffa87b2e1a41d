"""`mmrt chat`: a conversation."""

import argparse
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmrt.cli.answer import show
from mmrt.cli.conversations import load, save
from mmrt.cli.llama_cpp import CHAT, add_foreign_arguments
from mmrt.cli.messages import Message, messages, unseen_typing
from mmrt.cli.options import (
    OURS,
    add_chat_arguments,
    add_generation_arguments,
    add_model_arguments,
    advised,
    generation,
    one_model,
    open_model,
    spelled,
)
from mmrt.cli.output import note
from mmrt.errors import ArgumentError, FormatError, MmrtError
from mmrt.text.tokenizer import require_utf8

if TYPE_CHECKING:
    from mmrt.run.conversation import Conversation
    from mmrt.run.model import Model

# What each takes after its name, and what it does.
COMMANDS = {
    "/retry": ("", "write the last answer anew"),
    "/undo": ("", "forget the last question and its answer"),
    "/system": ("TEXT", "tell the model this beforehand; nothing, without TEXT"),
    "/save": ("FILE", "write the conversation to a file, as JSON"),
    "/load": ("FILE", "go on with the conversation in a file"),
    "/clear": ("", "forget the conversation"),
    "/help": ("", "show this"),
    "/exit": ("", "leave (as Ctrl-D does, and /bye and /quit)"),
}

HELP = (
    "\n".join(f"{name + ' ' + takes:12} {what}" for name, (takes, what) in COMMANDS.items())
    + '''
"""          begins and ends a message of several lines; what is pasted is one anyway
Ctrl-C stops an answer, or clears the line; pressed again, it leaves'''
)

DESCRIPTION = f"""\
Converses with a model, by the chat template that its file carries. Each line
is a message, from the terminal or piped in. Where the context is full, the
oldest turns leave it. Lines with a meaning of their own:

{HELP}

A message that the context cannot hold, or that the template fails with, is
left out, which is said; where messages are piped in, the exit status is then 1.

On a terminal, characters that would steer it are shown as escapes (\\x1b); files
and pipes get the answers as they are.\
"""

# The part of the context that an answer has to itself at least, where it may be that long.
_ANSWER_SHARE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    add_model_arguments(parser)
    add_chat_arguments(parser)
    add_generation_arguments(parser, n_predict=512, answers=True)
    add_foreign_arguments(parser, CHAT)


def run(arguments: argparse.Namespace) -> None:
    given = generation(arguments)
    seeds = _seeds(arguments.seed)
    heard_all = True
    with open_model(one_model(arguments), arguments, arguments.ctx_size) as model:
        advice = advised(model.file.metadata)
        options = OURS | advice | given
        conversation = model.conversation(arguments.system, arguments.chat_template_kwargs)
        if sys.stdin.isatty():
            note("/help shows what there is besides talking")
            followed = {name: value for name, value in advice.items() if name not in given}
            if followed:
                note(
                    f"answers are drawn as the model's file advises: {spelled(followed)}; these "
                    "options set others"
                )
        for message in messages():
            command, rest = _command(message)
            text: str | None = message.text
            if command in ("/exit", "/bye", "/quit"):
                break
            if command in ("/help", "/?"):
                print(f"{HELP}\n\nAnswers are drawn with {spelled(options)}; options set others.")
                if advice:
                    print(f"The model's file advises {spelled(advice)}.")
                continue
            if command is not None:
                text = _obey(command, rest, conversation)
            if text is not None:
                options["seed"] = next(seeds)
                heard_all &= _turn(model, conversation, text, options, arguments)
    if not heard_all and not sys.stdin.isatty():
        raise SystemExit(1)


def _seeds(seed: int | None) -> Iterator[int | None]:
    """A seed for each answer: the same one would have the same draws begin each of them."""
    from numpy.random import default_rng

    random = default_rng(seed)
    while True:
        yield seed
        if seed is not None:
            seed = int(random.integers(1 << 63))


def _command(message: Message) -> tuple[str | None, str]:
    """A word after a slash and what follows it, if that is a command; other messages may begin
    with one."""
    found = re.fullmatch(r"(/[\w-]*|/\?)(?:\s+(.*))?", message.text)
    if message.is_quoted or not found:
        return None, ""
    name, rest = found[1], (found[2] or "").strip()
    takes = COMMANDS.get(name, ("", ""))[0]
    return (name, rest) if takes or not rest else (None, "")


def _obey(name: str, rest: str, conversation: "Conversation") -> str | None:
    """Does what a command says; returns a question that is to be asked again."""
    try:
        if name == "/clear":
            conversation.clear()
        elif name == "/system":
            conversation.instruct(rest or None)
        elif name in ("/save", "/load") and not rest:
            note(f"{name} needs the name of a file")
        elif name == "/save":
            save(rest, conversation.messages)
            note(f"{len(conversation.messages)} messages are in {rest}")
        elif name == "/load":
            conversation.take_up(load(rest))
            note(f"{len(conversation.messages)} messages from {rest}")
        elif name in ("/undo", "/retry"):
            question = conversation.undo()
            if question is None:
                note("there is no question yet")
            return question if name == "/retry" else None
        else:
            note(f"no command {name}: there are {', '.join(COMMANDS)}")
    except OSError as error:
        note(f"{rest}: {error.strerror}")
    except (MmrtError, UnicodeDecodeError) as error:
        note(str(error))
    return None


def _turn(
    model: "Model",
    conversation: "Conversation",
    text: str,
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> bool:
    """Shows an answer. False: the template or the context refuses the message, which is left out;
    another one may fit."""
    try:
        with unseen_typing():
            try:
                _make_room(model, conversation, require_utf8(text), arguments)
            except (ArgumentError, FormatError) as error:
                note(f"{error}: the message is not part of the conversation")
                return False
            written = show(
                model,
                lambda update: conversation.stream(text, **options, on_prefill=update),
                arguments.hide_reasoning,
            )
        written.note_cut(model, arguments.n_predict)
        if written.finish == "stop" and not written.text:
            note("the model ended the answer at once; the message is not part of the conversation")
        if arguments.stats:
            written.note_speed(model)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    return True


def _make_room(
    model: "Model", conversation: "Conversation", text: str, arguments: argparse.Namespace
) -> None:
    """Has the oldest turns leave a conversation, so that `text` and an answer find room in the
    context; what the model was told beforehand stays.

    Raises ArgumentError where `text` alone is too long, and FormatError where the template fails;
    then nothing has left.
    """
    share, limit = model.context // _ANSWER_SHARE, arguments.n_predict
    room = model.context - (share if limit is None else min(limit, share))
    kept = list(conversation.messages)
    question = {"role": "user", "content": text}
    left = 0
    while True:
        size = len(model.chat_tokens([*kept, question], **arguments.chat_template_kwargs))
        turn = next((i for i, message in enumerate(kept) if message["role"] == "user"), None)
        if size <= room or turn is None:
            break
        del kept[turn : turn + 2]
        left += 1
    model.require_room(size)
    if left:
        conversation.messages = kept
        what = "turn leaves" if left == 1 else f"{left} turns leave"
        note(f"the context of {model.context} tokens is full: the oldest {what} it")
