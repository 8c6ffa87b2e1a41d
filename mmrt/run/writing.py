"""A text that an engine has taken up, and what an engine needs of its model."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as List
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmrt.core.kernels import Pool
from mmrt.core.state import PAGE_TOKENS, Cache, StateStore
from mmrt.errors import OutOfMemoryError
from mmrt.memory.sizes import human
from mmrt.run.checkpoints import Stops, set_if_due, set_one, spare
from mmrt.run.drafting import Drafts
from mmrt.run.feedback import Job
from mmrt.run.generation import Answer, Piece, accept
from mmrt.run.handle import Handle
from mmrt.run.phases import Doing
from mmrt.run.prefixes import Kept
from mmrt.run.saved import Saved
from mmrt.run.sequence import Progress, Runner, Sequence
from mmrt.run.snapshot import TextState
from mmrt.text.chat import ChatPrompt


class Serving(Runner, Protocol):
    """What an engine needs of its model."""

    @property
    def path(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def context(self) -> int: ...

    @property
    def exact(self) -> bool: ...

    @property
    def pool(self) -> Pool: ...

    @property
    def spare_bytes(self) -> int: ...

    @property
    def store(self) -> StateStore: ...

    @property
    def saved(self) -> Saved | None: ...

    @property
    def streaming(self) -> Any: ...

    @property
    def drafts(self) -> Drafts: ...

    def forget_earlier(self) -> bool: ...

    def prompt_ids(self, prompt: str | Iterable[int], parse_special: bool) -> list[int]: ...

    def chat_prompt(
        self,
        messages: List[Mapping[str, Any]],
        *,
        tools: List[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> ChatPrompt: ...


class Writing(Job):
    """A text that the engine has taken up."""

    def __init__(
        self, handle: Handle, answer: Answer, ids: list[int], salt: str, priority: int
    ) -> None:
        super().__init__(priority)
        self.handle = handle
        self.answer = answer
        self.ids = ids  # of the prompt and what was written, read or not
        self.salt = salt
        self.progress: Progress | None = None
        self.cache: Cache | None = None  # None: it has not begun, or is parked
        self.kept: Kept | None = None
        self.stops: Stops | None = None  # of its prompt, where the model is recurrent
        self.writes = False  # its prompt was read: one token at a time
        self.seen = -1  # the tree's version when it last looked for more of its beginning
        self.stays_until = 0.0
        self.draft: list[int] = []  # that the next step verifies
        self.looks = True  # what is saved of it was not looked for yet

    @property
    def length(self) -> int:
        return 0 if self.cache is None else self.cache.length

    @property
    def to_read(self) -> int:
        return len(self.ids) - self.length

    @property
    def reusable(self) -> int:
        """How many of its tokens need not be read again: not the last few, unless it was parked as
        it wrote, and cannot be cut."""
        if self.stops is not None and self.handle.parked:
            return len(self.ids) - 1
        return spare(self.ids)

    def begin(self, cache: Cache, runner: Runner) -> None:
        """It goes on after what `cache` has of it."""
        self.cache = cache
        self.answer.sequence = Sequence(runner, cache, goes_back=True)
        self.stops = self.answer.stops(self.ids)

    def cut(self, n: int) -> int:
        """How many of n tokens the next step is to read: see Stops."""
        return n if self.stops is None else self.stops.cut(self.length, n)

    def can_be_taken_over(self, length: int) -> int:
        """Of its first `length` tokens, how many another text need not read, once they are read."""
        return length if self.stops is None else self.stops.reach(length)

    def set_checkpoint(self, read: int) -> bool:
        """Whether there is one where it is now, after a step that has read so many tokens."""
        if self.stops is None or self.cache is None:
            return False
        if self.writes or self.length not in self.stops:
            return set_if_due(self.cache, min(read, self.to_read) or 1)
        set_one(self.cache)
        return True

    def propose(self, most: int, beside: int) -> None:
        """Makes a draft of `most` tokens at most for the next step, which reads a token of it and
        tokens of so many other texts. It takes no page that the text does not need anyway."""
        self.draft = []
        if self.answer.drafting is not None:
            most = min(most, self.answer.left - 1, -(self.length + 1) % PAGE_TOKENS)
            self.draft = self.answer.drafting.propose(self.ids, (), most, beside)

    def accept(self, rows: NDArray[np.float32], pieces: list[Piece]) -> int | None:
        """Draws tokens after the last one that was written and those of the draft, which were read,
        and forgets those of the draft that are others. Appends to `pieces` what comes of them.
        Returns the token to read next, which is in `ids` then; None: it ends."""
        draft, self.draft = self.draft, []
        accepting = accept(self.answer, rows, draft)
        while True:
            try:
                pieces.append(next(accepting))
            except StopIteration as end:
                following: int | None = end.value
                break
        self.ids += draft[: self.length - len(self.ids)]
        if following is not None:
            self.ids.append(following)
        return following

    def no_room(self, kv: int | None) -> OutOfMemoryError:
        """The error where it has no room even alone."""
        room = "the budget" if kv is None else f"kv={human(kv)}"
        return OutOfMemoryError(f"a text of {len(self.ids)} tokens has no room in {room}")

    def forget(self) -> None:
        """It has nothing in memory any more."""
        self.cache = self.kept = None
        self.writes = False
        self.looks = True
        self.seen = -1

    def state(self, doing: Doing) -> TextState:
        """How it looks to others."""
        cache = self.cache
        return TextState(
            number=self.handle.number,
            doing=doing,
            priority=self.rank_class,
            p=self.p,
            prompt_tokens=self.handle.prompt_tokens,
            tokens=self.length,
            pages=[] if cache is None else cache.pages(),
            checkpoints=[] if cache is None else cache.checkpoints,
        )

    def doing(self, takes_part: bool) -> Doing:
        """What it does in a step."""
        if takes_part:
            return "writing" if self.writes else "reading"
        return "parked" if self.cache is None and self.handle.parked else "waiting"
