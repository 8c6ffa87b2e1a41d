"""What is kept of a model's weights, what is read again for each token, and what that has cost."""

from dataclasses import dataclass, replace

READERS = {
    "uring": "O_DIRECT reads into a ring of buffers, by io_uring",
    "threads": "the same by threads that wait for their reads",
    "mapped": "pages of the mapped file, populated ahead of use and dropped behind",
}


@dataclass(frozen=True)
class Plan:
    """What a budget for weights does; in bytes."""

    total: int
    """Of the matrices that every step reads."""

    kept: int
    """Of these, on mapped pages that stay in memory."""

    ring: int
    """Of the buffers that the others pass through; 0 if all are kept."""

    request: int
    """The most that is read at once, experts apart."""

    experts: int
    """Of the matrices of experts, of which a step reads those that its tokens have chosen."""

    chosen: int
    """Of these, by one token."""

    n_experts: int
    """Of all layers."""

    cache: int
    """Of the slots for experts, and of the buffers that others of them pass through; 0 if all
    experts are kept."""

    slots: int
    """Experts that there are slots for."""

    rest: int
    """Always kept in addition: norms and biases."""

    least: int
    """The smallest budget."""

    most: int
    """The budget that keeps everything."""

    kept_by_tensor: dict[str, int]
    """Of each tensor that the program reads."""

    columns: int = 0
    """Of the slots for columns that a bundle has, which are read on demand; 0: none are."""

    @property
    def streamed(self) -> int:
        """What each step reads from the disk, experts apart."""
        return self.total - self.kept

    @property
    def missed(self) -> float:
        """What a token reads of experts if it finds as many of them as there are slots for: if it
        chooses all alike. Texts do not, and find more."""
        return self.chosen * (1 - self.slots / self.n_experts) if self.cache else 0.0


@dataclass(frozen=True)
class Demand:
    """What has become of the experts that steps have chosen, while a budget does not keep all."""

    wanted: int
    """Experts that steps have chosen, by steps and layers."""

    found: int
    """Of these, those in memory, or on their way there."""

    read_units: int
    """Matrices that were read."""

    read: int
    """Bytes of these."""

    stall_seconds: float
    """For which a thread waited for them."""

    slots: int
    """Experts that there are slots for; a layer shares them with others whose experts are as
    large."""

    slot_bytes: int
    """Of a slot; where there are several sizes, of the largest."""

    @property
    def hit_rate(self) -> float:
        """The part of the wanted experts that was found; 1 if none was wanted."""
        return self.found / self.wanted if self.wanted else 1.0

    def __sub__(self, earlier: "Demand") -> "Demand":
        """What has been done since `earlier`."""
        return replace(
            self,
            wanted=self.wanted - earlier.wanted,
            found=self.found - earlier.found,
            read_units=self.read_units - earlier.read_units,
            read=self.read - earlier.read,
            stall_seconds=self.stall_seconds - earlier.stall_seconds,
        )


@dataclass(frozen=True)
class Streaming:
    """What streaming is set to, and what it has done so far."""

    reader: str
    """One of READERS."""

    kept: int
    """Bytes of matrices on mapped pages that stay in memory."""

    locked: int
    """Of these, bytes locked in memory so far."""

    streamed: int
    """Bytes of matrices that each step reads, experts apart."""

    ring: int
    """Bytes of buffers that these pass through."""

    steps: int

    read: int
    """Bytes of streamed weights, experts among them, read for all steps and ahead of the next."""

    loaded: int
    """Bytes of kept weights, brought onto their pages."""

    stall_seconds: float
    """For which a thread waited for weights."""

    busy_seconds: float
    """For which streamed weights were being read."""

    cache: int = 0
    """Bytes of slots for experts, and of buffers that others of them pass through."""

    experts: Demand = Demand(0, 0, 0, 0, 0.0, 0, 0)

    columns: Demand = Demand(0, 0, 0, 0, 0.0, 0, 0)
    """Columns that steps of one token have needed, of a bundle."""

    @property
    def column_slots(self) -> int:
        """Bytes of the slots for columns."""
        return self.columns.slots * self.columns.slot_bytes

    @property
    def overlap(self) -> float:
        """The part of the time of reading in which no thread waited for it."""
        return 1 - min(self.stall_seconds / self.busy_seconds, 1) if self.busy_seconds else 1.0

    @property
    def read_per_step(self) -> float:
        """Bytes."""
        return self.read / self.steps if self.steps else 0.0

    def __sub__(self, earlier: "Streaming") -> "Streaming":
        """What has been done since `earlier`; what it is set to, as it is now."""
        return replace(
            self,
            steps=self.steps - earlier.steps,
            read=self.read - earlier.read,
            loaded=self.loaded - earlier.loaded,
            stall_seconds=self.stall_seconds - earlier.stall_seconds,
            busy_seconds=self.busy_seconds - earlier.busy_seconds,
            experts=self.experts - earlier.experts,
            columns=self.columns - earlier.columns,
        )
