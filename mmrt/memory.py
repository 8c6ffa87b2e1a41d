"""What a model holds in memory, as it states it itself."""

from dataclasses import dataclass

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def human(n_bytes: int) -> str:
    """1610612736 -> "1.50 GiB"."""
    for factor, unit in _UNITS:
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes} bytes"


@dataclass(frozen=True)
class Memory:
    """All in bytes.

    weights: of the tensors that the model reads, on mapped pages of the file: page cache, which the
    system shares between processes and takes back when it must. kv, scratch: anonymous memory of
    this process: the keys and values of its sequences, and what a step needs.
    """

    weights: int
    kv: int
    kv_page: int  # by which each sequence grows, every 32 tokens
    scratch: int

    @property
    def anonymous(self) -> int:
        return self.kv + self.scratch

    def __str__(self) -> str:
        return (
            f"weights {human(self.weights)} mapped; keys and values {human(self.kv)}, "
            f"{human(self.kv_page)} for 32 tokens; scratch {human(self.scratch)}"
        )
