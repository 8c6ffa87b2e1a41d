"""From logits to text: the loop that samples, decodes and knows when to stop."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import flag, function, instance, known, whole
from mmrt.core.draw import Drawn
from mmrt.core.kernels import Pool
from mmrt.core.sampling import Filters, Sampling
from mmrt.errors import ArgumentError, InUseError
from mmrt.run.checkpoints import Stops
from mmrt.run.drafts import Drafting
from mmrt.run.loan import Loan
from mmrt.run.sampler import Sampler, mask_without, sample_together
from mmrt.run.sequence import Progress
from mmrt.run.sequence import Sequence as TokenSequence
from mmrt.text.channels import Channel, Channels, Run, Undivided
from mmrt.text.constraint import Constraint
from mmrt.text.grammar import Grammar, Json, json_by
from mmrt.text.tokenizer import StreamDecoder, Tokenizer
from mmrt.text.toolcalls import ToolParser, gather

Finish = Literal["stop", "length"]


class Piece(NamedTuple):
    """A part of generated text.

    text: whole characters; may be empty while one is incomplete. token: its last token's id, None
    for text that was only held back, or that a token has beside that of another piece. finish: None
    but in the last piece: "stop" after an end-of-text token or a stop string, "length" at
    max_tokens or the end of the context. channel: "reasoning" for what a model thinks in a chat
    before it answers; else "final". drawn: with `logprobs`, the token with its log-probability and
    the likeliest in its place. stop: the stop string that came, in the last piece.
    """

    text: str
    token: int | None
    finish: Finish | None = None
    channel: Channel = "final"
    drawn: Drawn | None = None
    stop: str | None = None


class Options(Filters, total=False):
    """How a text is written: keyword arguments of all that writes one. Those that choose its tokens
    are explained in mmrt.Sampling."""

    temperature: float
    max_tokens: int | None
    """Tokens at most; 512 by default, None: as many as the context holds."""
    stop: Sequence[str]
    """Texts before which to stop; they may spell control tokens."""
    ignore_eos: bool
    """Go on where the text would end: tokens that end it are never drawn."""
    logprobs: int | None
    """Tell with each piece its token's log-probability, and so many of the likeliest tokens: as
    Sampler.sample() does. None: do not."""
    json_schema: Any
    """The answer is JSON that is valid by this schema: a dict, a bool, or the JSON text of one. It
    is whole unless `finish` is "length", or a stop string cut it."""
    json_object: bool
    """The answer is a JSON object."""
    grammar: Grammar | None
    """What the answer has to be: see mmrt.grammar."""
    on_prefill: Progress | None
    """Called as the prompt is read, with (tokens done, tokens in all); first with 0 done."""


# Written if the caller names no number: a text that goes round in circles has to end.
MOST_TOKENS = 512


class Settings:
    """Options that make sense."""

    def __init__(
        self,
        *,
        max_tokens: int | None = MOST_TOKENS,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        json_schema: Any = None,
        json_object: bool = False,
        grammar: Grammar | None = None,
        on_prefill: Progress | None = None,
        **sampling: Any,
    ) -> None:
        """Raises ArgumentError for one that is unknown or out of its range."""
        known(sampling, Options.__annotations__)
        function("on_prefill", on_prefill)
        self.max_tokens = None if max_tokens is None else whole("max_tokens", max_tokens, 0)
        self.stop = stop
        self.ignore_eos = flag("ignore_eos", ignore_eos)
        self.logprobs = None if logprobs is None else whole("logprobs", logprobs, 0)
        self._json: Json | None = None
        if flag("json_object", json_object):
            self._json = json_by({"type": "object"})
        if json_schema is not None:
            self._json = json_by(json_schema)
        self._grammar = (
            grammar if grammar is None else instance("grammar", grammar, tuple, "a tuple of parts")
        )
        if (json_schema is not None) + json_object + (grammar is not None) > 1:
            raise ArgumentError("json_schema, json_object, grammar: only one can be held")
        if ignore_eos and (self._json or grammar is not None):
            raise ArgumentError("ignore_eos: JSON and grammars have an end")
        self.on_prefill = on_prefill
        self.sampling = Sampling(**sampling)
        StopStrings(stop)

    def constraint(self, tokenizer: Tokenizer, channels: Channels) -> Constraint | None:
        """What holds a new text to its schema or grammar; None: it may be any text. Raises
        ArgumentError for what cannot be held, UnsupportedError where llguidance is missing."""
        if self._json is not None:
            parts = (*channels.thoughts, *channels.heading, self._json)
            return Constraint(tokenizer, parts, "json_schema")
        if self._grammar is not None:
            return Constraint(tokenizer, (*channels.thoughts, *self._grammar))
        return None


class Text(str):
    """What a model wrote: a str that knows how it came about.

    finish: why it ended, as in Piece. prompt_tokens: tokens before it that the model has read, and
    cached_tokens: those of them that it had read before. tokens: those written, an end-of-text
    token among them. seconds: how long reading and writing took. reasoning: what the model thought
    before it answered, in a chat; it is no part of the text. tool_calls: the calls of tools that it
    wrote, in a chat with tools, as OpenAI's messages have them: each a dict with `id`, `type` and
    `function`, which has `name` and `arguments`, JSON in a str.
    """

    def __new__(
        cls,
        text: str,
        finish: Finish | None = None,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        tokens: int = 0,
        seconds: float = 0.0,
        reasoning: str = "",
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> "Text":
        made = super().__new__(cls, text)
        made.finish = finish
        made.prompt_tokens, made.cached_tokens = prompt_tokens, cached_tokens
        made.tokens, made.seconds = tokens, seconds
        made.reasoning = reasoning
        made.tool_calls = list(tool_calls)
        return made

    @classmethod
    def of(
        cls,
        pieces: Iterable[Piece],
        finish: Finish | None = None,
        parser: ToolParser | None = None,
        **known: Any,
    ) -> "Text":
        """What `pieces` make; parser: of the calls in it; known: as the constructor's."""
        said: dict[Channel, str] = {"final": "", "reasoning": ""}
        for piece in pieces:
            said[piece.channel] += piece.text
        text, calls = said["final"], list[dict[str, Any]]()
        if parser is not None:
            text, calls = gather([*parser.feed(text), *parser.end()])
        return cls(text, finish, reasoning=said["reasoning"], tool_calls=calls, **known)

    finish: Finish | None
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    seconds: float
    reasoning: str
    tool_calls: list[dict[str, Any]]


@dataclass
class Reading:
    """What a stream's pieces tell it of the tokens before them."""

    tokens: int
    cached: int = 0  # of them, those that were read before


class Stream(Iterator[Piece]):
    """The pieces of a text, as the model writes it. What a Text knows of itself, this knows of what
    was written so far; close() ends it early. The sequence or conversation that it writes in takes
    nothing else until it has ended, is closed or is dropped."""

    def __init__(
        self,
        reading: Reading,
        pieces: Generator[Piece, None, None],
        sequence: TokenSequence | Loan | None = None,
        parser: ToolParser | None = None,
    ) -> None:
        """sequence: what it writes in, where others know that too. parser: of the calls in
        the text. Raises InUseError if another stream writes there."""
        self.pieces = pieces  # what it goes through
        self._parser = parser
        self._give_back = None if sequence is None else sequence.lend(self)
        self.finish: Finish | None = None
        self.tokens = 0
        self.seconds = 0.0
        self._reading = reading

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._reading.tokens

    @property
    def cached_tokens(self) -> int:
        """Of these, the ones read before; known once the first piece has come."""
        return self._reading.cached

    def __next__(self) -> Piece:
        started = time.perf_counter()
        self._require_rest()
        try:
            piece = next(self.pieces)
        except BaseException:
            self.close()
            raise
        finally:
            self.seconds += time.perf_counter() - started
        self.tokens += piece.token is not None
        self.finish = piece.finish
        if piece.finish is not None:
            self.close()
        return piece

    def _require_rest(self) -> None:
        if getattr(self.pieces, "gi_running", False):
            raise InUseError("the stream is at work already, in this thread or another")

    def close(self) -> None:
        """Ends it; what it holds of memory is given back. InUseError while a thread is in it."""
        self._require_rest()
        self.pieces.close()
        if self._give_back is not None:
            self._give_back()

    def text(self) -> Text:
        """All that is still to come, whole."""
        pieces = list(self)
        return Text.of(
            pieces,
            self.finish,
            self._parser,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            tokens=self.tokens,
            seconds=self.seconds,
        )

    def __repr__(self) -> str:
        state = f"ended: {self.finish}" if self.finish else "going on"
        return f"<Stream of {self.tokens} tokens after {self.prompt_tokens}, {state}>"


class StopStrings:
    """Passes text on until one of `stops` appears, and holds back what may be the start of one.

    A stop may spell control tokens too, though their text is not shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ArgumentError for anything but a list or tuple of non-empty strings."""
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
            raise ArgumentError(f"stop: {stops!r:.60} is not a list of non-empty strings")
        self._stops = tuple(stops)
        self.found: str | None = None  # the one that has come
        self._held = ""
        self._where: list[Channel | None] = []  # each held character belongs

    def feed(self, runs: Iterable[Run]) -> tuple[list[Run], bool]:
        """(what can be shown, whether a stop string has come)."""
        if not self._stops:
            return [run for run in runs if run[1]], False
        for text, where in runs:
            self._held += text
            self._where += [where] * len(text)
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.found = min(found)
            shown = self._shown(at)
            self._held, self._where = "", []
            return shown, True
        cut = len(self._held) - max(self._overlap(stop) for stop in self._stops)
        shown = self._shown(cut)
        self._held, self._where = self._held[cut:], self._where[cut:]
        return shown, False

    def _shown(self, end: int) -> list[Run]:
        runs = groupby(zip(self._held[:end], self._where[:end], strict=True), itemgetter(1))
        return [("".join(c for c, _ in run), where) for where, run in runs if where]

    def _overlap(self, stop: str) -> int:
        """The length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def finish(self) -> list[Run]:
        """What was held back, once no more text comes."""
        shown = self._shown(len(self._held))
        self._held, self._where = "", []
        return shown


class Answer:
    """What a model writes in one sequence, a token at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: int,
        sequence: TokenSequence,
        settings: Settings,
        channels: Channels | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        """context: tokens that the sequence can have. channels: where its parts belong; None: all
        is answer. drafting: what guesses tokens before they are drawn."""
        self.sequence = sequence
        self.drafting = drafting
        for biased in settings.sampling.logit_bias or ():
            whole("logit_bias", biased, 0, tokenizer.vocab_size - 1)
        self.sampler = Sampler.of(settings.sampling)
        self.logprobs = settings.logprobs
        self.mask: NDArray[np.uint32] | None = None  # of the tokens that may be drawn; None: all
        never = {*tokenizer.suppressed_ids, *(tokenizer.stop_ids if settings.ignore_eos else ())}
        if never:
            self.mask = mask_without(list(never), tokenizer.vocab_size)
        self._tokenizer, self._context = tokenizer, context
        self._channels: Channels = Undivided() if channels is None else channels
        self._constraint = settings.constraint(tokenizer, self._channels)
        if self._constraint is not None:
            self.mask = self._constraint.mask
        self._channel: Channel = "final"  # of the last piece
        self._stops = StopStrings(settings.stop)
        self._decoder = StreamDecoder(tokenizer)
        self._max_tokens = settings.max_tokens
        self._left: int | None = None  # tokens to be written; None: the prompt is not read yet

    @property
    def started(self) -> bool:
        """Whether a token was drawn."""
        return self._left is not None

    @property
    def left(self) -> int:
        """Tokens that may still be written, once one was drawn."""
        return self._left or 0

    def stops(self, ids: Sequence[int]) -> Stops | None:
        """Where the text sets checkpoints as it reads the rest of `ids`; None: it sets none."""
        if not self.sequence.goes_back:
            return None
        n = self._tokenizer.vocab_size
        controls = {i for i in set(ids) if 0 <= i < n and self._tokenizer.is_special(int(i))}
        return Stops(ids, len(self.sequence), controls)

    def take(self, drawn: Drawn) -> tuple[list[Piece], int | None]:
        """Pieces that come after the last token read, and the token to read next; None: it ends.

        drawn: after the last one. It is not taken where the text has no room.
        """
        token = drawn.token
        if self._left is None:
            room = self._context - len(self.sequence)
            self._left = room if self._max_tokens is None else min(self._max_tokens, room)
        pieces: list[Piece] = []
        if self._left > 0:
            if token in self._tokenizer.stop_ids:
                return self._told(self._rest(token, "stop"), drawn), None
            self._left -= 1
            runs = self._channels.feed(self._decoder.feed(token), self._mark(token))
            shown, stopped = self._stops.feed(runs)
            pieces = self._pieces(shown, token, "stop" if stopped else None)
            pieces = self._told(pieces, drawn)
            if stopped:
                return pieces, None
            if self._is_whole(token):
                return pieces + self._rest(None, "stop"), None
            if self._left:
                return pieces, token
        return pieces + self._rest(None, "length"), None

    def _told(self, pieces: list[Piece], drawn: Drawn) -> list[Piece]:
        """With log-probabilities, where these are wanted."""
        if self.logprobs is not None:
            listed = drawn.alternatives[: self.logprobs]
            pieces[-1] = pieces[-1]._replace(drawn=drawn._replace(alternatives=listed))
        return pieces

    def _is_whole(self, token: int) -> bool:
        """Whether nothing can follow `token`, by the text's schema or grammar."""
        if self._constraint is None:
            return False
        self._constraint.take(token)
        return self._constraint.over

    def _mark(self, token: int) -> str:
        """A control token as it is spelled; nothing for others."""
        if not self._tokenizer.is_special(token):
            return ""
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def _rest(self, token: int | None, finish: Finish) -> list[Piece]:
        """The last pieces, of what was held back."""
        runs = [*self._channels.feed(self._decoder.finish()), *self._channels.finish()]
        shown, stopped = self._stops.feed(runs)
        return self._pieces([*shown, *self._stops.finish()], token, "stop" if stopped else finish)

    def _pieces(self, runs: Sequence[Run], token: int | None, finish: Finish | None) -> list[Piece]:
        """A piece for each channel in turn, one at least."""
        parts: list[tuple[Channel, str]] = []
        for text, channel in runs:
            if text and channel is not None:
                parts.append((channel, text))
        joined = [
            (channel, "".join(text for _, text in group))
            for channel, group in groupby(parts, itemgetter(0))
        ]
        pieces = [Piece(text, None, None, channel) for channel, text in joined]
        if not pieces:
            pieces = [Piece("", None, None, self._channel)]
        self._channel = pieces[-1].channel
        pieces[-1] = pieces[-1]._replace(token=token, finish=finish, stop=self._stops.found)
        return pieces


def next_tokens(
    answers: Sequence[Answer], logits: NDArray[np.float32], pool: Pool | None = None
) -> list[Drawn]:
    """What is drawn for each answer from its row of logits, those after what was read."""
    return _drawn(answers, logits, [answer.sequence.history for answer in answers], pool)


def _drawn(
    answers: Sequence[Answer],
    logits: NDArray[np.float32],
    histories: Sequence[Sequence[int]],
    pool: Pool | None = None,
) -> list[Drawn]:
    listed = [answer.logprobs for answer in answers if answer.logprobs is not None]
    return sample_together(
        [answer.sampler for answer in answers],
        logits,
        histories,
        [answer.mask for answer in answers],
        max(listed) if listed else None,
        pool,
    )


def generate(
    answer: Answer, prompt: Sequence[int], on_prefill: Progress | None
) -> Generator[Piece, None, None]:
    """Reads `prompt` into the answer's sequence and yields pieces of what comes after it."""
    stops = answer.stops([*answer.sequence.history, *prompt])
    rows = answer.sequence.extend(prompt, progress=on_prefill, stops=stops)[None]
    draft = list[int]()
    drafting = answer.drafting
    try:
        while True:
            token = yield from accept(answer, rows, draft)
            if token is None:
                return
            if drafting is None:
                rows = answer.sequence.extend([token])[None]
            else:
                rows, draft = drafting.step(answer.sequence, token, answer.left - 1)
    finally:
        if drafting is not None:
            drafting.forget(answer.sequence)


def accept(
    answer: Answer, rows: NDArray[np.float32], draft: Sequence[int]
) -> Generator[Piece, None, int | None]:
    """Draws a token from each row of logits while they are those of the draft, which was read with
    the rows after the first; what else was read is forgotten. Returns the token to read next."""
    sequence = answer.sequence
    first, accepted = len(sequence) - len(draft), 0
    token: int | None = None
    try:
        for row, guess in zip_longest(rows, draft):
            history = sequence.history
            if draft and answer.sampler.sampling.penalises:
                history = history[: first + accepted]
            pieces, token = answer.take(*_drawn([answer], row[None], [history]))
            yield from pieces
            if token is None or token != guess:
                break
            accepted += 1
        return token
    finally:
        if draft and answer.drafting is not None:
            answer.drafting.sure = first + accepted
            answer.drafting.verified(draft, accepted)
            sequence.truncate(first + accepted)
