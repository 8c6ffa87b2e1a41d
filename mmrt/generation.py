"""From logits to text: the loop that samples, decodes and knows when to stop."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from mmrt.errors import ArgumentError
from mmrt.sampler import Sampler
from mmrt.sequence import Progress
from mmrt.sequence import Sequence as TokenSequence
from mmrt.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from mmrt.model import Model

Finish = Literal["stop", "length"]


class Piece(NamedTuple):
    """A part of generated text.

    text: whole characters; may be empty while one is incomplete. token: its last token's id, None
    for text that was only held back. finish: None but in the last piece: "stop" after an
    end-of-text token or a stop string, "length" at max_tokens or the end of the context.
    """

    text: str
    token: int | None
    finish: Finish | None = None


class StopStrings:
    """Passes text on until one of `stops` appears, and holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ArgumentError for anything but a list or tuple of non-empty strings."""
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
            raise ArgumentError(f"stop: {stops!r:.60} is not a list of non-empty strings")
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that can be shown, whether a stop string has come)."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def _overlap(self, stop: str) -> int:
        """The length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def generate(
    model: "Model",
    sequence: TokenSequence,
    prompt: Sequence[int],
    max_tokens: int | None,
    sampler: Sampler,
    stops: StopStrings,
    on_prefill: Progress | None,
) -> Iterator[Piece]:
    """Reads `prompt` into `sequence` and yields pieces of what the model writes after it."""
    decoder = StreamDecoder(model.tokenizer)
    logits = sequence.extend(prompt, progress=on_prefill)
    room = model.context - len(sequence)
    left = room if max_tokens is None else min(max_tokens, room)
    while left > 0:
        token = sampler(logits, sequence.tokens)
        if token in model.tokenizer.stop_ids:
            yield Piece(stops.feed(decoder.finish())[0] + stops.finish(), token, "stop")
            return
        left -= 1
        text, stopped = stops.feed(decoder.feed(token))
        if stopped:
            yield Piece(text, token, "stop")
            return
        yield Piece(text, token)
        if left:
            logits = sequence.extend([token])
    text, stopped = stops.feed(decoder.finish())
    yield Piece(text + stops.finish(), None, "stop" if stopped else "length")
