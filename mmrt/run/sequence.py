"""A text in progress: tokens, and the keys and values that a model has computed for them."""

from collections.abc import Callable, Generator, Iterable, Iterator
from collections.abc import Sequence as List
from contextlib import suppress
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import choice, function, require_ids, token_ids, whole
from mmrt.core.program import Part
from mmrt.core.state import Cache, Page
from mmrt.errors import ArgumentError, OutOfMemoryError
from mmrt.run.checkpoints import Stops, forget_all, set_if_due, set_one, spare
from mmrt.run.loan import Loan, Writer
from mmrt.run.prefixes import common
from mmrt.run.saved import Saved

T = TypeVar("T")

Progress = Callable[[int, int], object]  # (tokens done, tokens in all)


class Runner(Protocol):
    """What a sequence needs of its model: what runs its steps."""

    @property
    def vocab_size(self) -> int:
        """Logits a token."""

    def require_room(self, tokens: int) -> None:
        """Raises ArgumentError if a sequence cannot have so many tokens, or the model is closed."""

    def step_tokens(self, wanted: int) -> int:
        """How many of `wanted` tokens the next step takes."""

    def run(self, parts: List[Part], logits: NDArray[np.float32] | None = None) -> None:
        """One step of these parts: see Program.run()."""


class Sequence:
    """Tokens that a model has read, one text from its start; made by Model.sequence().

    Its memory grows by pages of 32 tokens. One thread at a time; a context manager. While a stream
    writes in it, all else that would change it raises InUseError: until the stream has ended, is
    closed or is dropped.
    """

    def __init__(self, model: Runner, cache: Cache, goes_back: bool = False) -> None:
        """goes_back: somebody may go back in it: if it needs checkpoints for that, it sets some."""
        self._model = model
        self.goes_back = goes_back and cache.store.is_recurrent
        self._cache = cache
        self._loan = Loan()

    def __len__(self) -> int:
        return self._cache.length

    def __repr__(self) -> str:
        return f"<Sequence of {len(self)} tokens, {self.nbytes} bytes>"

    @property
    def tokens(self) -> list[int]:
        """The tokens read, as a new list."""
        return self._cache.tokens.copy()

    @property
    def history(self) -> List[int]:
        """The tokens read, not copied: for reading alone, and until the next step."""
        return self._cache.tokens

    def lend(self, writer: Writer) -> Callable[[], object]:
        """Leaves this text to `writer` alone: see Loan.lend()."""
        return self._loan.lend(writer)

    def unlent(self) -> "Sequence":
        """The same text as its writer sees it, whoever has it."""
        return Sequence(self._model, self._cache, self.goes_back)

    def end_writer(self) -> None:
        """Closes the stream that writes in this text, if there is one."""
        self._loan.end_writer()

    def belongs_to(self, model: Runner) -> bool:
        """Whether `model` made it."""
        return self._model is model

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, alone or together with forks."""
        return self._cache.nbytes

    @property
    def shared_nbytes(self) -> int:
        """Of these, those that other sequences hold too: they are in memory once."""
        return self._cache.shared_nbytes

    def pages(self) -> list[Page]:
        """The pages of keys and values held, in order: each its number, the same in all texts that
        hold it, and how many do. Page i has the tokens from 32 * i on."""
        return self._cache.pages()

    def fork(self) -> "Sequence":
        """Another sequence of the same tokens; from here on the two go on apart.

        It takes no time and no memory for what was read: the keys and values are in memory once, as
        long as both need them. Where one of the two goes on, it copies the last page, of at most 32
        tokens. Forks may be forked, cut and closed in any order.

        Raises InUseError while another thread extends this one, ArgumentError for a closed model.
        """
        self._model.require_room(len(self))
        return Sequence(self._model, self._cache.fork(), self.goes_back)

    def extend(
        self,
        ids: Iterable[int],
        outputs: Literal["last", "all"] = "last",
        progress: Progress | None = None,
        stops: Stops | None = None,
    ) -> NDArray[np.float32]:
        """Reads more tokens; returns logits, float32: (vocabulary,) after the last of them, or with
        outputs="all" (len(ids), vocabulary), one row after each. stops: where it sets checkpoints,
        besides those at intervals.

        Raises ArgumentError for no tokens, ids outside the vocabulary, or more than the context
        holds, and then has read nothing. After an interruption it holds what was read until then.
        """
        choice("outputs", outputs, ("last", "all"))
        function("progress", progress)
        given = token_ids("ids", ids)
        tokens, vocabulary = self._checked(given), self._model.vocab_size
        wanted = len(given) if outputs == "all" else 1
        logits = _room((wanted, vocabulary))
        done = 0
        if progress is not None:
            progress(0, len(given))
        while done < len(given):
            n = self._model.step_tokens(len(given) - done)
            if stops is not None:
                n = stops.cut(len(self), n)
            part = tokens[done : done + n]
            first = done - (len(given) - wanted)  # row of its first token, if not below 0
            done += len(part)
            rows = logits[max(first, 0) : max(first + len(part), 0)]
            self._run(Part(self._cache, part, len(rows)), rows if len(rows) else None)
            if self.goes_back:
                self._set_checkpoint(stops, coming=min(n, len(given) - done) or 1)
            if progress is not None:
                progress(done, len(given))
        return logits if outputs == "all" else logits[0]

    def _run(self, part: Part, logits: NDArray[np.float32] | None) -> None:
        try:
            self._model.run([part], logits)
        except OutOfMemoryError:
            if not self.goes_back or not forget_all(self._cache):
                raise
            self._model.run([part], logits)

    def _set_checkpoint(self, stops: Stops | None, coming: int) -> None:
        """Where the text is now, if it is to be there; it can go on without."""
        with suppress(OutOfMemoryError):
            if stops is not None and len(self) in stops:
                set_one(self._cache)
            else:
                set_if_due(self._cache, coming)

    def extend_exactly(self, ids: list[int]) -> NDArray[np.float32]:
        """Reads a few tokens, mmrt.program.EXACT_TOKENS at most, in one step. Returns the logits
        after each, float32 (len(ids), vocabulary): to the bit those of steps of one token."""
        tokens = self._checked(ids)
        logits = _room((len(tokens), self._model.vocab_size))
        exact = len(tokens) > 1
        if self.goes_back:
            self._set_checkpoint(None, coming=len(tokens))
        self._model.run([Part(self._cache, tokens, len(tokens), exact=exact)], logits)
        return logits

    def _checked(self, given: list[int]) -> NDArray[np.int32]:
        self._loan.require_free()
        if not given:
            raise ArgumentError("there are no tokens to read: the text is empty")
        self._model.require_room(len(self) + len(given))
        require_ids(given, self._model.vocab_size)
        return np.array(given, np.int32)

    def truncate(self, length: int) -> int:
        """Forgets the tokens from `length` on and gives their memory back. Returns how many are
        left: `length`, or where the model keeps what cannot be undone, up to the last checkpoint
        before it, 0 if there is none."""
        self._loan.require_free()
        return self._cache.truncate(whole("length", length, 0, len(self)))

    def keep_prefix(self, ids: List[int]) -> int:
        """Forgets all but what it can spare a reader of `ids`: returns how many of them it holds.

        Of what they share the last few are read again, as a step of their own: the logits that
        follow are then the same, to the bit, as when all are read at once, if the others were read
        in steps as long, or the model is exact.
        """
        ids = token_ids("ids", ids)
        shared = min(common(self.history, ids), spare(ids))
        return self.truncate(shared if self._cache.is_whole else 0)

    def load(self, files: Saved, ids: List[int]) -> int:
        """Lengthens the text, which `ids` begin with, by what is saved of them but for the last
        few; returns how many it then has."""
        return files.attach(self._cache, ids, most=spare(ids))

    def save(self, files: Saved) -> None:
        """Has the text written as it is now."""
        files.save_later(self._cache)

    def close(self) -> None:
        """Gives its memory back; a stream that writes in it ends. It is then empty, and may begin
        again."""
        self.end_writer()
        self.truncate(0)

    def __enter__(self) -> "Sequence":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _room(shape: tuple[int, int]) -> NDArray[np.float32]:
    try:
        return np.empty(shape, np.float32)
    except MemoryError:
        raise OutOfMemoryError(f"no memory for logits of {shape[0]} tokens") from None


def closing(sequence: Sequence, pieces: Iterator[T]) -> Generator[T, None, None]:
    """The pieces; after them, or where they are let go of, the sequence is closed."""
    with sequence:
        yield from pieces
