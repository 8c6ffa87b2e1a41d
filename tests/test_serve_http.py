"""The server's HTTP: what requests may look like, and clients that have said all."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import command
import pytest
from served import Running, running, write_speaker
from test_serve_limits import LIMITS, answer, engine_is_empty, open_socket, raw, rest, until

from mmrt.errors import ArgumentError
from mmrt.serving.access import read_host, read_origin


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = write_speaker(
        tmp_path_factory.mktemp("served") / "s.gguf", b"Hel", b"lo", context=1 << 17
    )
    with running({"org/speaker": path}, replace(LIMITS, header_seconds=5.0)) as found:
        yield found


def status(reply: bytes) -> int:
    return int(reply.split(maxsplit=2)[1])


def get(target: str, *headers: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", *(headers or ["Host: localhost"]), "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def test_names_of_models_may_have_slashes(server: Running) -> None:
    for spelled in ("org/speaker", "org%2Fspeaker", "org%2fspe%61ker"):
        assert server.get(f"/v1/models/{spelled}").json["id"] == "org/speaker"
    assert server.get("/v1/models/org%252Fspeaker").status == 404
    server.get("/v1/%0A127.0.0.1 forged".replace(" ", "%20"))
    until(lambda: any("forged" in note for note in server.notes))
    assert not [note for note in server.notes if "\n" in note or " forged" in note]


def test_requests_are_called_as_their_clients_call_them(server: Running) -> None:
    assert server.get("/health", **{"X-Request-Id": "job-7/a"}).headers["x-request-id"] == "job-7/a"
    until(lambda: any(note.endswith(" ms job-7/a") for note in server.notes))
    given = [
        {},
        {},
        {"x-request-id": "a b"},
        {"x-request-id": "\u00e9"},
        {"x-request-id": "a" * 129},
    ]
    own = {server.get("/v1/nothing", **headers).headers["x-request-id"] for headers in given}
    assert len(own) == 5 and all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in own)


def test_targets_that_name_the_host(server: Running) -> None:
    for target, host, expected in (
        ("http://localhost:1234/health?x=1", "evil.example", 200),  # the target's host is asked for
        ("HTTPS://user@127.0.0.1/health", "localhost", 200),
        ("http://evil.example/health", "localhost", 403),
        ("http://localhost", "localhost", 200),
        ("ftp://localhost/health", "localhost", 400),
        ("http://[/health", "localhost", 400),
        ("http:///health", "localhost", 400),
        ("localhost:80", "localhost", 404),
    ):
        reply = answer(server, get(target, f"Host: {host}"))
        assert status(reply) == expected, (target, reply)
    whole = get("*").replace(b"GET", b"OPTIONS")
    assert status(answer(server, whole)) == 204 and status(answer(server, get("*"))) == 404


@pytest.mark.parametrize("length", [b"0", b"5", b"999"])
def test_two_lengths_of_one_body_are_refused(server: Running, length: bytes) -> None:
    body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n"
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
    reply = answer(server, head + b"Content-Length: " + length + b"\r\n" + body)
    assert status(reply) == 400 and b"Connection: close" in reply
    assert reply.count(b"HTTP/1.1") == 1  # what follows is not read as a request
    old = head.replace(b"1.1", b"1.0") + body
    assert status(answer(server, old)) == 400


def test_chunks_of_any_size_are_bounded(server: Running) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for size in (b"7fffffffffffffff", b"ffffffffffffffff", b"10000000000000000", b"f" * 20):
        reply = answer(server, head + size + b"\r\n" + b"x" * (LIMITS.body + 1))
        assert status(reply) == 413, size
    for size in (b"f" * 21, b"-1", b"+2", b"0x2", b""):
        assert status(answer(server, head + size + b"\r\n{}\r\n")) == 400, size
    until(lambda: server.server.http.body_bytes == 0)


def test_bodies_that_are_compressed_are_refused(server: Running) -> None:
    for coding in ("gzip", "br", "identity, gzip"):
        reply = server.ask("POST", "/tokenize", {"content": "x"}, {"Content-Encoding": coding})
        assert reply.status == 415 and coding in reply.error["message"]
        assert reply.headers["accept-encoding"] == "identity"
    plain = {"Content-Encoding": "Identity"}
    assert server.ask("POST", "/tokenize", {"content": "x"}, plain).status == 200


def test_odd_origins_are_refused(server: Running) -> None:
    for origin in ("http://[", "null", "", "http://", "localhost", "://localhost"):
        assert server.get("/health", Origin=origin).status == 403, origin


def half_closed(server: Running, sent: bytes) -> bytes:
    with open_socket(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return rest(connection)


def test_clients_that_send_nothing_more_are_answered(server: Running) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert half_closed(server, health * 3).count(b'{"status":"ok"}') == 3
    for stream in (False, True):
        asked: dict[str, Any] = {"prompt": "x", "stream": stream, "ignore_eos": True}
        body = json.dumps(asked | {"max_tokens": 200}).encode()
        reply = half_closed(server, raw("/v1/completions", body))
        assert b"HTTP/1.1 200 " in reply and b'"finish_reason":"length"' in reply
        assert (b"data: [DONE]" in reply) == stream


def test_clients_that_listen_no_more_end_their_texts(server: Running) -> None:
    """In a prompt that is not read yet, too, of which nothing can be sent."""
    model = server.served().model
    run, steps = model.run_step, []

    def endless(parts: Any, logits: Any = None) -> None:
        steps.append(len(parts))
        until(lambda: server.served().under_way == 0)
        run(parts, logits)

    model.run_step = endless
    try:
        for stream in (False, True):
            connection = open_socket(server)
            body = json.dumps({"prompt": f"x{stream}", "stream": stream}).encode()
            connection.sendall(raw("/v1/completions", body))
            until(lambda: server.served().under_way == 1)
            connection.shutdown(socket.SHUT_WR)
            connection.close()
            until(lambda: server.served().under_way == 0 and engine_is_empty(server))
    finally:
        model.run_step = run
    assert steps


def test_origins_and_hosts_are_checked() -> None:
    for text, expected in (
        ("*", "*"),
        ("https://Example.org", "https://example.org"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("https://a.example:443", "https://a.example"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ):
        assert read_origin(text) == expected
    for text in (
        *(
            "example.org",
            "https://",
            "ftp://a",
            "https://a/b",
            "https://a?x",
            "https://*.a",
            "null",
        ),
        *(
            "https://a b",
            "",
            " https://a",
            "https://a:x",
            "https://u@a",
            "http://[",
            "https://ä.de",
        ),
    ):
        with pytest.raises(ArgumentError, match="origin"):
            read_origin(text)
    assert read_host("Box.lan") == "box.lan" and read_host("::1") == "::1"
    for text in ("http://a", "a:80", "a/b", "", "a b", "*"):
        with pytest.raises(ArgumentError, match="host"):
            read_host(text)


def test_the_command_checks_them_too() -> None:
    for option, value in (("--cors-origin", "example.org"), ("--allowed-host", "a:80")):
        command.call("serve", "m.gguf", option, value).assert_refused(2, option, value)


def test_who_leaves_a_stream_is_noticed_at_once_and_quietly(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only at the next ping: what goes on being written tells it."""
    for closes_its_side in (False, True):
        connection = open_socket(server)
        asked = {"prompt": "x", "stream": True, "ignore_eos": True, "max_tokens": 1 << 16}
        connection.sendall(raw("/v1/completions", json.dumps(asked).encode()))
        while b"data: " not in connection.recv(65536):
            pass
        if closes_its_side:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)
        connection.close()
        until(lambda: server.served().under_way == 0)
        until(lambda: server.server.http.body_bytes == 0)
    assert not caplog.records, caplog.text


def test_who_has_sent_much_more_may_leave_too(server: Running) -> None:
    """Of requests that follow, only so much is read ahead."""
    asked = {"prompt": "x", "ignore_eos": True, "max_tokens": 1 << 16}
    for stream in (False, True):
        connection = open_socket(server)
        body = json.dumps(asked | {"stream": stream}).encode()
        connection.sendall(raw("/v1/completions", body) + get("/health") * 2000)
        until(lambda: server.served().under_way == 1)
        connection.close()
        until(lambda: server.served().under_way == 0)


def test_old_clients_get_no_interim_answers(server: Running) -> None:
    """They are taken to have left, unless the answer is a stream."""
    for stream in (False, True):
        asked = {"prompt": "x", "ignore_eos": True, "stream": stream}
        body = json.dumps(asked | {"max_tokens": 200 if stream else 1 << 16}).encode()
        sent = raw("/v1/completions", body).replace(b"HTTP/1.1", b"HTTP/1.0")
        reply = half_closed(server, sent)
        assert b" 100 " not in reply and (b"[DONE]" in reply) == stream
        until(lambda: server.served().under_way == 0)


def test_an_answer_without_content_has_no_length(server: Running) -> None:
    reply = server.ask("OPTIONS", "/v1/models")
    assert reply.status == 204 and "content-length" not in reply.headers
