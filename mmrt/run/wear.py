"""How much may be written to a disk in a day: it wears with what is written."""

# What a day's writes may be: all of the room so many times. More would only be pushed out again by
# the next.
_FILLS = 4

# Room that counts in any case: what texts need that give their memory up.
_LEAST = 4 << 30

_DAY = 86400.0


class Wear:
    """Bytes that may be written, saved up to those of a day. room: what files may take. now:
    seconds, of any clock that goes on steadily."""

    def __init__(self, room: int, now: float) -> None:
        self.a_day = _FILLS * max(room, _LEAST)
        self._left = float(self.a_day)
        self._seen = now

    def allows(self, n_bytes: int, now: float) -> bool:
        """Whether so many may be written now; they count as written then."""
        grown = self._left + (now - self._seen) * self.a_day / _DAY
        self._left, self._seen = min(grown, float(self.a_day)), now
        if n_bytes > self._left:
            return False
        self._left -= n_bytes
        return True
