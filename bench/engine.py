"""What a runtime does to be compared."""

from typing import Protocol

# Token ids that every vocabulary has; what they say does not matter to the time they take.
FIRST_TOKEN, N_TOKENS = 100, 1000


def tokens(n: int) -> list[int]:
    return [FIRST_TOKEN + i * 7 % N_TOKENS for i in range(n)]


class Engine(Protocol):
    version: str

    def prefill(self, n: int) -> float:
        """Seconds to read n tokens as one text."""

    def decode(self, n: int, depth: int = 1) -> float:
        """Seconds to read n tokens one by one after `depth` others; or, where more of them
        have been read already, after these."""
