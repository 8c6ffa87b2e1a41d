"""Numbers of bytes as people write them."""

import re

from mmrt.errors import ArgumentError

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def human(n_bytes: int) -> str:
    """1610612736 -> "1.50 GiB"."""
    for factor, unit in _UNITS:
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes} bytes"


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes: "1.5GiB", "1.5 G", "1536MB", "1610612736"; units are powers of 1024 however spelled.

    Raises ArgumentError for other text and for 0.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ArgumentError(f"{text!r} is not a size; write, for example, 2GiB")
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    n_bytes = int(float(match[1]) * 1024**power) if "." in match[1] else int(match[1]) << 10 * power
    if not 0 < n_bytes < 1 << 63:
        raise ArgumentError(f"{text!r} is not from 1 byte to 8 EiB")
    return n_bytes
