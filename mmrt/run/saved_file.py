"""A file of saved keys and values: its name, its header, what is in it, and of which model."""

import contextlib
import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mmrt.core.state import SAVED_TOKENS, StateStore
from mmrt.errors import FileError, FormatError
from mmrt.run.prefixes import Ids

# Changes whenever what a file holds means something else.
_MAGIC = b"mmrt kv 1\n"

# The magic, the fingerprint, the names of the file before and of itself, the number of tokens, the
# checksum of their pages; then the tokens, int32, and the checksum of the header so far.
_FIELDS = struct.Struct("<16s16s16s16sIQ")
_IDS = struct.Struct(f"<{SAVED_TOKENS}i")
HEADER = max(4096, os.sysconf("SC_PAGESIZE"))

# Not to wait for who may never come, as at a FIFO.
OPENING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


# Bytes that tell how fast a disk is.
_SAMPLE = 1 << 20


def digest(*parts: bytes) -> bytes:
    """16 bytes for all of these."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def packed_ids(ids: Ids) -> bytes:
    """As int32."""
    return np.asarray(ids, np.int32).tobytes()


@dataclass(eq=False)
class Extent:
    """A file of the tree."""

    name: bytes
    before: bytes  # the name of the file before, or of a root
    ids: bytes  # int32
    checksum: int
    n_bytes: int
    last_use: float
    has_block: bool = False  # of a recurrent model: a text can go on after it

    @property
    def n(self) -> int:
        return len(self.ids) // 4


def header(fingerprint: bytes, before: bytes, name: bytes, ids: bytes, checksum: int) -> bytes:
    """What a file begins with: see Extent."""
    fields = _FIELDS.pack(_MAGIC, fingerprint, before, name, len(ids) // 4, checksum)
    head = fields + ids.ljust(_IDS.size, b"\0")
    return head + digest(head)


def content_bytes(store: StateStore, has_block: bool) -> int:
    """Bytes after the header."""
    return store.saved_bytes + (store.block_bytes if has_block else 0)


def read_header(path: str, fingerprint: bytes, store: StateStore) -> Extent:
    """What a file's header says. Raises OSError, and FormatError for one that is not as it was
    written, or of another model."""
    fd = os.open(path, OPENING)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(f"{path}: no regular file")
        head = os.pread(fd, _FIELDS.size + _IDS.size + 16, 0)
    finally:
        os.close(fd)
    body, check = head[:-16], head[-16:]
    if len(head) < _FIELDS.size + _IDS.size + 16 or digest(body) != check:
        raise FormatError(f"{path}: the header is damaged")
    magic, model, before, name, n, checksum = _FIELDS.unpack(body[: _FIELDS.size])
    whole = magic.rstrip(b"\0") == _MAGIC and model == fingerprint and 1 <= n <= SAVED_TOKENS
    ids = body[_FIELDS.size : _FIELDS.size + 4 * n]
    has_block = store.is_recurrent and found.st_size > HEADER + store.saved_bytes
    expected = HEADER + content_bytes(store, has_block)
    if not whole or name != digest(before, ids) or found.st_size != expected:
        raise FormatError(
            f"{path}: expected {expected} bytes of this model's keys and values, found "
            f"{found.st_size} bytes of something else"
        )
    return Extent(name, before, ids, checksum, found.st_blocks * 512, found.st_mtime, has_block)


def read_ahead(path: str) -> None:
    """Has the system read a file that is to be mapped soon."""
    with contextlib.suppress(OSError):
        fd = os.open(path, OPENING)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)


def sample(path: str, n_bytes: int, seconds: float) -> tuple[int, float] | None:
    """How fast a file is read which occupies so many bytes: some of these, and the seconds that
    they took. It reads 1 MiB, or less if that takes longer than its share of `seconds`. None: it
    cannot be read, which whoever maps it will tell."""
    read, took, started = 0, 0.0, time.monotonic()
    with contextlib.suppress(OSError):
        fd = os.open(path, OPENING)
        try:
            size = os.fstat(fd).st_size
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no byte more
            while read < min(size, _SAMPLE) and took <= seconds * read / size:
                read += len(os.pread(fd, _SAMPLE // 4, read)) or size
                took = time.monotonic() - started
        finally:
            os.close(fd)
    return (min(read, size) * n_bytes // size, took) if read else None


def fingerprint(paths: Iterable[str], *facts: object) -> bytes:
    """16 bytes for the files of a model and whatever else its keys and values depend on: of each
    file its size, when it was changed, its first 8 MiB, and 64 blocks of 4 KiB that lie evenly in
    it."""
    total = hashlib.blake2b(repr((_MAGIC, HEADER, *facts)).encode(), digest_size=16)
    for path in paths:
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
                size = found.st_size
                total.update(repr((size, found.st_mtime_ns)).encode())
                total.update(file.read(8 << 20))
                for i in range(64):
                    total.update(os.pread(file.fileno(), 4096, size * i // 64))
        except OSError as error:
            raise FileError(error.errno, error.strerror, path) from None
    return total.digest()
