"""An engine whose model works on several steps at once, each stage on another."""

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as List
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmrt.core.program import Part
from mmrt.errors import MmrtError, OutOfMemoryError
from mmrt.run.engine import Engine
from mmrt.run.step import Chosen, Step
from mmrt.run.writing import Serving, Writing


class Pipeline(Serving, Protocol):
    """What it needs of its model beside what any engine does."""

    @property
    def depth(self) -> int:
        """Steps that keep all stages at work."""

    def begin(self, parts: List[Part], logits: NDArray[np.float32]) -> Callable[[], None]:
        """Begins a step, beside those that are under way, of other texts. What is returned waits
        until it has ended, and raises what it has failed with."""


class _UnderWay(NamedTuple):
    step: Step
    end: Callable[[], None]
    begun: float


class Pipelined(Engine):
    """Has as many steps under way as keep all stages at work, of different texts: while one stage
    works on a text, the one before it works on another. So that there is something for each step,
    each has an equal part of the texts that write. Steps that no logits are wanted of follow one
    another without waiting.

    A text that is in a step under way stays as it is until this has ended: then only may it end,
    or give its memory up.
    """

    def __init__(self, model: Pipeline, **options: Any) -> None:
        """options: Engine's."""
        self._pipeline = model
        self._under_way: deque[_UnderWay] = deque()
        self._taken: set[Writing] = set()  # texts in these
        self._leaving: dict[Writing, BaseException | None] = {}  # of them
        super().__init__(model, **options)

    def _ready(self) -> list[Writing]:
        return [job for job in super()._ready() if job not in self._taken]

    def _step(self) -> None:
        began = True
        while began and len(self._under_way) < self._pipeline.depth:
            before = len(self._under_way)
            super()._step()
            began = len(self._under_way) > before
        if self._under_way:
            self._end_one()

    def _rest(self, jobs: list[Writing]) -> None:
        if not self._under_way:
            super()._rest(jobs)

    def _choose(self, jobs: list[Writing]) -> Chosen:
        left = -(-sum(job.writes for job in super()._ready()) // self._pipeline.depth)
        few = []
        for job in jobs:
            left -= job.writes
            if left >= 0 or not job.writes:
                few.append(job)
        return super()._choose(few)

    def _begin(self, job: Writing, earlier: list[Writing]) -> bool:
        reading = [other for other in self._taken if not other.writes]
        return super()._begin(job, [*reading, *earlier])

    def _run(self, chosen: Chosen, jobs: list[Writing]) -> None:
        step = Step(chosen, self._model.vocab_size)
        if step.logits is None:
            self._model.run(step.parts)
            self._ran(step, self.cost.predict(step.costs), jobs, is_timed=False)
            return
        end = self._pipeline.begin(step.parts, step.logits)
        self._under_way.append(_UnderWay(step, end, time.perf_counter()))
        self._taken.update(job for job, _ in chosen)

    def _end_one(self) -> None:
        """Goes on with the texts of the step that began first."""
        step, end, begun = self._under_way.popleft()
        try:
            end()
        except MmrtError as error:
            self._taken.difference_update(job for job, _ in step.chosen)
            self._fail(error, step.chosen, self._ready())
        else:
            self._taken.difference_update(job for job, _ in step.chosen)
            self._ran(step, time.perf_counter() - begun, self._ready())
        for job in [job for job in self._leaving if job not in self._taken]:
            reason = self._leaving.pop(job)
            if job.handle in self._active:
                super()._leave(job, reason)

    def _fail(self, error: MmrtError, chosen: Chosen, jobs: list[Writing]) -> None:
        """Where a stage has no room, steps under way end first, as their texts may have to give
        their memory up; the last of them that fails sees to that."""
        if self._under_way and isinstance(error, OutOfMemoryError):
            while self._under_way:
                self._end_one()
        else:
            super()._fail(error, chosen, jobs)

    def _leave(self, job: Writing, error: BaseException | None) -> None:
        if job in self._taken:
            self._leaving[job] = error
        else:
            super()._leave(job, error)

    def shut(self, error: BaseException) -> None:
        self._under_way.clear()
        self._taken.clear()
        super().shut(error)
