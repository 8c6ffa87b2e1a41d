"""The server among strangers: what is refused, who leaves, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import command
import pytest
from served import Running, running, write_speaker, write_talker

from mmrt.errors import ArgumentError, FileError
from mmrt.serving.access import Access, read_keys
from mmrt.serving.limits import Limits, Shape
from mmrt.serving.problems import Refused

LIMITS = Limits(
    header=4 << 10, body=1 << 20, bodies=3 << 20, messages=8, tools=4, queue=4, connections=12,
    header_seconds=0.5, body_seconds=1.0, stop_seconds=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("served") / "t.gguf", context=1 << 17)


@pytest.fixture(scope="module")
def server(talker: Path) -> Iterator[Running]:
    with running({"talker": talker}, LIMITS) as found:
        yield found


def until(true: Callable[[], object]) -> None:
    """Waits until it is."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def open_socket(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer(server: Running, sent: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with open_socket(server) as connection:
        connection.sendall(sent)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def raw(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


ENDLESS = {
    "messages": [{"role": "user", "content": "Hello"}],
    "ignore_eos": True,
    "max_tokens": 1 << 16,
}


# ---- shapes of bodies ----


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
def test_depth_is_counted_outside_strings(size: int) -> None:
    limits = replace(Limits(), depth=3, marks=40)
    fits = [
        rb'{"a": [{"b": "[[[[[[{{{{"}], "c": "\"[[[[[\\"}',
        rb'{"\\": ["\\\\\"[[[[[[", "\u005b[[["]}',
        b'{"a": "' + b"[" * 500 + b'"}',
    ]
    for body in fits:
        json.loads(body)
        shape = Shape(limits)
        for i in range(0, len(body), size):
            shape.feed(body[i : i + size])
    for body in (b"[[[[", rb'["\\", [[[', rb'{"\"": {"a": [["\\\""', b"[" * 60_000):
        shape = Shape(limits)
        with pytest.raises(Refused, match="nested deeper than 3"):
            for i in range(0, len(body), size):
                shape.feed(body[i : i + size])
    shape = Shape(limits)
    with pytest.raises(Refused, match="more than 40 values"):
        shape.feed(b"[" + b"1," * 50)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 60_000, 400),
        (b'{"messages":' + b'{"a":' * 60_000, 400),
        (b'{"messages": [' + b"{}," * 500_000, 413),
        (b'{"a": "' + b"x" * (2 << 20), 413),
        (b'{"n": ' + b"9" * 100_000 + b"}", 400),
        (b'{"temperature": 1e999}', 400),
        (b'{"temperature": -Infinity}', 400),
        (b'{"n_discard": -1, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (
            b'{"messages": ' + json.dumps([{"role": "user", "content": "x"}] * 9).encode() + b"}",
            400,
        ),
        (b"\x00\x01\x02", 400),
        (b"null", 400),
    ],
)
def test_hostile_bodies(server: Running, body: bytes, status: int) -> None:
    reply = answer(server, raw("/v1/chat/completions", body, "Connection: close"))
    assert reply.startswith(f"HTTP/1.1 {status} ".encode()), reply[:300]
    assert server.get("/health").status == 200


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(server: Running) -> None:
    head = raw("/tokenize", b"").replace(b"Content-Length: 0", b"Content-Length: 1000000000")
    assert answer(server, head).startswith(b"HTTP/1.1 413 ")
    waits = raw("/tokenize", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 99999999")
    assert b"100" not in answer(server, waits).partition(b"\r\n")[0]


def test_a_client_that_asks_first_is_told_to_go_on(server: Running) -> None:
    body = b'{"content": "ab"}'
    head = raw("/tokenize", body, "Expect: 100-continue", "Connection: close")[: -len(body)]
    with open_socket(server) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 9000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", 408),  # and nothing more
        (raw("/tokenize", b"1234567890")[:-5], 408),
        (
            b"POST /tokenize HTTP/1.1\r\nHost: a.localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
        ),
    ],
)
def test_what_is_no_request(server: Running, sent: bytes, status: int) -> None:
    assert answer(server, sent).startswith(f"HTTP/1.1 {status} ".encode())


def test_chunked_bodies_and_several_requests_on_a_connection(server: Running) -> None:
    chunked = (
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'8\r\n{"conten\r\n9\r\nt": "ab"}\r\n0\r\n\r\n'
    )
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    found = answer(server, chunked + chunked + last)
    assert found.count(b"HTTP/1.1 200 ") == 3 and found.count(b'"tokens"') == 2


# ---- who may ask ----


def test_other_hosts_and_origins_are_refused(server: Running) -> None:
    for host in ("localhost:80", "127.0.0.1", "[::1]:8080", "a.localhost", "10.0.0.7:1"):
        assert server.get("/health", Host=host).status == 200, host
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.x"):
        assert server.get("/health", Host=host).status == 403, host
    own = f"127.0.0.1:{server.port}"
    assert server.get("/health", Origin=f"http://{own}", Host=own).status == 200
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        reply = server.get("/health", Origin=origin)
        assert reply.status == 403 and "access-control-allow-origin" not in reply.headers


def test_keys_hosts_and_origins(talker: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret-1\n\n secret-2 \n")
    origin = "https://page.example"
    access = Access(read_keys(str(keys)), frozenset({"box.lan"}), frozenset({origin}))
    with running({"talker": talker}, access=access) as server:
        assert server.get("/health").status == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-1"}):
            reply = server.get("/v1/models", **headers)
            assert reply.status == 401 and reply.error["type"] == "authentication_error"
            assert reply.headers["www-authenticate"].startswith("Bearer")
        for headers in (
            {"Authorization": "Bearer secret-1"},
            {"authorization": "bearer secret-2"},
            {"X-Api-Key": "secret-2"},
        ):
            assert server.get("/v1/models", **headers).status == 200
        assert server.get("/health", Host="box.lan:8080").status == 200
        allowed = server.get("/health", Origin=origin)
        assert allowed.headers["access-control-allow-origin"] == origin
        asked = {"Access-Control-Request-Headers": "authorization", "Origin": origin}
        reply = server.ask("OPTIONS", "/v1/chat/completions", None, asked)
        assert reply.status == 204 and reply.body == b""
        assert reply.headers["access-control-allow-headers"] == "authorization"
        assert "access-control-allow-credentials" not in reply.headers

        prompt = {"prompt": [5] * 200, "max_tokens": 1}

        def cached(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            reply = server.ask("POST", "/v1/completions", prompt, headers).json
            return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert cached("secret-1") == 0 and cached("secret-1") > 100
        assert cached("secret-2") == 0  # what others have asked shows in no figure


def test_metrics_without_a_key_where_that_is_meant(talker: Path) -> None:
    access = Access(["k"])
    with running({"talker": talker}, access=access) as server:
        assert server.get("/metrics").status == 401
        access.without_key |= {"/metrics"}
        assert server.get("/metrics").status == 200
        assert server.get("/v1/models").status == 401


def test_files_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(FileError, match="keys"):
        read_keys(str(path))
    for text, why in (
        ("", "no key"),
        ("# a\n", "no key"),
        ("a b\n", "line 1"),
        ("a\né\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(ArgumentError, match=why):
            read_keys(str(path))


# ---- how much at once ----


def start_endless(server: Running, **fields: Any) -> socket.socket:
    """A stream that goes on until it is closed; it has begun."""
    connection = open_socket(server)
    body = json.dumps(ENDLESS | {"stream": True} | fields).encode()
    connection.sendall(raw("/v1/chat/completions", body))
    assert connection.recv(200).startswith(b"HTTP/1.1 200 ")
    return connection


def test_beyond_the_queue_clients_are_to_come_again(server: Running) -> None:
    streams = [start_endless(server) for _ in range(LIMITS.queue)]
    try:
        reply = server.chat()
        assert reply.status == 429 and reply.error["type"] == "rate_limit_error"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert server.get("/health").status == 200
    finally:
        for stream in streams:
            stream.close()
    until(lambda: server.served().under_way == 0)
    assert server.chat(max_tokens=1).status == 200


def test_many_posts_at_once(server: Running) -> None:
    replies: list[Any] = []

    def ask() -> None:
        try:
            replies.append(server.chat(max_tokens=4))
        except OSError as error:
            replies.append(error)

    threads = [threading.Thread(target=ask) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [reply for reply in replies if isinstance(reply, OSError)]
    assert {reply.status for reply in replies} <= {200, 429, 503}
    assert all(reply.headers["retry-after"] for reply in replies if reply.status != 200)
    done = [reply for reply in replies if reply.status == 200]
    assert done and all(reply.json["usage"]["completion_tokens"] == 4 for reply in done)
    until(lambda: server.served().under_way == 0)
    until(lambda: server.server.http.body_bytes == 0)


# ---- who leaves ----


def engine_is_empty(server: Running) -> bool:
    engine = server.served().engine
    return not engine._active and not engine._inbox


def test_a_client_that_leaves_ends_its_text(server: Running) -> None:
    for stream in (True, False):
        connection = open_socket(server)
        body = json.dumps(ENDLESS | {"stream": stream, "n": 2}).encode()
        connection.sendall(raw("/v1/chat/completions", body))
        until(lambda: server.served().under_way == 2 and not engine_is_empty(server))
        connection.close()
        until(lambda: server.served().under_way == 0 and engine_is_empty(server))


def test_a_client_that_leaves_the_queue_ends_no_other(talker: Path) -> None:
    with running({"talker": talker}, max_gap=1e-9) as server:  # one text a step
        first = start_endless(server, priority=-1)
        waits = open_socket(server)
        waits.sendall(raw("/v1/chat/completions", json.dumps(ENDLESS).encode()))
        until(lambda: server.served().under_way == 2)
        waits.close()
        until(lambda: server.served().under_way == 1)
        found = b""
        while b"data: " not in found:  # it goes on
            found += first.recv(65536)
        first.close()
        until(lambda: engine_is_empty(server))


def test_a_prompt_of_a_client_who_left_is_not_read_on(
    talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running({"talker": talker}, max_gap=0.3) as server:
        model, gate = server.served().model, threading.Event()
        run = model.run_step
        steps = []

        def slow(parts: Any, logits: Any = None) -> None:
            steps.append(sum(len(part.tokens) for part in parts))
            gate.wait(10)
            run(parts, logits)

        model.run_step = slow
        connection = open_socket(server)
        body = json.dumps({"prompt": list(range(1, 250)) * 8, "stream": True}).encode()
        connection.sendall(raw("/v1/completions", body))
        until(lambda: steps)
        assert server.get("/health").status == 200  # in the midst of a step
        connection.close()
        until(lambda: server.served().under_way == 0)
        gate.set()
        until(lambda: engine_is_empty(server))
        assert len(steps) == 1 and sum(steps) < 1992


def test_silent_streams_say_that_they_live(talker: Path) -> None:
    with running({"talker": talker}, replace(LIMITS, ping_seconds=0.05)) as server:
        model, gate = server.served().model, threading.Event()
        run = model.run_step

        def slow(parts: Any, logits: Any = None) -> None:
            gate.wait(10)
            run(parts, logits)

        model.run_step = slow
        connection = open_socket(server)
        body = json.dumps(ENDLESS | {"stream": True, "max_tokens": 2}).encode()
        connection.sendall(raw("/v1/chat/completions", body, "Connection: close"))
        found = b""
        while found.count(b": ping\n\n") < 3:  # before the first token
            found += connection.recv(4096)
        assert found.startswith(b"HTTP/1.1 200 ") and b'"role":"assistant"' in found
        gate.set()
        assert b"data: [DONE]" in found + rest(connection)


# ---- errors on the way ----


def test_an_error_in_a_stream_is_told_in_it(server: Running) -> None:
    from mmrt.errors import FormatError

    model = server.served().model
    run = model.run_step

    def broken(parts: Any, logits: Any = None) -> None:
        raise FormatError("NaN somewhere")

    model.run_step = broken
    try:
        reply = server.chat("something new" * 9, stream=True)
        assert reply.status == 200 and "NaN somewhere" in reply.events[-1]["error"]["message"]
        assert b"[DONE]" not in reply.body
        whole = server.chat("something else" * 9)
        assert whole.status == 500 and "NaN somewhere" in whole.error["message"]
    finally:
        model.run_step = run
    assert server.chat(max_tokens=1).status == 200


def test_the_log_has_no_content(server: Running) -> None:
    server.chat("SECRET", max_tokens=3)
    server.get("/health?key=SECRET")
    until(lambda: any("/health 200" in note for note in server.notes))
    line = next(n for n in server.notes if "POST /v1/chat/completions 200" in n and "+ 3" in n)
    assert re.search(r"127\.0\.0\.1 .* 200 \d+ B \d+ ms \d+ tokens \(\d+ cached\) \+ 3", line)
    assert not any("SECRET" in note for note in server.notes)


# ---- the command ----


def start_command(*arguments: object) -> "tuple[subprocess.Popen[str], int]":
    """`mmrt serve`, and the port at which it listens; its model is ready."""
    process = command.start("serve", *arguments, "--port", "0", stderr=subprocess.PIPE)
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
        if "ready:" in line:
            break
    assert port
    return process, port


def is_deaf(server: Running) -> bool:
    try:
        open_socket(server).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_first_signal_lets_texts_end_and_the_second_does_not(talker: Path) -> None:
    for signals in (1, 2):
        process, port = start_command(f"it={talker}")
        server = Running(None, port)  # type: ignore[arg-type]
        assert server.get("/v1/models").json["data"][0]["id"] == "it"
        most = 300 if signals == 1 else 1 << 16
        stream = start_endless(server, max_tokens=most)
        process.send_signal(signal.SIGTERM)
        found = b""
        if signals == 2:
            until(partial(is_deaf, server))
            process.send_signal(signal.SIGTERM)
        found += rest(stream)
        stream.close()
        assert (b"data: [DONE]" in found) == (signals == 1)
        assert process.wait(60) == 0
        assert process.stderr is not None
        process.stderr.close()


def test_the_command_shows_its_engine(talker: Path, tmp_path: Path) -> None:
    window = tmp_path / "engine"
    process, port = start_command(talker, "--sight", window)
    try:
        Running(None, port).chat("hello", max_tokens=3)  # type: ignore[arg-type]
        seen = command.call("kv", window)
        assert seen.out.startswith(f"{talker.name}, process {process.pid}\n")
        assert "text 1  ended" in seen.out
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        process.stderr.close()
    assert not window.exists()


def test_what_the_command_refuses(tmp_path: Path, talker: Path) -> None:
    for arguments, status, words in (
        ([talker, talker], 2, ["two models are called"]),
        ([talker, "--port", "99999"], 2, ["--port"]),
        ([talker, "--api-key-file", tmp_path / "no"], 1, ["no", "No such file"]),
        ([talker, "--queue", "0"], 2, ["--queue"]),
        ([talker, "-hf", "a/b"], 2, ["twice"]),
        ([talker, "--api-key", "x"], 2, ["--api-key-file"]),
        ([talker, "--jinja", "--context-shift"], 2, ["cut off a prompt"]),
        ([talker, f"b={talker}", "--sight", tmp_path / "s"], 2, ["--sight: for one model, not 2"]),
    ):
        ended = command.call("serve", *arguments)
        ended.assert_refused(status, *words)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = command.call("serve", talker, "--port", port)
        ended.assert_refused(1, f"127.0.0.1:{port}", "in use")


def test_models_that_cannot_be_opened_end_the_server(tmp_path: Path) -> None:
    ended = command.call("serve", tmp_path / "none.gguf", "--port", 0)
    assert ended.status == 1 and "none.gguf" in ended.err.splitlines()[-1]


def test_two_models_in_one_budget(tmp_path: Path) -> None:
    paths = [write_speaker(tmp_path / f"{name}.gguf", name.encode()) for name in ("ab", "ba")]
    process, port = start_command(*paths, "--memory", "1GiB")
    server = Running(None, port)  # type: ignore[arg-type]
    try:
        until(lambda: server.get("/health").status == 200)
        for name in ("ab", "ba"):
            reply = server.chat(model=name).json
            assert reply["choices"][0]["message"]["content"] == name
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        process.stderr.close()
