"""The command `mmrt`: which subcommand is meant, and how each of them ends.

A subcommand is a module here with `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`, and
a line in COMMANDS. Only the one that is called is imported: the others' imports would cost more
than `mmrt --help`.
"""

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import mmrt
from mmrt.cli.options import UsageError
from mmrt.cli.output import note, tame
from mmrt.errors import MmrtError

COMMANDS = {
    "run": "answer a prompt, or continue a text",
    "chat": "converse with a model",
    "serve": "answer over HTTP, as OpenAI's clients expect",
    "inspect": "show what is in a weight file",
    "quantize": "write a smaller file of a model",
    "split": "write a file of some of a model's layers, for one machine of several",
    "stage": "run some of a model's layers, for a coordinator elsewhere",
    "plan": "say which machine is to have which layers of a model",
    "bundle": "write the neurons of a model with ReLU, each in one piece",
    "predictor": "train a guess of which neurons of a model with ReLU a token needs",
    "bench": "measure prefill and decode speed",
    "residency": "show which pages of a weight file are in memory",
    "warm": "read a weight file, or parts of it, into the page cache",
    "evict": "drop a weight file, or parts of it, from the page cache",
    "trace": "record a generation: time, faults and reads by token and layer",
    "experts": "show which experts tokens go to, and what a cache of them would find",
    "kv": "draw the pages of a running engine, and who shares them",
    "pagetables": "explain how many page tables a mapping needs",
}

# What a shell reports of a process that died of SIGINT, and of SIGPIPE.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `mmrt` with `argv` (None: the process's own arguments) and returns its exit status.

    0: done. 1: mmrt or the system refused, said in one line on stderr. 2: wrong usage, likewise.
    130: interrupted. 141: nobody reads the output any more.
    """
    try:
        _open_closed_streams()
        _speak_utf8()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _dispatch(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except BrokenPipeError:
        status = _BROKEN_PIPE
    except (MmrtError, OSError) as error:
        print("mmrt:", _one_line(error), file=sys.stderr)
        status = 1
    _abandon_unwritable_output()
    return status


class _Parser(argparse.ArgumentParser):
    """Leaves it to main() to report an error: in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _dispatch(argv: Sequence[str] | None) -> int:
    parser = _Parser(
        prog="mmrt",
        description="Runs quantised language models on CPUs, straight from their mapped files.",
        epilog="commands:\n"
        + "".join(f"  {name:11} {what}\n" for name, what in COMMANDS.items())
        + "\n`mmrt COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    usage_of = "mmrt"
    try:
        chosen = parser.parse_args(argv)
        if chosen.version:
            print("mmrt", mmrt.__version__)
        elif chosen.command in COMMANDS:
            usage_of = f"mmrt {chosen.command}"
            _run_command(chosen.command, chosen.arguments)
        else:
            found = f"no command {chosen.command!r}" if chosen.command else "no command given"
            raise UsageError(f"{found}; there are {', '.join(COMMANDS)}")
    except UsageError as error:
        print(f"{usage_of}: {tame(str(error))} (see {usage_of} --help)", file=sys.stderr)
        return 2
    except SystemExit as done:  # argparse after --help, or a command that has said why
        return int(done.code or 0)
    return 0


def _run_command(name: str, arguments: Sequence[str]) -> None:
    command = importlib.import_module(f"mmrt.cli.{name}")
    parser = _Parser(
        prog=f"mmrt {name}",
        description=command.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    # Intermixed, so that options may stand between MODEL and PROMPT.
    command.run(parser.parse_intermixed_args(arguments))


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In one line, as all else that is said: where in mmrt it arose helps nobody here."""
    note(" ".join(str(message).split()))


def _open_closed_streams() -> None:
    """Puts /dev/null where a stream was closed before the start (`<&-`): Python has None there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _speak_utf8() -> None:
    """UTF-8 on all streams, whatever the locale. Bytes on stdin that are not become lone
    surrogates, as they do in argv, and are refused where text is wanted.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return tame(" ".join(text.split())) or type(error).__name__


def _abandon_unwritable_output() -> None:
    """Points stdout nowhere if what it holds cannot be written: Python would try again at exit,
    and complain.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
