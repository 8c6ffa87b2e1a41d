"""Which part of what a model writes is its answer, and which is reasoning on the way to it.

Chat models mark their reasoning: most by a pair of tags before the answer, gpt-oss by a header
before each part of it. Which marks a model has, its chat template says.
"""

import re
from collections.abc import Set
from typing import Literal, Protocol, runtime_checkable

from mmrt.text.grammar import Grammar, OneOf, Until

Channel = Literal["final", "reasoning"]

# A stretch of text and where it belongs; None: a mark, which is not shown.
Run = tuple[str, Channel | None]

_TAGS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)

_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", _START)
_LONGEST_HEADER = 256  # characters; what is longer is an answer without one


# What may stand between reasoning and the answer.
_GAP = OneOf((("\n\n",), ("\n",), ()))


@runtime_checkable
class Channels(Protocol):
    """Sorts a text as it comes.

    thoughts: what may or must be written before an answer or a call. heading: what an answer must
    begin with.
    """

    thoughts: Grammar
    heading: Grammar

    def feed(self, text: str, mark: str = "") -> list[Run]:
        """`text`, then the control token that is spelled `mark`, sorted; what may be the beginning
        of a mark comes later."""
        ...

    def finish(self) -> list[Run]:
        """What was held back, once no more text comes; where nothing was, an empty end."""
        ...


def channels(template: str | None, prompt: str, shown: Set[str] = frozenset()) -> Channels:
    """For what follows `prompt`, which the chat template `template` made. shown: the spellings of
    control tokens that are text, for parsers of calls (see toolcalls)."""
    template = template or ""
    if _CHANNEL in template and _MESSAGE in template:
        return Headed(prompt.rpartition(_START)[2])
    tags = next((tags for tags in _TAGS if any(tag in template for tag in tags)), None)
    within = Tagged(*tags, prompt.rstrip().endswith(tags[0])) if tags else Undivided()
    return Spelled(within, shown) if shown else within


class Undivided:
    """All is answer."""

    thoughts: Grammar = ()
    heading: Grammar = ()

    def feed(self, text: str, mark: str = "") -> list[Run]:
        return [(text, "final"), (mark, None)]

    def finish(self) -> list[Run]:
        return [("", "final")]


class Spelled:
    """Some control tokens are text, and sorted like the text around them."""

    def __init__(self, within: Channels, shown: Set[str]) -> None:
        self._within, self._shown = within, shown
        self.thoughts, self.heading = within.thoughts, within.heading

    def feed(self, text: str, mark: str = "") -> list[Run]:
        if mark in self._shown:
            text, mark = text + mark, ""
        return self._within.feed(text, mark)

    def finish(self) -> list[Run]:
        return self._within.finish()


class Tagged:
    """The text may begin with reasoning between two tags. Later tags are text as any other."""

    def __init__(self, opening: str, closing: str, inside: bool) -> None:
        """inside: the prompt had the opening tag already."""
        self._opening, self._closing = opening, closing
        rest: Grammar = (Until(closing), _GAP)
        self.thoughts: Grammar = rest if inside else (OneOf(((opening, *rest), ())),)
        self.heading: Grammar = ()
        self._held = ""
        self._awaits_opening = not inside
        self._channel: Channel = "reasoning" if inside else "final"
        self._starts = inside  # white space at the start of a part belongs to its tag

    def feed(self, text: str, mark: str = "") -> list[Run]:
        if mark and (self._opening.startswith(mark) or mark == self._closing):
            text, mark = text + mark, ""  # tags are control tokens in some vocabularies
        self._held += text
        return [*self._sort(), (mark, None)]

    def _sort(self) -> list[Run]:
        runs: list[Run] = []
        if self._awaits_opening:
            written = self._held.lstrip()
            if written.startswith(self._opening):
                self._turn(runs, self._held.index(self._opening) + len(self._opening), "reasoning")
            elif self._opening.startswith(written):
                return runs
            self._awaits_opening = False
        if self._channel == "reasoning":
            self._skip(runs)
            end = self._held.find(self._closing)
            if end >= 0:
                self._take(runs, len(self._held[:end].rstrip()))
                self._turn(runs, self._held.index(self._closing) + len(self._closing), "final")
            else:
                may_close = (n for n in range(len(self._closing), 0, -1))
                overlap = next((n for n in may_close if self._held.endswith(self._closing[:n])), 0)
                self._take(runs, len(self._held[: len(self._held) - overlap].rstrip()))
        if self._channel == "final":
            self._skip(runs)
            self._take(runs, len(self._held))
        return runs

    def _turn(self, runs: list[Run], end: int, channel: Channel) -> None:
        """A tag ends at `end`; behind it is `channel`."""
        runs.append((self._held[:end], None))
        self._held = self._held[end:]
        self._channel, self._starts = channel, True

    def _skip(self, runs: list[Run]) -> None:
        """Takes white space behind a tag."""
        if self._starts:
            rest = self._held.lstrip()
            runs.append((self._held[: len(self._held) - len(rest)], None))
            self._held, self._starts = rest, not rest

    def _take(self, runs: list[Run], end: int) -> None:
        if end:
            runs.append((self._held[:end], self._channel))
            self._held = self._held[end:]

    def finish(self) -> list[Run]:
        held, self._held = self._held, ""
        return [(held, self._channel)]


class Headed:
    """Parts, each with a header, as gpt-oss writes them (OpenAI's harmony format):

        <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...

    A call of a tool is a part of the answer, and its header with it: that says which tool.
    """

    def __init__(self, beginning: str) -> None:
        """beginning: the part that the prompt ends with, behind its <|start|>."""
        header, found, _ = beginning.partition(_MESSAGE)
        self._header: str | None = None if found else ""  # what there is of it; None: read
        self._marked = bool(found)  # whether there was a header, or a part of one
        self._channel = self._channel_of(header) if found else "final"
        next_part: Grammar = (Until("<|end|>"), f"{_START}assistant")
        thinks: Grammar = (f"{_CHANNEL}analysis{_MESSAGE}", *next_part)
        if found:
            self.thoughts: Grammar = next_part if self._channel == "reasoning" else ()
        else:
            self.thoughts = (OneOf((thinks, ())),)
        answers = bool(found) and self._channel == "final"
        self.heading: Grammar = () if answers else (f"{_CHANNEL}final{_MESSAGE}",)

    @staticmethod
    def _is_call(header: str) -> bool:
        return re.search(r"\bto=", header) is not None

    def _channel_of(self, header: str) -> Channel:
        name = re.search(r"<\|channel\|>\s*(\w+)", header)
        if name is None or self._is_call(header) or name[1] in ("final", "commentary"):
            return "final"
        return "reasoning"

    def feed(self, text: str, mark: str = "") -> list[Run]:
        runs: list[Run] = []
        if self._header is None:
            runs.append((text, self._channel))
        else:
            self._header += text
        if mark == _MESSAGE and self._header is not None:
            header, self._header = self._header, None
            self._channel = self._channel_of(header)
            shown = header[max(header.find("assistant"), 0) :].removeprefix("assistant")
            runs.append((shown + mark, "final" if self._is_call(header) else None))
        elif mark in _ENDS:
            self._marked = True
            runs += [(self._header or "", None), (mark, None)]
            self._header = ""
        elif self._header is not None and mark:
            self._marked = True
            self._header += mark
        else:
            runs.append((mark, None))
        if self._header is not None and len(self._header) > _LONGEST_HEADER:
            runs.append((self._header, "final"))
            self._header, self._channel = None, "final"
        return runs

    def finish(self) -> list[Run]:
        header, self._header = self._header or "", None
        return [(header, None if self._marked else "final")]
