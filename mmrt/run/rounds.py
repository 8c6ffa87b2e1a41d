"""Several texts whose steps depend on nothing but these texts: an engine in rounds."""

import weakref
from typing import Any

from mmrt.core.program import ALIKE_TOKENS, EXACT_TOKENS
from mmrt.errors import ArgumentError, MmrtError
from mmrt.run.drafts import Drafting
from mmrt.run.engine import Engine
from mmrt.run.handle import Handle
from mmrt.run.prefixes import Kept
from mmrt.run.snapshot import Snapshot
from mmrt.run.step import Chosen
from mmrt.run.writing import Serving, Writing
from mmrt.text.toolcalls import ToolParser

# More tokens than any step takes.
_ANY_NUMBER = 1 << 16


class Rounds(Engine):
    """An engine without a thread or a clock: whoever waits for a text has it go on.

    In a round each text reads what it has to: first all prompts, as many tokens in a step as there
    may be, then a token each. So a text is the same to the bit as often as it is written beside
    the same others, however long steps take, and whether or not prompts begin alike: where reading
    that once would round otherwise, each is read by itself. Where memory is short, texts that have
    given theirs up wait until others have ended. One thread at a time; a forked child may go on
    with it.
    """

    def __init__(self, model: Serving, *, keep: int | None = None, drafts: bool = False) -> None:
        """keep: as Engine's. drafts: whether texts have drafts, with which steps depend on others'
        guesses too."""
        self._drafts = drafts
        super().__init__(model, keep=keep, waiting=1 << 32)
        self._round: dict[Writing, int] = {}  # the length that each is to reach
        self._to_read = 0  # in the round, when it began
        self._shares = True
        self.is_sound = True  # False: what it knows was changed in part, and an interrupt came

    def _start(self) -> None:
        pass

    def _handle(self, prompt_tokens: int, parser: ToolParser | None) -> Handle:
        drive, cancel = weakref.WeakMethod(self.drive), weakref.WeakMethod(self._cancel)

        def go_on() -> None:
            if (method := drive()) is None:
                raise ArgumentError("the engine was closed")
            method()

        def end(handle: Handle) -> None:
            if (method := cancel()) is not None:
                method(handle)

        return Handle(prompt_tokens, end, parser, go_on)

    def _drafting(self) -> Drafting | None:
        return super()._drafting() if self._drafts else None

    def snapshot(self) -> Snapshot:
        """As of Engine; for the thread that has the texts go on."""
        return self._look()

    def drive(self) -> None:
        """Goes on, by a step at most."""
        with self._lock:
            while not self.has_work():  # all are on their way from the disk, or to it
                self._changed.wait()
        self.is_sound = False
        self.turn()
        self.is_sound = True

    def _run(self, chosen: Chosen, jobs: list[Writing]) -> None:
        self.is_sound = True  # a step that breaks off changes nothing
        try:
            super()._run(chosen, jobs)
        except MmrtError:
            self.is_sound = False
            raise

    def _ran(self, *given: Any, **options: Any) -> None:
        self.is_sound = False
        super()._ran(*given, **options)

    def close(self) -> None:
        """Ends all texts and gives their memory back."""
        error = ArgumentError("the engine was closed")
        if self.is_sound:
            self.shut(error)
            return
        for job in [*self._active.values(), *self._inbox]:
            job.handle.end(error)
        self._active.clear()
        self._inbox.clear()
        self.prefixes.abandon()
        self._mover.close()

    def _choose(self, jobs: list[Writing]) -> list[tuple[Writing, int]]:
        here = [job for job in jobs if job.cache is not None or not job.handle.parked] or jobs
        here.sort(key=lambda job: job.handle.number)
        left = {job: self._round[job] for job in here if job.length < self._round.get(job, 0)}
        self._round = left or {job: len(job.ids) for job in here}
        if not left:
            self._settle_sharing()
        most = self._model.step_tokens(_ANY_NUMBER)
        chosen: list[tuple[Writing, int]] = []
        readers: list[Writing] = []
        wanted = 0
        for job in self._round:
            if not job.writes and not self._begin(job, readers):
                continue
            if not job.writes:
                readers.append(job)
            chosen.append((job, job.to_read))
            wanted += job.to_read
            if wanted >= 2 * most:
                break
        if not left:
            self._to_read = self._left()
            self._tell(readers)
        at_once = EXACT_TOKENS if readers and self._shares and not self._model.exact else None
        return _fitting(chosen, self._model.step_tokens(wanted) if wanted else 0, at_once)

    def _settle_sharing(self) -> None:
        """Decides whether the prompts of the round are read once where they begin alike.

        Steps round otherwise that have fewer than 8 tokens, or that give logits of fewer than 8
        texts. So that these are the same with what is shared as without, it is not where some
        prompts are so short that that many end in one step.
        """
        lengths = [n for job, n in self._round.items() if not job.writes]
        if not lengths:
            return
        few = min(lengths) >= ALIKE_TOKENS and self._most_ends(lengths) <= EXACT_TOKENS
        self._shares = few or len(lengths) == 1 or self._model.exact
        if not self._shares:
            for job in self._round:
                job.salt, job.looks = f"{job.salt}/{job.handle.number}", False

    def _most_ends(self, lengths: list[int]) -> int:
        """How many texts of so many tokens end in one step at most, if nothing is shared."""
        ends = most = room = 0
        left = sum(lengths)
        for n in lengths:
            while n > 0:
                if not room:
                    room, ends = self._model.step_tokens(left), 0
                step = min(n, room)
                n, left, room = n - step, left - step, room - step
            ends += 1
            most = max(most, ends)
        return most

    def _save(self, job: Writing, ends: bool) -> None:
        if self._shares:
            super()._save(job, ends)

    def _give_back(self, ended: Kept) -> None:
        """All but what the next turn of a conversation goes on from."""
        self.prefixes.give_back(self._model.store.nbytes - self._keep, sparing=ended)

    def _left(self) -> int:
        return sum(max(end - job.length, 0) for job, end in self._round.items())

    def _report_progress(self, readers: list[Writing]) -> None:
        self._tell([job for job in readers if not job.answer.started])

    def _tell(self, readers: list[Writing]) -> None:
        """Reports the progress of all to the one who asked for it."""
        progress = next((job.progress for job in readers if job.progress is not None), None)
        if progress is not None:
            self.is_sound = True
            progress(max(self._to_read - self._left(), 0), self._to_read)
            self.is_sound = False


def _fitting(
    chosen: list[tuple[Writing, int]], room: int, ends: int | None
) -> list[tuple[Writing, int]]:
    """Of these, as many tokens as there is room for; ends: texts of which they may be all; None:
    any number."""
    fitting: list[tuple[Writing, int]] = []
    for job, n in chosen:
        if room <= 0 or (n <= room and len(fitting) == ends):
            break
        fitting.append((job, min(n, room) if job.writes else job.cut(min(n, room))))
        room -= n
    return fitting
