"""What parsers of all families share: telling calls from text."""

import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from mmrt.text.grammar import Grammar, Many, OneOf, Until, Without
from mmrt.text.toolcalls.events import CallArguments, CallBegin, CallEnd, Event, TextDelta
from mmrt.text.toolcalls.reader import Malformed, Reader, Steps

# Characters of a call that are held back until it is whole, since a malformed one is text. A longer
# one is passed on as it comes.
_LONGEST_HELD = 1024

_LONGEST_NAME = 256

# Mistral's templates take no other ids than nine letters and digits.
_IN_IDS = string.ascii_letters + string.digits
_ID_LENGTH = 9


class ToolParser(Reader, ABC):
    """Tells the calls in what a model writes from the text around them, as it comes.

    marks: the texts of control tokens that it has to see. White space between text and calls
    belongs to neither. What begins like a call and is none, or is cut off, is text; if it is long,
    it may have begun as a call already, which then has no end.
    """

    marks: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self._events: list[Event] = []
        self._blank = ""  # white space that is text, unless a call follows
        self.said = False  # there was text
        self._draft: list[Event] = []  # of a call that is held back
        self._held = 0  # characters in it
        self._begun = False  # the call is not held back any more
        self._index = 0
        self._steps = self._run()
        next(self._steps)

    def feed(self, text: str) -> list[Event]:
        """What `text` adds to what was fed before."""
        for character in text:
            self._steps.send(character)
        return self._take()

    def end(self) -> list[Event]:
        """What was held back, once no more text comes."""
        self._over = True
        for _ in self._steps:
            pass
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return _joined(events)

    # ---- for each family ----

    @abstractmethod
    def openings(self) -> Sequence[str]:
        """What calls may begin with at this place; none of them is the beginning of another."""

    @abstractmethod
    def calls(self, opening: str) -> Steps[None]:
        """Reads calls, one at least, behind `opening`; raises Malformed."""

    @abstractmethod
    def written(self, name: str, parameters: Mapping[str, Any]) -> Grammar:
        """How the model writes a call of the function `name` alone, with arguments by the schema
        `parameters`, of objects. Raises ArgumentError for what of it cannot be held."""

    def held(self, ways: Sequence[Grammar]) -> Grammar:
        """Any text, in which each call is one of `ways`, made by written()."""
        opening, *_ = openings = self.openings()
        behind = tuple((str(way[0]).removeprefix(opening), *way[1:]) for way in ways)
        return (Many((Until(opening), OneOf(behind))), Without(tuple(openings)))

    def begin(self, name: str) -> None:
        """A call of the function `name` begins."""
        if not name or len(name) > _LONGEST_NAME or not name.isprintable() or " " in name:
            raise Malformed
        id_ = "".join(secrets.choice(_IN_IDS) for _ in range(_ID_LENGTH))
        self._tell(CallBegin(self._index, id_, name), len(name))

    def argue(self, text: str) -> None:
        """More of its arguments."""
        self._tell(CallArguments(self._index, text), len(text))

    def finish(self) -> None:
        """It is whole."""
        self._show()
        self._events.append(CallEnd(self._index))
        self._reset()

    # ---- text and calls ----

    def _run(self) -> Steps[None]:
        while opening := (yield from self._text()):
            self._read.clear()
            before = self._index
            try:
                yield from self.calls(opening)
                if self._index == before:
                    raise Malformed
                yield from self.space()
            except Malformed:
                self._give_up(opening if self._index == before else "")
        self._flush()

    def _text(self) -> Steps[str]:
        """Passes text on until a call may begin; gives its opening, "" at the end."""
        held = ""
        while character := (yield from self.next()):
            self._read.clear()
            held += character
            while held:
                openings = self.openings()
                if held in openings:
                    return held
                if any(opening.startswith(held) for opening in openings):
                    break
                self._say(held[0])
                held = held[1:]
        self._say(held)
        return ""

    def _say(self, text: str) -> None:
        for character in text:
            self._blank += character
            if not character.isspace():
                self._flush()

    def _flush(self) -> None:
        if self._blank:
            self._events.append(TextDelta(self._blank))
            self.said = self.said or not self._blank.isspace()
            self._blank = ""

    def _tell(self, event: Event, size: int) -> None:
        if self._begun:
            self._events.append(event)
            return
        self._draft.append(event)
        self._held += size
        if self._held > _LONGEST_HELD:
            self._show()

    def _show(self) -> None:
        self._events += self._draft
        self._draft, self._held, self._begun = [], 0, True
        self._blank = ""

    def _reset(self) -> None:
        self._draft, self._held, self._begun = [], 0, False
        self._index += 1
        self._read.clear()

    def _give_up(self, opening: str) -> None:
        """No call ends here. What was read behind `opening` is text, and calls that begin in it."""
        read = "".join(self._read)
        if self._begun:
            self._reset()
            opening = read = ""
        else:
            self._draft, self._held = [], 0
        self._read.clear()
        self._say(opening)
        if self._over or len(read) > _LONGEST_HELD:
            self._say(read)
        else:
            self._ahead.extendleft(reversed(read))


def _joined(events: list[Event]) -> list[Event]:
    """`events`, neighbours of one kind as one."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            joined[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined[-1] = CallArguments(event.index, last.text + event.text)
        else:
            joined.append(event)
    return joined
