"""Whether saved keys and values are worth their bytes: the disk's time against the processor's."""

import threading

# Bytes a second that a disk is taken for until it was used.
_RATE_AT_FIRST = 1e9

# The share of the newest measurement in a rate.
_NEWEST = 0.3

# Seconds that a file takes beside its bytes.
_LATENCY = 1e-3

# A disk that was found slow is tried again after so many texts.
_TRIED_AGAIN = 16


class _Rate:
    """Bytes a second, as last seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = _RATE_AT_FIRST

    def observe(self, n_bytes: int, seconds: float) -> None:
        with self._lock:
            now = n_bytes / max(seconds, 1e-6)
            self.value = 1 / ((1 - _NEWEST) / self.value + _NEWEST / now)


class Worth:
    """What saving costs, E_swap, and what reading a text anew costs, E_drop, in seconds:

        E_swap = b / w + p * (t + b / r)        E_drop = p * T

    for b bytes, written at w and read at r bytes a second, with t for each file, of a text that
    comes back with the chance p and takes T to be read anew. Rates are those that were measured.
    """

    def __init__(self) -> None:
        self._read, self._written = _Rate(), _Rate()
        self._refused = 0

    def have_read(self, n_bytes: int, seconds: float) -> None:
        self._read.observe(n_bytes, seconds)

    def have_written(self, n_bytes: int, seconds: float) -> None:
        self._written.observe(n_bytes, seconds)

    def saving(self, n_bytes: int, seconds: float, chance: float) -> bool:
        """Whether to write so many bytes of a text that takes `seconds` to be read anew."""
        swapped = n_bytes / self._written.value + chance * self._loading_takes(n_bytes)
        return self._unless_refused(swapped < chance * seconds)

    def loading(self, n_bytes: int, seconds: float | None) -> bool:
        """Whether to read them back, where they are written; None: in any case."""
        return seconds is None or self._unless_refused(self._loading_takes(n_bytes) < seconds)

    def _loading_takes(self, n_bytes: int) -> float:
        return _LATENCY + n_bytes / self._read.value

    def _unless_refused(self, worth: bool) -> bool:
        """The answer; now and then yes to what would be no, as a disk may be faster again."""
        if worth:
            return True
        self._refused += 1
        return self._refused % _TRIED_AGAIN == 0
