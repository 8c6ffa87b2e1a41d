"""Frames between machines: who does not know the secret, and what is no frame, is refused."""

import hashlib
import hmac
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from mmrt.cluster import steps, wire
from mmrt.cluster.steps import Fork, Step, TextPart
from mmrt.cluster.wire import Connection, Kind
from mmrt.errors import ArgumentError, ClusterError, FormatError, MmrtError

SECRET = b"sixteen bytes or more"


class Ends:
    """Both ends of a connection that has been accepted here."""

    def __init__(self, caller: Connection, called: Connection) -> None:
        self.caller, self.called = caller, called


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begins it; what is returned waits for its result, or raises what it raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> Any:
        thread.join(60)
        assert results, "it has not ended"
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    return end


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with wire.listen(("127.0.0.1", 0)) as sock:
        sock.settimeout(60)
        yield sock


def accepting(listener: socket.socket, secret: bytes = SECRET) -> Callable[[], Connection]:
    return in_thread(lambda: wire.accept(listener.accept()[0], secret))


@pytest.fixture
def ends(listener: socket.socket) -> Iterator[Ends]:
    accepted = accepting(listener)
    caller = wire.connect(listener.getsockname(), SECRET)
    both = Ends(caller, accepted())
    yield both
    both.caller.close()
    both.called.close()


@pytest.fixture
def raw(listener: socket.socket) -> Iterator[tuple[socket.socket, Callable[[], Connection]]]:
    """A socket that speaks as it likes to one who accepts."""
    accepted = accepting(listener)
    with socket.create_connection(listener.getsockname()) as sock:
        yield sock, accepted


VERSION = 2


def frame(kind: int, payload: bytes, magic: bytes = b"mmrt", version: int = VERSION) -> bytes:
    return struct.pack("<4sBB2xIQ4x", magic, version, kind, len(payload), 0) + payload


# ---- frames ----


def test_frames_arrive_as_they_were_sent(ends: Ends) -> None:
    ends.called.largest = 1 << 20
    sent = [(Kind.PLAN, b"{}"), (Kind.PING, b""), (Kind.STEP, os.urandom(1 << 20))]

    def send() -> None:
        for kind, data in sent:
            ends.caller.send(kind, 7, data[:3], data[3:])

    wait = in_thread(send)
    for kind, data in sent:
        assert ends.called.receive(60) == (kind, 7, data)
    wait()
    assert ends.called.receive(0.01) is None


def test_a_frame_longer_than_any_can_be(ends: Ends) -> None:
    ends.called.largest = 1 << 17
    ends.caller.send(Kind.STEP, 0, bytes(1 << 17))
    assert ends.called.receive(60) is not None
    ends.caller.send(Kind.PLAN, 0, bytes((1 << 16) + 1))
    with pytest.raises(ClusterError, match=r"a frame of 65537 bytes \(PLAN\) is longer than any"):
        ends.called.receive(60)
    with pytest.raises(ClusterError):  # it is closed
        for _ in range(1000):
            ends.caller.send(Kind.STEP, 0, bytes(1 << 16))


@pytest.mark.parametrize(
    "data",
    [
        frame(Kind.PING, b"", magic=b"HTTP"),
        frame(Kind.PING, b"", version=VERSION - 1),
        frame(0, b""),
        frame(99, b""),
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    ],
)
def test_what_is_no_frame(ends: Ends, data: bytes) -> None:
    ends.caller._socket.sendall(data)
    with pytest.raises(ClusterError, match="what came is no frame"):
        ends.called.receive(60)


@pytest.mark.parametrize("n", [0, 1, 23, 24, 30])
def test_a_connection_that_ends_amid_a_frame(ends: Ends, n: int) -> None:
    ends.caller._socket.sendall(frame(Kind.PLAN, b"0123456789")[:n])
    ends.caller.close()
    with pytest.raises(ClusterError, match="the connection has ended"):
        ends.called.receive(60)


def test_a_frame_that_is_never_finished(ends: Ends) -> None:
    ends.caller._socket.sendall(frame(Kind.PLAN, b"0123456789")[:30])
    with pytest.raises(ClusterError, match="no answer in time"):
        ends.called.receive(60, rest=0.1)


def test_a_peer_that_takes_nothing(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_SECONDS", 0.1)
    with pytest.raises(ClusterError, match="cannot send: no answer in time"):
        ends.caller.send(Kind.STEP, 0, bytes(1 << 26))


# ---- the secret ----


def test_another_secret(listener: socket.socket) -> None:
    accepted = accepting(listener, b"another one, as long")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:[0-9]+: the connection has ended"):
        wire.connect(listener.getsockname(), SECRET)
    with pytest.raises(ClusterError, match="who calls does not know the secret"):
        accepted()


def test_a_listener_that_does_not_know_it(listener: socket.socket) -> None:
    def accept() -> None:
        sock = listener.accept()[0]
        with sock:
            sock.recv(1000)
            sock.sendall(frame(Kind.CHALLENGE, bytes(32)))
            sock.recv(1000)
            sock.sendall(frame(Kind.PROOF, bytes(32)))

    done = in_thread(accept)
    with pytest.raises(ClusterError, match="it does not know the secret"):
        wire.connect(listener.getsockname(), SECRET)
    done()


def test_a_proof_cannot_be_sent_back(raw: tuple[socket.socket, Callable[[], Connection]]) -> None:
    """Each side proves it in its own words: nobody is one's own witness."""
    sock, accepted = raw
    own = bytes(32)
    sock.sendall(frame(Kind.CHALLENGE, own))
    theirs = sock.recv(1000)[24:]
    for_stage = hmac.new(SECRET, b"mmrt cluster 1 stage " + own + theirs, hashlib.sha256)
    sock.sendall(frame(Kind.PROOF, for_stage.digest()))
    with pytest.raises(ClusterError, match="who calls does not know the secret"):
        accepted()


@pytest.mark.parametrize(
    "data",
    [
        frame(Kind.PLAN, b"{}"),
        frame(Kind.STEP, bytes(32)),
        frame(Kind.PROOF, bytes(32)),
        frame(Kind.CHALLENGE, bytes(31)),
        frame(Kind.CHALLENGE, bytes(33)),
        struct.pack("<4sBB2xIQ4x", b"mmrt", VERSION, Kind.STEP, 0xFFFFFFFF, 0),
    ],
)
def test_nothing_is_read_before_the_proof(
    raw: tuple[socket.socket, Callable[[], Connection]], data: bytes
) -> None:
    sock, accepted = raw
    sock.sendall(data)
    with pytest.raises(ClusterError, match=r"challenge|longer than any can be"):
        accepted()
    with suppress(ConnectionResetError):
        assert sock.recv(100) == b""


def test_who_says_nothing(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CHALLENGE_SECONDS", 0.05)
    accepted = accepting(listener)
    with (
        socket.create_connection(listener.getsockname()),
        pytest.raises(ClusterError, match="no answer to the challenge"),
    ):
        accepted()


def test_random_bytes(listener: socket.socket) -> None:
    """Before the proof, and after it: each ends in one error, and none in a frame."""
    draw = random.Random(3)
    for i in range(60):
        accepted = accepting(listener)
        if i % 2:
            sock = wire.connect(listener.getsockname(), SECRET)._socket
        else:
            sock = socket.create_connection(listener.getsockname())
        data = bytearray(frame(draw.randrange(12), draw.randbytes(draw.randrange(80))))
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with sock, suppress(OSError):
            sock.sendall(data if i % 3 else draw.randbytes(100))
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(ClusterError):
                connection = accepted()
                while connection.receive(60):
                    pass


@pytest.mark.parametrize("secret", [b"", b"fifteen bytes..", "sixteen characters"])
def test_secrets_that_are_none(secret: Any) -> None:
    with pytest.raises(ArgumentError, match="the secret: expected 16 bytes or more"):
        wire.check_secret(secret)


# ---- addresses ----


def test_addresses() -> None:
    assert wire.parse_address(" 10.0.0.1:7600\n") == ("10.0.0.1", 7600)
    assert wire.parse_address("[::1]:1") == ("::1", 1)
    for wrong in ("", "host", "host:", ":80", "host:99999", "host:8o", "[]:1", "a:-1"):
        with pytest.raises(ArgumentError, match="address: expected HOST:PORT"):
            wire.parse_address(wrong)


def test_listening_on_an_interface() -> None:
    with wire.listen(("lo", 0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_addresses_that_are_not_here(listener: socket.socket) -> None:
    with pytest.raises(ClusterError, match=r"192\.0\.2\.1:0: cannot listen: "):
        wire.listen(("192.0.2.1", 0))
    with pytest.raises(ClusterError, match="cannot listen: Address already in use"):
        wire.listen(listener.getsockname())
    place = listener.getsockname()
    listener.close()
    with pytest.raises(
        ClusterError, match=r"127\.0\.0\.1:[0-9]+: cannot connect: Connection refused"
    ):
        wire.connect(place, SECRET)


# ---- steps ----


def a_step(rows: bool = True) -> Step:
    parts = [
        TextPart(1 << 60, 0, np.arange(3, dtype=np.int32), 1),
        TextPart(5, 70, np.array([-1], np.int32), 0),
    ]
    given = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    return Step(9, [Fork(4, 5, 70)], [1, 2], parts, given if rows else None)


@pytest.mark.parametrize("form", ["f32", "f16", None])
def test_steps_arrive_as_they_were_sent(form: str | None) -> None:
    step = a_step(form is not None)
    data = b"".join(steps.pack_step(step, form or "f32"))
    assert len(data) <= steps.largest_step(4, 8)
    found = steps.unpack_step(data, 4, 8 if form else 0)
    assert (found.number, found.forks, found.gone) == (9, step.forks, [1, 2])
    for part, sent in zip(found.parts, step.parts, strict=True):
        assert part[:2] == sent[:2] and part.outputs == sent.outputs
        np.testing.assert_array_equal(part.tokens, sent.tokens)
    if step.rows is None:
        assert found.rows is None
    else:
        wanted = step.rows.astype(np.float16) if form == "f16" else step.rows
        np.testing.assert_array_equal(found.rows, wanted)


def test_results_arrive_as_they_were_sent() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    data = b"".join(steps.pack_result(7, rows))
    assert len(data) == steps.largest_result(3, 5)
    number, found = steps.unpack_result(data, 3, 5)
    assert number == 7
    np.testing.assert_array_equal(found, rows)
    for wrong in (data[:-1], data + b"0", data[:10]):
        with pytest.raises(ClusterError, match="a frame "):
            steps.unpack_result(wrong, 3, 5)
    with pytest.raises(ClusterError, match="a result of 3 rows: 2 are possible"):
        steps.unpack_result(data, 2, 5)


def test_steps_that_do_not_fit() -> None:
    data = b"".join(steps.pack_step(a_step(), "f32"))
    for length in range(len(data)):
        with pytest.raises(ClusterError):
            steps.unpack_step(data[:length], 4, 8)
    for wrong in (data + b"0", data + bytes(16)):
        with pytest.raises(ClusterError, match="bytes too many"):
            steps.unpack_step(wrong, 4, 8)
    with pytest.raises(ClusterError, match="a step of 4 tokens in 2 parts: 3 are possible"):
        steps.unpack_step(data, 3, 8)
    with pytest.raises(ClusterError):
        steps.unpack_step(data, 4, 9)
    with pytest.raises(ClusterError):
        steps.unpack_step(data, 4, 0)


def test_random_steps() -> None:
    """Bytes that a step has not are refused in one way alone, whatever they count."""
    draw = random.Random(4)
    whole = b"".join(steps.pack_step(a_step(), "f32"))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(60 if draw.random() < 0.5 else len(data))] = draw.randrange(256)
        with suppress(ClusterError):
            step = steps.unpack_step(bytes(data), 4, 8)
            assert step.n_tokens <= 4 and (step.rows is None) == (step.n_tokens == 0)
        with suppress(ClusterError):
            steps.unpack_result(bytes(data), 4, 8)


def test_values_beyond_f16() -> None:
    step = a_step()
    assert step.rows is not None
    step.rows[1, 2] = 70000
    with pytest.raises(FormatError, match="values beyond f16's 65504: use f32"):
        steps.pack_step(step, "f16")


def test_the_error_is_one_of_connections() -> None:
    assert issubclass(ClusterError, MmrtError) and issubclass(ClusterError, ConnectionError)
