"""What a model holds in memory, as it states it itself."""

from dataclasses import dataclass

from mmrt.core.streaming import Streaming
from mmrt.memory.sizes import human


@dataclass(frozen=True)
class Memory:
    """All in bytes.

    weights: of the tensors that the model reads, on mapped pages of the file: page cache, which the
    system shares between processes and takes back when it must. kv, scratch: anonymous memory of
    this process: the keys and values of its sequences, and what a step needs.

    kept: of the weights, those that may stay in memory. Where a budget does not hold all of them,
    `streamed` ones are read again for each step, through a ring of buffers; `streaming` says how,
    and what that has cost (see mmrt.streaming). Of an embedding table that no step multiplies by,
    single rows are read. Experts are read when they are chosen, into slots that hold `cache` bytes.
    cgroup_peak: the most that was ever charged to the cgroup around this
    process. draft: what a smaller model that guesses tokens takes, weights and all, within the same
    budget.
    """

    weights: int
    kept: int
    kv: int
    kv_logical: int  # what the sequences would hold if none shared any
    kv_page: int  # by which each sequence grows, every 32 tokens
    scratch: int
    streaming: Streaming | None = None  # None: all weights may stay
    budget: int | None = None  # as stated; None: what there is
    cgroup_peak: int | None = None  # None: the kernel does not say
    predictor: str | None = None  # the file that says which neurons count, which is lossy
    draft: int = 0

    @property
    def streamed(self) -> int:
        """Of the weights: those that each step reads again."""
        return self.streaming.streamed if self.streaming else 0

    @property
    def ring(self) -> int:
        return self.streaming.ring if self.streaming else 0

    @property
    def cache(self) -> int:
        """Of slots for experts, and of what others of them pass through."""
        return self.streaming.cache if self.streaming else 0

    @property
    def columns(self) -> int:
        """Of slots for columns of a bundle."""
        return self.streaming.column_slots if self.streaming else 0

    @property
    def anonymous(self) -> int:
        return self.kv + self.scratch + self.ring + self.cache + self.columns

    def __str__(self) -> str:
        weights = f"weights {human(self.weights)} mapped"
        if self.streaming and self.streamed:
            weights += (
                f", {self.kept / self.weights:.0%} kept, {human(self.streamed)} streamed through "
                f"{human(self.ring)} ({self.streaming.reader})"
            )
        if self.streaming and self.cache:
            experts = self.streaming.experts
            weights += f", experts on demand in {experts.slots} slots, {human(self.cache)}"
            if experts.wanted:
                weights += f", of which {experts.hit_rate:.1%} were found"
        if self.streaming and self.columns:
            weights += f", columns on demand in {human(self.columns)}"
            if self.streaming.columns.wanted:
                weights += f", of which {self.streaming.columns.hit_rate:.1%} were found"
        if self.streaming and self.streaming.locked:
            weights += f", {human(self.streaming.locked)} locked"
        sharing = f" ({human(self.kv_logical)} without sharing)" * (self.kv_logical > self.kv)
        draft = f"; draft model {human(self.draft)}" if self.draft else ""
        budget = f"; budget {human(self.budget)}" if self.budget else ""
        lossy = f"; lossy: neurons by {self.predictor}" if self.predictor else ""
        return (
            f"{weights}; keys and values {human(self.kv)}{sharing}, "
            f"{human(self.kv_page)} for 32 tokens; scratch {human(self.scratch)}{draft}{budget}"
            f"{lossy}"
        )
