"""`mmrt run`: continues a text."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from mmrt import counters
from mmrt.cli.live import Live, live
from mmrt.cli.options import (
    UsageError,
    add_generation_arguments,
    add_model_arguments,
    generation,
    open_model,
)
from mmrt.cli.output import note, progress
from mmrt.memory import human
from mmrt.streaming import Streaming

if TYPE_CHECKING:
    from mmrt.generation import Piece
    from mmrt.model import Model

DESCRIPTION = """\
Continues PROMPT, and writes the continuation to stdout as it comes.

The model reads PROMPT as it is, as raw text: no chat template is applied, not
even for models made to answer (mmrt chat does that). A single argument is
taken for the model if it is a file or ends in .gguf, else for the prompt.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mmrt run [MODEL] [PROMPT] [options]"
    parser.add_argument(
        "words", nargs="*", metavar="[MODEL] [PROMPT]",
        help="a GGUF file, and the text to continue (-: read it from stdin)",
    )  # fmt: skip
    add_model_arguments(parser)
    parser.add_argument("-p", "--prompt", metavar="PROMPT", help="the same as PROMPT")
    add_generation_arguments(parser, n_predict=64)
    parser.add_argument("--stats", action="store_true", help="say on stderr how it went")


def run(arguments: argparse.Namespace) -> None:
    path, prompt = model_and_prompt(arguments)
    options = generation(arguments)
    if prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n")  # an editor's or echo's, not the writer's
    with open_model(path, arguments, arguments.ctx_size) as model:
        _continue(model, prompt, options, arguments.stats)


def model_and_prompt(arguments: argparse.Namespace) -> tuple[str | None, str]:
    """What was given as MODEL (None: the default one) and as PROMPT, in whichever way."""
    words = list(arguments.words)
    path, prompt = arguments.model_option, arguments.prompt
    if path is None and words and (len(words) > 1 or prompt is not None or _is_model(words[0])):
        path = words.pop(0)
    if prompt is None and words:
        prompt = words.pop(0)
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}")
    if prompt is None:
        raise UsageError("no prompt given")
    return path, prompt


def _is_model(word: str) -> bool:
    return word.endswith(".gguf") or os.path.isfile(word)


def _continue(model: "Model", prompt: str, options: dict[str, Any], stats: bool) -> None:
    ids = model.tokenize(prompt)
    with model.sequence() as sequence, live(model) as line:
        before, streamed = counters.reads(), model.streaming
        started = time.perf_counter()
        with progress("reading the prompt") as update:
            pieces = model.stream(ids, on_prefill=update, sequence=sequence, **options)
            first = next(pieces)
        read = time.perf_counter()
        n_tokens = _write(chain([first], pieces), line)
        if stats:
            wrote = time.perf_counter()
            note(f"prompt: {len(ids)} tokens, {_rate(len(ids), read - started)}")
            # The first token comes with the prompt's last step.
            note(f"answer: {n_tokens} tokens, {_rate(max(n_tokens - 1, 0), wrote - read)}")
            note(f"memory: {model.memory}")
            if model.streaming and streamed:
                _note_streaming(model.streaming - streamed)
            _note_counters(counters.reads() - before)


def _write(pieces: "Iterator[Piece]", line: Live) -> int:
    """Prints the pieces as they come and returns the number of tokens."""
    n_tokens, text = 0, ""
    for piece in pieces:
        line.begin()
        n_tokens += piece.token is not None
        text = piece.text or text
        print(piece.text, end="", flush=True)
    line.begin()
    if text and not text.endswith("\n"):
        print(flush=True)
    return n_tokens


def _note_streaming(done: Streaming) -> None:
    """What reading weights again for each step has cost."""
    note(
        f"streaming: {human(round(done.read_per_step))} a step, {done.stall_seconds:.1f} s waited "
        f"for the disk, {done.overlap:.0%} of the reading beside the arithmetic"
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


def _rate(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens / seconds:.1f} tokens/s"
