"""What is typed or piped into a chat: a message a line, or several lines that belong together.

On a terminal a pasted text is one message, and what is typed is kept for the next session. Text
between lines that begin and end with three double quotes is one message everywhere.
"""

import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from mmrt.cli.history import History
from mmrt.cli.output import note

_QUOTES = '"""'
_PROMPT, _MORE = "> ", "... "
_GLANCE = 0.1  # seconds

ReadLine = Callable[[str], str]
"""Gives the next line after showing a prompt, or raises EOFError."""


class Message(NamedTuple):
    """is_quoted: it stood in quotes, and so is no command."""

    text: str
    is_quoted: bool


def messages() -> Iterator[Message]:
    """Those on stdin, none of them blank. On a terminal Ctrl-C clears the line; KeyboardInterrupt
    comes of the second one in a row.
    """
    if not sys.stdin.isatty():
        while (message := _next(_read_piped)) is not None:
            yield message
        return
    terminal = _Terminal()
    interrupted = False
    while True:
        try:
            message = _next(terminal.read)
            interrupted = False
            if message is not None:
                terminal.history.add(message.text)
        except KeyboardInterrupt:
            print()
            if terminal.has_text():
                continue
            if interrupted:
                raise
            interrupted = True
            note("Ctrl-D leaves, and so does another Ctrl-C")
            continue
        if message is None:
            print()
            return
        yield message


@contextmanager
def unseen_typing() -> Iterator[None]:
    """What is typed meanwhile does not show up amid the answer; it comes with the next prompt."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _next(read: ReadLine) -> Message | None:
    """None: there are no more."""
    while True:
        try:
            text = read(_PROMPT).rstrip()
        except EOFError:
            return None
        if text.lstrip().startswith(_QUOTES):
            text = _quoted(text.lstrip().removeprefix(_QUOTES), read)
            if text.strip():
                return Message(text, True)
        elif text:
            return Message(text, "\n" in text)


def _quoted(text: str, read: ReadLine) -> str:
    with suppress(EOFError):
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + read(_MORE)
    return text.rstrip().removesuffix(_QUOTES).strip("\n")


def _read_piped(_: str) -> str:
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.removesuffix("\n")


class _Terminal:
    """Lines from a terminal, by readline where Python has it."""

    def __init__(self) -> None:
        self.history = History()
        self._pastes_whole = False
        self._readline = None
        signal.signal(signal.SIGALRM, lambda *_: None)
        with suppress(ImportError):
            import readline

            self._readline = readline
            self.history.load(readline)
            # CPython turns it off, as most programs read a line and not a text.
            readline.parse_and_bind("set enable-bracketed-paste on")
            self._pastes_whole = "libedit" not in (readline.__doc__ or "")

    def read(self, prompt: str) -> str:
        # CPython looks for a Ctrl-C when a signal ends its wait for a key. One that comes just
        # before this wait would have to wait for the next key, were there no other signals.
        signal.setitimer(signal.ITIMER_REAL, _GLANCE, _GLANCE)
        try:
            return self._read(prompt)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _read(self, prompt: str) -> str:
        text = input(prompt)
        # Lines of a paste that come one by one are there at once.
        while not self._pastes_whole and select.select([sys.stdin], [], [], 0.02)[0]:
            try:
                text += "\n" + input()
            except EOFError:
                break
        return text

    def has_text(self) -> bool:
        """Whether the line that Ctrl-C has ended was more than empty; False where nobody knows."""
        return self._readline is not None and bool(self._readline.get_line_buffer())
