"""Many texts at once on one model: an engine that reads, writes, shares and schedules them."""

import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as List
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mmrt.core.arguments import instance, number, text, whole
from mmrt.core.state import PAGE_TOKENS, SAVED_TOKENS, Cache
from mmrt.errors import ArgumentError, InUseError, MmrtError, OutOfMemoryError
from mmrt.run import outcome
from mmrt.run.cost import StepCost
from mmrt.run.drafts import Drafting
from mmrt.run.feedback import Feedback
from mmrt.run.generation import Answer, Options, Settings
from mmrt.run.handle import Handle, require_process
from mmrt.run.mover import Mover
from mmrt.run.phases import Phases
from mmrt.run.prefixes import Kept, Prefixes, common
from mmrt.run.sequence import Sequence
from mmrt.run.snapshot import Snapshot, answer_all, kept_text, taken
from mmrt.run.step import Chosen, Step, by_prompt, prompt_key, take_part
from mmrt.run.turns import work
from mmrt.run.window import Window
from mmrt.run.writing import Serving, Writing
from mmrt.text.channels import Channels
from mmrt.text.toolcalls import ToolParser

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Milliseconds between two changes of rank.
_INTERVAL = 1000

# What a text must have room for beyond what it has, to begin.
_HEADROOM = 8 * PAGE_TOKENS

# Intervals for which a text that came back is parked again only if there is no other.
_STAYS = 2

# Seconds that a step waits at most for memory that is being saved.
_PATIENCE = 0.05


class Engine:
    """Writes many texts at once, each as it would be written alone; a context manager.

    One thread runs the model's steps. Each step reads the weights once for all texts that take
    part: those that write take a token each, and the prompts of others are read beside them, as
    many tokens as `max_gap` seconds leave room for. Who takes part where not all can is decided by
    mmrt.run.feedback, by `priority` first. Prompts that begin alike are read once. Where keys and
    values have no room, texts that have ended go first; then the one that would run last gives its
    memory up: it is saved on the disk, or read again later, whichever is quicker. With the model's
    `kv_dir` all texts are saved as they grow, and found again by a later process.

    max_gap: seconds that a text which writes may have to wait for its next token; None: 0.25, or
    four readings of the weights if that is more. kv: bytes that keys and values may take in all;
    None: what the model's budget leaves. keep: texts that have ended stay in memory, for others
    that begin alike, while keys and values take no more bytes than this; None: a quarter of what is
    free beside the weights. waiting: texts that may be under way at once. sight: the path of a
    socket to make, at which `mmrt kv` sees the engine: see mmrt.run.window.
    """

    def __init__(
        self,
        model: Serving,
        *,
        max_gap: float | None = None,
        kv: int | None = None,
        keep: int | None = None,
        waiting: int = 1024,
        sight: str | os.PathLike[str] | None = None,
    ) -> None:
        self._model = model
        self._max_gap = None if max_gap is None else number("max_gap", max_gap, 0, 3600, above=True)
        self._kv = None if kv is None else whole("kv", kv, 1)
        self._keep = model.spare_bytes // 4 if keep is None else whole("keep", keep, 0)
        self._most_waiting = whole("waiting", waiting, 1)
        self.prefixes = Prefixes(model.store)
        self.cost = StepCost()
        self.steps = 0
        self.step_seconds = 0.0  # in the model's steps
        self.evaluated_tokens = 0
        self._feedback = Feedback(_INTERVAL, self._now())
        self._inbox: deque[Writing] = deque()
        self._active: dict[Handle, Writing] = {}
        self._cancelled: set[Handle] = set()
        # Entered as the lock itself, in C: see Handle.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._mover: Mover[Writing] = Mover(
            model.store, model.saved, weakref.WeakMethod(self._wake)
        )
        self._closing = False
        self._process = os.getpid()
        self._numbers = itertools.count(1)
        self._phases = Phases(time.monotonic())
        self._asked: list[Future[Snapshot]] = []
        self._window = None if sight is None else Window(sight, weakref.WeakMethod(self._seen))
        if self._window is not None:
            weakref.finalize(self, self._window.close)
        self._thread: threading.Thread | None = None
        self._start()

    def _start(self) -> None:
        known = weakref.ref(self), self._lock, self._changed
        self._thread = threading.Thread(target=work, args=known, name="mmrt-engine", daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> float:
        return time.monotonic() * 1000

    # ---- callers ----

    def submit(
        self,
        prompt: str | Iterable[int],
        *,
        priority: int = 0,
        salt: str = "",
        parse_special: bool = True,
        channels: Channels | None = None,
        **options: "Unpack[Options]",
    ) -> Handle:
        """Begins a text after `prompt` (text, or token ids) and returns at once.

        priority: texts of a lower number run first, whatever they have had; those of others take
        what time these leave of a step. salt: only texts of the
        same salt share what is in memory of their prompts. channels: what tells reasoning from the
        answer, of the text's own, as Model.chat_prompt() makes it; None: all is answer. options:
        see mmrt.Options.

        Raises ArgumentError as Model.stream() does, InUseError if too many texts are under way.
        """
        settings = Settings(**options)
        ids = self._model.prompt_ids(prompt, parse_special)
        return self.begin(ids, settings, channels, priority=priority, salt=salt)

    def submit_chat(
        self,
        messages: List[Mapping[str, Any]],
        *,
        tools: List[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        salt: str = "",
        **options: "Unpack[Options]",
    ) -> Handle:
        """Begins the answer to `messages`. These, `tools` and `chat_template_kwargs` are as for
        Model.stream_chat(), and so are the pieces; all else is as for submit()."""
        settings = Settings(**options)
        prompt = self._model.chat_prompt(
            messages, tools=tools, chat_template_kwargs=chat_template_kwargs
        )
        sorts = prompt.channels(), prompt.parser()
        return self.begin(prompt.ids, settings, *sorts, priority=priority, salt=salt)

    def begin(
        self,
        ids: list[int],
        settings: Settings,
        channels: Channels | None = None,
        parser: ToolParser | None = None,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> Handle:
        """submit() of tokens and settings that were checked; parser: of the calls in the text."""
        whole("priority", priority, -(2**31), 2**31)
        text("salt", salt)
        if channels is not None:
            instance("channels", channels, Channels, "those of a Model.chat_prompt()")
        self._model.require_room(len(ids))
        if self._thread is not None:
            require_process(self._process)
        handle = self._handle(len(ids), parser)
        sequence = Sequence(self._model, self._model.store.cache())
        known = self._model.tokenizer, self._model.context
        answer = Answer(*known, sequence, settings, channels, self._drafting())
        job = Writing(handle, answer, list(ids), salt, priority)
        job.progress = settings.on_prefill
        with self._lock:
            if self._closing:
                raise ArgumentError("the engine is closed")
            if len(self._active) + len(self._inbox) >= self._most_waiting:
                raise InUseError(f"{self._most_waiting} texts are under way already")
            handle.number = next(self._numbers)
            self._inbox.append(job)
            self._changed.notify_all()
        return handle

    def _handle(self, prompt_tokens: int, parser: ToolParser | None) -> Handle:
        return Handle(prompt_tokens, self._cancel, parser, thread=self._thread)

    def _drafting(self) -> Drafting | None:
        return self._model.drafts.begin(self._model.streaming)

    def snapshot(self) -> Snapshot:
        """What the engine holds and does now: who shares which pages, and what each text did so
        far. A step that goes on ends first. Raises ArgumentError if the engine is closed."""
        require_process(self._process)
        if threading.current_thread() is self._thread:
            return self._look()
        answer: Future[Snapshot] = Future()
        with self._lock:
            if self._closing:
                raise ArgumentError("the engine is closed")
            self._asked.append(answer)
            self._changed.notify_all()
        return answer.result()

    def _seen(self) -> str:
        return self.snapshot().to_json()

    def _cancel(self, handle: Handle) -> None:
        with self._lock:
            self._cancelled.add(handle)
        self._wake()

    def _wake(self) -> None:
        """Has the engine's thread look at what has come; from any thread."""
        with self._lock:
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all texts and gives their memory back; in a forked child, does nothing."""
        if os.getpid() != self._process:
            return
        if self._window is not None:
            self._window.close()
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine of {self._model!r}, {len(self._active)} texts>"

    # ---- the engine's thread ----

    def has_work(self) -> bool:
        """Whether there is something to do."""
        came = self._inbox or self._cancelled or self._asked or self._mover.is_waited_for
        can_run = any(job not in self._mover for job in self._active.values())
        return bool(self._closing or came or can_run)

    def turn(self) -> bool:
        """One step, if there is something to do; False: the engine is closed."""
        with self._lock:
            if self._closing:
                return False
            cancelled, self._cancelled = self._cancelled, set()
            asked, self._asked = self._asked, []
        self._receive()
        for handle in cancelled & self._active.keys():
            self._leave(self._active[handle], None)
        for moved in self._mover.come_back():
            self._go_on(*moved)
        self._feedback.advance(self._now())
        answer_all(asked, self._look)
        self._step()
        return True

    def _receive(self) -> list[Writing]:
        """Takes up the texts that have come."""
        with self._lock:
            came = list(self._inbox)
            self._inbox.clear()
            self._active.update((job.handle, job) for job in came)
        now = self._now()
        for job in came:
            self._feedback.join(job, now)
            self._phases.note([(job.handle.number, "waiting")], job.handle.submitted)
        return came

    def _look(self) -> Snapshot:
        doing = self._phases.doing
        texts = [job.state(doing(job.handle.number) or "waiting") for job in self._active.values()]
        texts += map(kept_text, self.prefixes.ended())
        known = os.path.basename(self._model.path), self._process, self._model.store
        return taken(*known, self._kv, self._mover.moved_bytes, texts, self._phases)

    def shut(self, error: BaseException) -> None:
        """Ends all texts with this error."""
        with self._lock:
            self._closing = True
            jobs = [*self._active.values(), *self._inbox]
            self._inbox.clear()
            asked, self._asked = self._asked, []
        for answer in asked:
            answer.set_exception(error)
        for job in jobs:
            self._leave(job, error)
        self.prefixes.clear()
        self._mover.close()

    def _leave(self, job: Writing, error: BaseException | None) -> None:
        """The text has ended; what was read of it stays for others."""
        self._feedback.leave(job)
        self._phases.end(job.handle.number, time.monotonic())
        with self._lock:
            self._active.pop(job.handle, None)
        if job.kept is not None:
            self._save(job, ends=True)
            self.prefixes.release(job.kept)
            self._give_back(job.kept)
        job.cache = job.kept = None
        job.handle.end(error)

    def _give_back(self, ended: Kept) -> None:
        self.prefixes.give_back(self._model.store.nbytes - self._keep)

    def _step(self) -> None:
        jobs = self._ready()
        chosen = self._choose(jobs)
        while chosen and not self._make_room(chosen, jobs):
            chosen.pop()
        taking_part = {job for job, _ in chosen}
        doing = ((job.handle.number, job.doing(job in taking_part)) for job in jobs)
        self._phases.note(doing, time.monotonic())
        if chosen:
            self._run_what_fits(chosen, jobs)
        else:
            self._rest(jobs)

    def _ready(self) -> list[Writing]:
        return [job for job in self._feedback.ready() if isinstance(job, Writing)]

    def _rest(self, jobs: list[Writing]) -> None:
        if self._mover.is_saving or len(self._mover):
            self._wait()
        elif jobs:  # not even one has room
            self._leave(jobs[0], jobs[0].no_room(self._kv))

    def _wait(self) -> None:
        """For a text that is on its way to the disk, or back."""
        with self._lock:
            if not self._mover.is_waited_for:
                self._changed.wait(_PATIENCE)

    def _run_what_fits(self, chosen: Chosen, jobs: list[Writing]) -> None:
        try:
            self._run(chosen, jobs)
        except MmrtError as error:
            self._fail(error, chosen, jobs)

    def _fail(self, error: MmrtError, chosen: Chosen, jobs: list[Writing]) -> None:
        """A step of these texts has failed."""
        if isinstance(error, OutOfMemoryError):
            if self.prefixes.make_room(1):
                return
            if self._mover.is_saving:  # which gives memory back when it is done
                self._wait()
                return
            if self._park_one(jobs, beside=jobs[0]):
                return
            if len(chosen) == 1:
                self._leave(chosen[0][0], error)
            else:
                self._run_what_fits(chosen[: len(chosen) // 2], jobs)
        elif not self._read_again([job for job, _ in chosen]):
            for job, _ in chosen:
                self._leave(job, error)

    def _choose(self, jobs: list[Writing]) -> Chosen:
        room = self._model.step_tokens(1 << 16)
        return take_part(jobs, self.cost, self._max_gap, room, self._begin)

    def _read_again(self, jobs: list[Writing]) -> bool:
        """Whether a step has failed because files of saved texts have lost pages: those texts are
        read anew, and the others go on."""
        lost = [job for job in jobs if job.cache is not None and not job.cache.is_whole]
        for job in lost:
            self._forget(job)
            job.looks = False
        if lost:
            self.prefixes.drop_damaged()
        return bool(lost)

    def _forget(self, job: Writing) -> None:
        """The text has nothing in memory any more."""
        if job.kept is not None:
            self.prefixes.drop(job.kept)
        job.forget()

    def _begin(self, job: Writing, earlier: list[Writing]) -> bool:
        """Gives a text that reads its prompt what is in memory of it. False: it is to wait, for
        another that is reading the same, or for room."""
        most = job.reusable
        if job.seen != self.prefixes.version:
            job.seen = self.prefixes.version
            if self.prefixes.shared(job.ids[:most], job.salt) > job.length:
                self._take(job, self.prefixes.take(job.ids, job.salt, most))
        if job.looks and self._has_room_to_load() and self._load(job, most):
            return False
        for other in earlier:
            if other.writes or other.cache is None or other.salt != job.salt:
                continue
            alike = common(other.ids, job.ids)
            is_twin = other.ids == job.ids  # which leaves nothing to be read: see _twins()
            until = alike if is_twin else other.can_be_taken_over(min(alike, most))
            worth_it = is_twin or until - job.length >= PAGE_TOKENS
            if worth_it and other.length < until:
                return False
        if job.cache is None:
            if not self._has_room_for(job, earlier):
                return False
            self._take(job, self._model.store.cache())
        return True

    def _take(self, job: Writing, cache: Cache) -> None:
        if job.kept is not None:
            self.prefixes.drop(job.kept)
        job.handle.begin(cache.length)
        job.begin(cache, self._model)
        job.kept = self.prefixes.follow(cache, job.salt)
        job.kept.number = job.handle.number
        job.stays_until = self._now() + _STAYS * _INTERVAL

    # ---- memory ----

    @property
    def _held_bytes(self) -> int:
        """Bytes that texts hold, or will when they are loaded."""
        return self._model.store.nbytes + self._mover.coming_bytes

    def _has_room_for(self, job: Writing, earlier: list[Writing]) -> bool:
        """Whether the text may begin: there is room for all of it and some more, or it would be
        the only one."""
        if self._kv is None or not earlier:
            return True
        store, pages = self._model.store, -(-(len(job.ids) + _HEADROOM) // PAGE_TOKENS)
        wanted = self._held_bytes + pages * store.page_bytes + 2 * store.block_bytes - self._kv
        return wanted <= 0 or self.prefixes.give_back(wanted) >= wanted

    def _has_room_to_load(self) -> bool:
        """Whether a text may come from the disk: its pages take no memory, but a state does."""
        state = 2 * self._model.store.block_bytes
        if self._kv is None or not state:
            return True
        wanted = self._held_bytes + state - self._kv
        return wanted <= 0 or self.prefixes.give_back(wanted) >= wanted

    def _make_room(self, chosen: Chosen, jobs: list[Writing]) -> bool:
        """Whether keys and values of the step have room, made by texts that have ended and, if
        need be, by those that would run last."""
        if self._kv is None:
            return True
        while True:
            grows = sum(job.cache.growth(job.length + n) for job, n in chosen if job.cache)
            short = self._held_bytes + grows - self._kv
            if short <= 0 or self.prefixes.make_room(short) >= short:
                return True
            if self._model.forget_earlier():
                continue
            if self._mover.is_saving:
                return False  # for now
            if not self._park_one(jobs, beside=chosen[-1][0]):
                return False
            if any(job.cache is None for job, _ in chosen):
                chosen[:] = [(job, n) for job, n in chosen if job.cache is not None]
                if not chosen:
                    return False

    def _park_one(self, jobs: list[Writing], beside: Writing) -> bool:
        """Has the text that would run last give its memory up, if it comes after `beside`."""
        after = jobs[max(jobs.index(beside), 1) :]
        held = [job for job in after if job.cache is not None and job.cache.nbytes]
        if not held:
            return False
        now = self._now()
        job = next((job for job in reversed(held) if job.stays_until <= now), held[-1])
        assert job.cache is not None
        if self._mover.park(job, job.cache, job.salt, self._reading_takes(job.length, 0)):
            self._feedback.block(job)
        self._forget(job)
        job.handle.parked += 1
        return True

    # ---- the disk ----

    def _reading_takes(self, n: int, length: int) -> float:
        """Seconds to read n tokens after so many others. Where weights come from the disk, others
        wait for them too."""
        weights = self.cost.weights if self._model.streaming is not None else 0.0
        return self.cost.predict([(n, length)]) - weights

    def _save(self, job: Writing, ends: bool) -> None:
        asked, found = self.prefixes.asked_tokens, self.prefixes.found_tokens
        chance = (found + SAVED_TOKENS) / (asked + 2 * SAVED_TOKENS)
        if job.cache is not None:
            known: dict[str, Any] = {"chance": chance, "takes": self._reading_takes}
            self._mover.keep(job.cache, job.salt, ends=ends, **known)

    def _load(self, job: Writing, most: int) -> bool:
        """Whether what is saved of the text is being loaded: until then it is not ready."""
        here = self.prefixes.shared(job.ids[:most], job.salt)
        on_disk = self._mover.length(job.ids[:most], job.salt)
        if on_disk < max(here, job.length) + PAGE_TOKENS:
            job.looks = False
            return False
        text = self.prefixes.take(job.ids, job.salt, here // SAVED_TOKENS * SAVED_TOKENS)
        takes = self._reading_takes if self.cost.steps else None
        if not self._mover.load(job, text, list(job.ids), job.salt, most, takes):
            return False
        job.looks = False
        self._feedback.block(job)
        return True

    def _go_on(self, job: Writing, text: Cache, loaded: bool) -> None:
        """The text was loaded, or saved."""
        if job.handle not in self._active:
            return
        self._feedback.join(job, self._now())
        if loaded and text.length > max(job.length, self.prefixes.shared(job.ids, job.salt)):
            self._take(job, text)

    def _run(self, chosen: Chosen, jobs: list[Writing]) -> None:
        room = None if self._kv is None else self._kv - self._held_bytes
        step = Step(chosen, self._model.vocab_size, room)
        started = time.perf_counter()
        self._model.run(step.parts, step.logits)
        self._ran(step, time.perf_counter() - started, jobs)

    def _ran(self, step: Step, seconds: float, jobs: list[Writing], is_timed: bool = True) -> None:
        """Goes on with the texts of a step. is_timed: whether others are to take as long."""
        chosen, costs, ends, logits = step.chosen, step.costs, step.ends, step.logits
        self.steps += 1
        self.step_seconds += seconds
        self.evaluated_tokens += sum(n for n, _ in costs)
        if step.all_write:
            self._model.drafts.record.time(step.n_drafted, seconds)
        if logits is not None and step.n_drafted:
            self._end(outcome.verify(ends, logits))
            logits = None
        for (job, n), share in zip(chosen, self.cost.shares(costs, seconds), strict=True):
            self._feedback.charge(job, 1000 * share)
            if job.kept is not None:
                self.prefixes.grow(job.kept)
                self.prefixes.version += job.set_checkpoint(n)  # others may go on from there
        if is_timed:
            self.cost.observe(costs, seconds)
        for (job, _), (_, start) in zip(chosen, costs, strict=True):
            if job.length // SAVED_TOKENS > start // SAVED_TOKENS:
                self._save(job, ends=False)
        readers = [job for job, _ in chosen if not job.writes]
        if logits is not None:
            of_row = list(range(len(ends)))
            if not all(job.writes for job in ends):
                jobs = [*jobs, *self._receive()]
            alike = by_prompt(jobs)
            for row, job in enumerate(ends[:]):
                twins = [] if job.writes else self._twins(job, alike)
                ends += twins
                readers += twins
                of_row += [row] * len(twins)
            logits = logits[of_row] if len(of_row) > len(logits) else logits
        self._report_progress(readers)
        if logits is not None:
            self._end(outcome.write(ends, logits, self._model.pool))

    def _twins(self, job: Writing, alike: dict[Any, list[Writing]]) -> list[Writing]:
        """Texts that wait with the very tokens that were just read: they go on from here too."""
        twins = []
        for other in alike.get(prompt_key(job), ()):
            if other.to_read and not other.writes and other.ids == job.ids:
                with suppress(OutOfMemoryError):  # it reads by itself, later
                    assert job.cache is not None
                    self._take(other, job.cache.fork())
                    twins.append(other)
        return twins

    def _report_progress(self, readers: list[Writing]) -> None:
        self._end(outcome.report_progress(readers))

    def _end(self, ended: outcome.Ended) -> None:
        for job, error in ended:
            self._leave(job, error)
