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
from mmrt.run.drafting import Drafts
from mmrt.run.feedback import Job
from mmrt.run.generation import Answer, Piece, accept
from mmrt.run.handle import Handle
from mmrt.run.phases import Doing
from mmrt.run.prefixes import Kept, spare
from mmrt.run.saved import Saved
from mmrt.run.sequence import Progress, Runner
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
    def to_read_at_once(self) -> int:
        """Of these, as many as a step may read: where texts cannot be cut, one ends before the
        last few tokens of a prompt, so that what is kept from there serves the next turn."""
        assert self.cache is not None
        left = spare(self.ids) - self.length
        return left if self.cache.store.is_recurrent and left > 0 else self.to_read

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it is where texts with the same beginning can go on: see to_read_at_once."""
        recurrent = self.cache is not None and self.cache.store.is_recurrent
        return recurrent and not self.writes and 0 < self.length == spare(self.ids)

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
        pages = [] if self.cache is None else self.cache.pages()
        n_prompt = self.handle.prompt_tokens
        number = self.handle.number
        return TextState(number, doing, self.rank_class, self.p, n_prompt, self.length, pages)

    def doing(self, takes_part: bool) -> Doing:
        """What it does in a step."""
        if takes_part:
            return "writing" if self.writes else "reading"
        return "parked" if self.cache is None and self.handle.parked else "waiting"
