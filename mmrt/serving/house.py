"""The models that a server has, and the texts that they write for its clients."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

from mmrt.errors import InUseError, UnsupportedError
from mmrt.run.engine import Engine
from mmrt.run.generation import Piece
from mmrt.run.handle import Handle
from mmrt.run.text_model import TextModel
from mmrt.serving.bells import Bells
from mmrt.serving.problems import Refused, busy, too_long
from mmrt.serving.record import Record
from mmrt.text.channels import Channels
from mmrt.text.constraint import vocabulary
from mmrt.text.tokenizer import Tokenizer

Result = TypeVar("Result")

# How much of the mean time between two ends the newest has.
_NEWEST = 0.2

_MOST_RETRY_SECONDS = 60

# Options for which a text's beginning takes long: what it has to be is compiled.
_HELD = {"json_schema", "json_object", "grammar"}


class Served:
    """A model under a name. defaults: of sampling, where a request says nothing. queue: texts that
    may be under way at once. variables: of its chat template."""

    def __init__(
        self,
        name: str,
        model: TextModel,
        engine: Engine,
        defaults: Mapping[str, Any],
        queue: int,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        self.defaults = dict(defaults)
        self.variables = dict(variables or {})
        self.created = int(time.time())
        tokenizer = model.tokenizer
        self._longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
        self._queue = queue
        self.under_way = 0
        self.live: set[Handle] = set()  # texts that are under way
        self.record = Record()
        self._last_end: float | None = None
        self._between_ends = 1.0  # seconds, a moving mean

    def reserve(self, n: int) -> None:
        """Takes room for n texts. Raises Refused where there is none: a 429 that says when there
        may be."""
        if self.under_way + n > self._queue:
            self.record.refused += 1
            raise busy(min(max(round(self._between_ends), 1), _MOST_RETRY_SECONDS))
        self.under_way += n

    def free(self, n: int) -> None:
        """Gives it back."""
        self.under_way -= n
        now = time.monotonic()
        if self._last_end is not None:
            seconds = now - self._last_end
            self._between_ends += _NEWEST * (seconds - self._between_ends)
        self._last_end = now if self.under_way else None

    def require_room(self, n_prompt: int) -> None:
        """Raises Refused for a prompt that leaves no room for an answer."""
        if n_prompt >= self.model.context:
            raise too_long(n_prompt, self.model.context)

    def require_room_for(self, n_bytes: int) -> None:
        """Raises Refused for a text that is too long whatever its tokens are, before it costs
        anything."""
        least = n_bytes // self._longest
        if least > self.model.context:
            raise too_long(least, self.model.context, "at least ")


class House:
    """All of them, the first one for requests that name none."""

    def __init__(self) -> None:
        self.models: dict[str, Served] = {}
        self.is_ready = False
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="mmrt-texts")
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="mmrt-scores")

    @cached_property
    def bells(self) -> Bells:
        """Of the server's loop."""
        return Bells()

    def add(self, served: Served) -> None:
        self.models[served.name] = served

    def get(self, name: str | None) -> Served:
        """Raises Refused where there is no such model."""
        if not self.is_ready:
            raise Refused(
                503, "the model is being loaded", code="loading", type="unavailable_error"
            )
        if not name:
            return next(iter(self.models.values()))
        try:
            return self.models[name]
        except KeyError:
            names = ", ".join(self.models)
            raise Refused(
                404,
                f"there is no model {name!r:.80}; there are {names}",
                param="model",
                code="model_not_found",
            ) from None

    async def apart(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls what takes long, such as rendering and tokenising, in a thread of its own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, function, *arguments)

    async def score(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Likewise, for what takes very long."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._scorer, function, *arguments)

    def prepare(self) -> None:
        """Begins what the first answer by a schema would wait for."""
        for served in self.models.values():
            self._workers.submit(_prepare, served.model.tokenizer)

    def close(self) -> None:
        """Ends all texts, and closes the models."""
        for workers in (self._workers, self._scorer):
            workers.shutdown(wait=True, cancel_futures=True)
        for served in self.models.values():
            served.engine.close()
            served.model.close()


def _prepare(tokenizer: Tokenizer) -> None:
    with contextlib.suppress(UnsupportedError):  # that answer will say so
        vocabulary(tokenizer)


class Wanted(NamedTuple):
    """A text that is to be written. options: of Engine.submit(). channels: of its own."""

    ids: Sequence[int]
    options: Mapping[str, Any]
    channels: Channels | None = None


class Told(NamedTuple):
    """A piece of the text `choice`."""

    choice: int
    piece: Piece


class Texts:
    """Texts that a request has asked for, as they are written: an asynchronous iterator. Closing it
    ends them."""

    def __init__(self, bells: Bells, served: Served, handles: Sequence[Handle], n: int) -> None:
        """n: texts after each prompt. They are in room that was reserved, which is given back when
        this is closed."""
        self.served = served
        self.handles = handles
        self._n = n
        self._bells = bells
        self._closed = False
        self._failed: set[Handle] = set()
        served.live.update(handles)

    @classmethod
    async def begin(
        cls,
        house: House,
        served: Served,
        wanted: Sequence[Wanted],
        n: int,
        priority: int,
        salt: str,
    ) -> "Texts":
        """The texts that are wanted, n after each prompt. Raises Refused."""
        served.reserve(len(wanted))
        handles: list[Handle] = []
        given_up = threading.Event()

        def submit() -> None:
            for ids, options, channels in wanted:
                handle = served.engine.submit(
                    ids, priority=priority, salt=salt, channels=channels, **options
                )
                handles.append(handle)
                if given_up.is_set():
                    return cancel()

        def cancel() -> None:
            for handle in handles:
                handle.cancel()

        try:
            if any(_HELD & wish.options.keys() for wish in wanted):
                await house.apart(submit)
            else:
                submit()
        except BaseException as error:
            given_up.set()
            cancel()
            served.free(len(wanted))
            if isinstance(error, InUseError):
                raise busy(1) from None
            raise
        return cls(house.bells, served, handles, n)

    async def __aiter__(self) -> AsyncIterator[Told]:
        came = asyncio.Event()
        wake = partial(self._bells.ring, came)
        last: dict[int, float] = {}  # when each text had its last token
        going_on = dict(enumerate(self.handles))
        while going_on:
            for index, handle in list(going_on.items()):
                while pieces := self._take(handle, wake):
                    self._note(index, pieces, last)
                    for piece in pieces:
                        yield Told(index, piece)
                if pieces is None:
                    del going_on[index]
            if going_on:
                await came.wait()
                came.clear()

    def _take(self, handle: Handle, wake: Callable[[], object]) -> list[Piece] | None:
        try:
            return handle.take(wake)
        except Exception:
            self._failed.add(handle)
            raise

    def _note(self, index: int, pieces: Sequence[Piece], last: dict[int, float]) -> None:
        """Notes how long a text's tokens took since the one before."""
        now = time.monotonic()
        for piece in pieces:
            if piece.token is not None:
                if index in last:
                    self.served.record.between_tokens.observe(now - last[index])
                last[index] = now

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for handle in self.handles:
            if handle.finish is None:
                handle.cancel()
            self.served.live.discard(handle)
            self.served.record.end(handle, handle in self._failed)
        self.served.free(len(self.handles))

    # ---- what they took ----

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(handle.prompt_tokens for handle in self.handles[:: self._n])

    @property
    def cached_tokens(self) -> int:
        """Of these, those that were in memory before the request: texts after the same prompt share
        what the first of them reads."""
        cached = [handle.cached_tokens for handle in self.handles]
        return sum(min(cached[i : i + self._n]) for i in range(0, len(cached), self._n))

    @property
    def tokens(self) -> int:
        """Written in all."""
        return sum(handle.tokens for handle in self.handles)
