"""Frames between machines: of checked length, over TCP, from those alone who know the secret.

Plain sockets with a thread for each connection: what a machine does is to wait for a frame and then
to compute, in one call into C, so an event loop would have nothing else to attend to.

A connection begins with a challenge each way: both sides draw a nonce, and prove by HMAC-SHA-256
over both nonces that they know the secret, the caller first. No other frame is read before that.
Then frames follow: a header of 24 bytes, and a payload whose length is checked against what the
kind of frame may have before any of it is read. All that is sent or awaited has a time limit.
"""

import hashlib
import hmac
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

from mmrt.errors import ArgumentError, ClusterError, FileError

_MAGIC = b"mmrt"
_VERSION = 2
_HEADER = struct.Struct("<4sBB2xIQ4x")  # magic, version, kind, length, epoch
_NONCE = 32
LEAST_SECRET = 16  # bytes

# Seconds: for a connection, for the whole challenge, and for the rest of a frame once it has begun
# or can be sent.
CONNECT_SECONDS = 10.0
CHALLENGE_SECONDS = 5.0
FRAME_SECONDS = 60.0

SMALL = 1 << 16  # bytes, of every frame but steps and their results


class Kind(IntEnum):
    """Of frames."""

    CHALLENGE = 1  # a nonce
    PROOF = 2  # of the secret
    ASK = 3  # a stage what it is
    FACTS = 4  # the answer; JSON
    PLAN = 5  # to a stage: to whom it gives its rows; JSON
    PLANNED = 6  # from it: it has found them
    JOIN = 7  # from one stage to the next
    STEP = 8  # see mmrt/cluster/steps.py
    RESULT = 9  # likewise
    FAILED = 10  # a plan or a step; JSON
    PING = 11
    PONG = 12
    TAKE = 13  # to a stage: other layers beside its own; JSON
    TAKEN = 14  # from it: the port where they are now; JSON


class Frame(NamedTuple):
    """What a connection carries. epoch: of the plan that it belongs to."""

    kind: Kind
    epoch: int
    payload: bytes


class Connection:
    """A connected socket, whose other end knows the secret. Any thread may send; one receives.

    largest: bytes of the longest payload that may come, of steps and their results.
    """

    largest: int

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self.largest = self._small = _NONCE
        self.name = _name(sock)

    def send(self, kind: Kind, epoch: int, *payload: "bytes | memoryview[int]") -> None:
        """Raises ClusterError if it cannot be sent in time, or the other end is gone."""
        length = sum(memoryview(part).nbytes for part in payload)
        header = _HEADER.pack(_MAGIC, _VERSION, kind, length, epoch)
        deadline = time.monotonic() + FRAME_SECONDS
        with self._sending:
            try:
                for part in (header, *payload):
                    left = memoryview(part).cast("B")
                    while left:
                        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                        left = left[self._socket.send(left) :]
            except OSError as error:
                self.close()  # half a frame may be on its way
                raise ClusterError(f"{self.name}: cannot send: {_reason(error)}") from None

    def receive(self, seconds: float | None, rest: float = FRAME_SECONDS) -> Frame | None:
        """The next frame, or None if none has begun after so many seconds (None: wait).

        rest: seconds that it may take once it has begun.

        Raises ClusterError, and closes the connection, where it ends or what comes is no frame.
        """
        try:
            self._socket.settimeout(seconds)
            first = self._socket.recv(1)
        except TimeoutError:
            return None
        except OSError as error:
            raise self.broken(_reason(error)) from None
        deadline = time.monotonic() + rest
        header = first + self._read(_HEADER.size - len(first), deadline) if first else b""
        if not header:
            raise self.broken("the connection has ended")
        magic, version, number, length, epoch = _HEADER.unpack(header)
        if magic != _MAGIC or version != _VERSION or number not in set(Kind):
            raise self.broken("what came is no frame")
        kind = Kind(number)
        if length > (self.largest if kind in (Kind.STEP, Kind.RESULT) else self._small):
            raise self.broken(f"a frame of {length} bytes ({kind.name}) is longer than any can be")
        return Frame(kind, epoch, self._read(length, deadline))

    def _read(self, n_bytes: int, deadline: float) -> bytes:
        data = bytearray(n_bytes)
        left = memoryview(data)
        try:
            while left:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                n = self._socket.recv_into(left)
                if not n:
                    raise self.broken("the connection has ended amid a frame")
                left = left[n:]
        except OSError as error:
            if isinstance(error, ClusterError):
                raise
            raise self.broken(_reason(error)) from None
        return bytes(data)

    def trust(self) -> None:
        """From now on takes frames of all kinds, whose sender is known."""
        self.largest = self._small = SMALL

    def broken(self, why: str) -> ClusterError:
        """Closes it; the error says why."""
        self.close()
        return ClusterError(f"{self.name}: {why}")

    def close(self) -> None:
        """Ends it, for a thread that waits in receive() too."""
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _reason(error: OSError) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)


def _name(sock: socket.socket) -> str:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "a peer that has gone"
    return f"{host}:{port}"


# ---- the challenge ----


def check_secret(secret: bytes) -> bytes:
    """The secret, if it is one: bytes, and not too few to be guessed."""
    if not isinstance(secret, bytes) or len(secret) < LEAST_SECRET:
        raise ArgumentError(f"the secret: expected {LEAST_SECRET} bytes or more")
    return secret


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """The secret in a file that its owner alone can read, without space around it. ArgumentError
    for others, FileError where the system refuses."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ArgumentError(f"{os.fspath(path)}: others can read it: chmod 600")
            return check_secret(file.read(4096).strip())
    except OSError as error:
        raise FileError(error.errno, error.strerror, os.fspath(path)) from None


def _proof(secret: bytes, who: bytes, nonces: bytes) -> bytes:
    return hmac.new(secret, b"mmrt cluster 1 " + who + b" " + nonces, hashlib.sha256).digest()


def _challenge(connection: Connection, kind: Kind, length: int, end: float) -> bytes:
    left = max(end - time.monotonic(), 0.001)
    frame = connection.receive(left, left)
    if frame is None or frame.kind != kind or len(frame.payload) != length:
        raise connection.broken("no answer to the challenge")
    return frame.payload


def connect(address: tuple[str, int], secret: bytes) -> Connection:
    """A connection to who listens there. Raises ClusterError where there is nobody, or nobody who
    knows the secret."""
    place = "{}:{}".format(*address)
    try:
        sock = socket.create_connection(address, CONNECT_SECONDS)
    except OSError as error:
        raise ClusterError(f"{place}: cannot connect: {_reason(error)}") from None
    _prepare(sock)
    connection = Connection(sock)
    connection.name = place
    own, end = os.urandom(_NONCE), time.monotonic() + CHALLENGE_SECONDS
    connection.send(Kind.CHALLENGE, 0, own)
    nonces = own + _challenge(connection, Kind.CHALLENGE, _NONCE, end)
    connection.send(Kind.PROOF, 0, _proof(secret, b"caller", nonces))
    proof = _challenge(connection, Kind.PROOF, 32, end)
    if not hmac.compare_digest(proof, _proof(secret, b"stage", nonces)):
        raise connection.broken("it does not know the secret")
    connection.trust()
    return connection


def accept(sock: socket.socket, secret: bytes) -> Connection:
    """The same of one who has connected."""
    _prepare(sock)
    connection = Connection(sock)
    own, end = os.urandom(_NONCE), time.monotonic() + CHALLENGE_SECONDS
    nonces = _challenge(connection, Kind.CHALLENGE, _NONCE, end) + own
    connection.send(Kind.CHALLENGE, 0, own)
    proof = _challenge(connection, Kind.PROOF, 32, end)
    if not hmac.compare_digest(proof, _proof(secret, b"caller", nonces)):
        raise connection.broken("who calls does not know the secret")
    connection.send(Kind.PROOF, 0, _proof(secret, b"stage", nonces))
    connection.trust()
    return connection


def _prepare(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A machine that is gone without a word is noticed, also while nothing is sent.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(FRAME_SECONDS * 1000))


# ---- addresses ----


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "10.0.0.1:7600", "[::1]:7600" or "node-1:7600". ArgumentError for others."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isdecimal() or not int(port) < 1 << 16:
        raise ArgumentError(f"address: expected HOST:PORT, found {text!r:.60}")
    return host, int(port)


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket that listens there alone. host: an address of this machine, or the name of one of
    its interfaces, of which the IPv4 address is taken. Raises ClusterError, naming it."""
    host, port = address
    try:
        if host in (name for _, name in socket.if_nameindex()):
            host = _address_of(host)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=16)
    except OSError as error:
        raise ClusterError(f"{address[0]}:{port}: cannot listen: {_reason(error)}") from None


_SIOCGIFADDR = 0x8915


def _address_of(interface: str) -> str:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)[20:24])
