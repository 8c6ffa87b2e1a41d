"""`mmrt run`: answers a prompt, or continues a text."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmrt.cli.answer import show
from mmrt.cli.llama_cpp import RUN, add_foreign_arguments
from mmrt.cli.options import (
    UsageError,
    add_chat_arguments,
    add_generation_arguments,
    add_model_arguments,
    generation,
    open_model,
    recommended,
)
from mmrt.cli.output import Update, note
from mmrt.cli.prompt import add_prompt_arguments, model_and_prompt
from mmrt.core.streaming import Streaming
from mmrt.errors import ArgumentError, FormatError
from mmrt.memory import counters
from mmrt.memory.sizes import human
from mmrt.text.chat import template_names

if TYPE_CHECKING:
    from mmrt.run.generation import Piece
    from mmrt.run.model import Model

DESCRIPTION = """\
Answers PROMPT, and writes the answer to stdout as it comes.

A model that has a chat template reads PROMPT as a message in a conversation;
one that has none, or any with --raw, continues it as a text. A single argument
is taken for the model if it is a file or ends in .gguf, else for the prompt.
Where no prompt is given, what is piped in is the prompt.

On a terminal, characters that would steer it are shown as escapes (\\x1b); files
and pipes get the text as it is.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mmrt run [MODEL] [PROMPT] [options]"
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_chat_arguments(parser)
    parser.add_argument(
        "--raw", action="store_true", help="continue PROMPT as a text, without a chat template"
    )
    add_generation_arguments(parser, n_predict=512, answers=True)
    add_foreign_arguments(parser, RUN)


def run(arguments: argparse.Namespace) -> None:
    of_template = (
        arguments.system,
        arguments.chat_template,
        arguments.chat_template_kwargs or None,
    )
    if arguments.raw and any(option is not None for option in of_template):
        raise UsageError("--raw does without a chat template, and so without a system message")
    given = generation(arguments)
    path, prompt = model_and_prompt(arguments)
    with open_model(path, arguments, arguments.ctx_size) as model:
        options = recommended(model.file.metadata) | given
        before, streamed = counters.reads(), model.streaming
        is_answer = not arguments.raw and _can_answer(model, arguments)

        def start(update: Update) -> "Iterator[Piece]":
            if not is_answer:
                return model.stream(prompt, on_prefill=update, **options)
            with _pointing_to_raw():
                return _answer(model, prompt, arguments, on_prefill=update, **options)

        written = show(model, start, arguments.hide_reasoning)
        written.note_cut(model, arguments.n_predict, is_answer)
        if written.finish == "stop" and not written.text:
            _note_empty(model, is_answer)
        if arguments.stats:
            written.note_speed(model)
            note(f"memory: {model.memory}")
            if model.streaming and streamed:
                _note_streaming(model.streaming - streamed)
            _note_counters(counters.reads() - before)


def _can_answer(model: "Model", arguments: argparse.Namespace) -> bool:
    # With something to tell its template, a model without one is to say what it lacks.
    told = arguments.system is not None or bool(arguments.chat_template_kwargs)
    with _pointing_to_raw():
        return told or model.chat_template is not None


def _answer(
    model: "Model", prompt: str, arguments: argparse.Namespace, **options: Any
) -> "Iterator[Piece]":
    if not prompt:
        raise ArgumentError("the prompt is empty")
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return model.stream_chat(
        messages, chat_template_kwargs=arguments.chat_template_kwargs, **options
    )


@contextmanager
def _pointing_to_raw() -> Iterator[None]:
    """Says beside errors of a chat template that there is a way without."""
    try:
        yield
    except (ArgumentError, FormatError) as error:
        raise type(error)(f"{error} (--raw does without a template)") from None


def _note_empty(model: "Model", is_answer: bool) -> None:
    what, advice = "the answer", ""
    if not is_answer:
        what = "the text"
        if template_names(model.file.metadata):
            advice = "; it has a chat template, and answers without --raw"
    note(f"the model ended {what} at once{advice}")


def _note_streaming(done: Streaming) -> None:
    """What reading weights again for each step has cost."""
    note(
        f"streaming: {human(round(done.read_per_step))} a step, {done.stall_seconds:.1f} s waited "
        f"for the disk, {done.overlap:.0%} of the reading beside the arithmetic"
    )
    experts = done.experts
    if experts.wanted:
        note(
            f"experts: {experts.found} of {experts.wanted} found in {experts.slots} slots "
            f"({experts.hit_rate:.1%}), {human(experts.read)} read in {experts.read_units} "
            f"matrices, {experts.stall_seconds:.1f} s waited"
        )


def _note_counters(reads: counters.Reads) -> None:
    """What the kernel has counted: of the generation, and of the process now."""
    faults = f"{reads.major_faults} major and {reads.minor_faults} minor faults"
    read = "" if reads.read_bytes is None else f"; {human(reads.read_bytes)} read from the disk"
    note(f"paging: {faults}{read}")
    now = counters.footprint()
    sizes = {
        "RSS": now.rss,
        "PSS": now.pss,
        "of files": now.rss_file,
        "anonymous": now.rss_anon,
        "page tables": now.page_tables,
        "peak of the cgroup": counters.cgroup_peak(),
    }
    said = (f"{name} {human(size)}" for name, size in sizes.items() if size is not None)
    note(f"process: {', '.join(said)}")
