"""Mixed requests to a server for a long time, and what they leave behind: `python -m bench.serve
MODEL.gguf --soak MINUTES`.

Clients ask in all ways that there are, of a fixed set of prompts, and leave at any moment: in the
head, in the body, in the queue, in the prompt, in a stream. File descriptors, threads, anonymous
memory and pages of keys and values of the idle server are to be at the end what they were after a
warm-up, in which all was asked for once and more.
"""

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from bench.serving import now

# Options of the server: what may be kept is reached in the warm-up.
OPTIONS = ("--max-kept", "20", "--queue", "12")

_CLIENTS = 16  # more than fit into the queue
_PROMPTS = [f"{i} " + "What then? " * (1 + i % 7) for i in range(12)]
_TOKENS = 24
_WARM_UP = 0.25  # of the time
_SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
_TIMEOUT = 120.0  # seconds: nothing may take longer

# What memory may grow by, beside which a leak of an hour would be seen: an engine remembers what
# its last texts did, which takes 3 MiB in the end.
_POOLED = 3  # threads that the server's pools may still begin
_SLACK_BYTES = 4 << 20
_SLACK = 0.03


class State(NamedTuple):
    """Of an idle server. pages: bytes of keys and values."""

    descriptors: int
    threads: int
    anonymous: int
    pages: int


def run(port: int, pid: int, minutes: float) -> dict[str, Any]:
    """What came of it. `problems` says what is not as it was."""
    seen: Counter[str] = Counter()
    seconds = 60 * minutes
    _ask_for(port, seconds * _WARM_UP, seen, every=True)
    before = _idle(port, pid)
    asked = sum(seen.values())
    _ask_for(port, seconds * (1 - _WARM_UP), seen)
    after = _idle(port, pid)
    return {
        "minutes": minutes,
        "requests": {"warm-up": asked, "all": sum(seen.values()), **dict(sorted(seen.items()))},
        "before": before._asdict(),
        "after": after._asdict(),
        "problems": [*_problems(before, after), *_wrong(seen)],
    }


def _problems(before: State, after: State) -> Iterator[str]:
    if after.descriptors != before.descriptors:
        yield f"descriptors: {before.descriptors} before, {after.descriptors} after"
    if after.threads > before.threads + _POOLED:
        yield f"threads: {before.threads} before, {after.threads} after"
    for name in ("anonymous", "pages"):
        most = getattr(before, name) * (1 + _SLACK) + _SLACK_BYTES
        if getattr(after, name) > most:
            yield f"{name}: {getattr(before, name)} bytes before, {getattr(after, name)} after"


def _wrong(seen: Counter[str]) -> Iterator[str]:
    good = ("200", "400", "404", "405", "413", "415", "429", "left")
    for what, n in seen.items():
        if not what.endswith(good):
            yield f"{what}: {n} times"


# ---- the server's state ----


def _idle(port: int, pid: int) -> State:
    """When nothing is under way any more."""
    deadline = now() + _TIMEOUT
    while any(_metric(port, f"vllm:num_requests_{what}") for what in ("running", "waiting")):
        if now() > deadline:
            raise RuntimeError("requests go on whose clients have left")
        time.sleep(0.2)
    time.sleep(2.5)  # for which connections linger
    own = Path(f"/proc/{pid}")
    status = (own / "status").read_text()
    anonymous = int(status.partition("RssAnon:")[2].split()[0]) << 10
    descriptors, threads = (len(os.listdir(own / name)) for name in ("fd", "task"))
    return State(descriptors, threads, anonymous, int(_metric(port, "mmrt:kv_bytes")))


def _metric(port: int, name: str) -> float:
    text = _post(port, "GET", "/metrics").decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
    )


# ---- clients ----


def _ask_for(port: int, seconds: float, seen: Counter[str], every: bool = False) -> None:
    """Asks for so long. every: first each prompt in each way, whole."""
    ends, lock = now() + seconds, threading.Lock()
    todo = [(way, i) for way in _WAYS for i in range(len(_PROMPTS))] if every else []

    def client(number: int) -> None:
        draw = random.Random(number)
        while todo or now() < ends:
            with lock:
                way, i = todo.pop() if todo else (draw.choice(_WAYS), draw.randrange(len(_PROMPTS)))
            leaves = not todo and draw.random() < 0.3
            path, body = way(i)
            try:
                what = _leave(port, path, body, draw) if leaves else _whole(port, path, body)
            except (OSError, HTTPException, ValueError) as error:
                what = type(error).__name__
            with lock:
                seen[f"{path} {what}"] += 1

    clients = [threading.Thread(target=client, args=(i,)) for i in range(_CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()


def _post(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().read()
    finally:
        connection.close()


def _whole(port: int, path: str, body: bytes) -> str:
    """Asks and reads all: the status, or what is wrong with the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.headers["Content-Type"] == "application/json":
        json.loads(answer)
    elif b'"error":{' in answer:
        return "an error in a stream"
    return str(response.status)


def _leave(port: int, path: str, body: bytes, draw: random.Random) -> str:
    """Asks, and leaves at any moment."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = head.encode() + body
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as connection:
        if draw.random() < 0.3:
            sent = sent[: draw.randrange(len(sent))]
        connection.sendall(sent)
        if draw.random() < 0.3:
            connection.shutdown(socket.SHUT_WR)
        time.sleep(draw.choice((0.0, 0.001, 0.01, 0.1)))
        connection.settimeout(0.05)
        with suppress(TimeoutError):
            connection.recv(draw.choice((1, 300, 5000)))
    return "left"


# ---- ways to ask ----


def _body(**fields: Any) -> bytes:
    return json.dumps({"temperature": 0, **fields}).encode()


def _messages(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": _PROMPTS[i]}]


def _chat(**fields: Any) -> Callable[[int], tuple[str, bytes]]:
    def way(i: int) -> tuple[str, bytes]:
        body = {"messages": _messages(i), "max_tokens": _TOKENS, **fields}
        return "/v1/chat/completions", _body(**body)

    return way


def _completion(i: int) -> tuple[str, bytes]:
    return "/v1/completions", _body(prompt=_PROMPTS[i], max_tokens=_TOKENS, n=2, logprobs=2)


def _scores(i: int) -> tuple[str, bytes]:
    return "/v1/completions", _body(prompt=_PROMPTS[i], max_tokens=0, echo=True, logprobs=1)


def _response(i: int) -> tuple[str, bytes]:
    return "/v1/responses", _body(input=_PROMPTS[i], max_output_tokens=_TOKENS, stream=bool(i % 2))


def _message(i: int) -> tuple[str, bytes]:
    return "/v1/messages", _body(messages=_messages(i), max_tokens=_TOKENS, stream=bool(i % 2))


def _tokens(i: int) -> tuple[str, bytes]:
    return "/tokenize", _body(content=_PROMPTS[i])


def _nonsense(i: int) -> tuple[str, bytes]:
    bodies = [b"{", b"[" * 1000, b'{"messages": 5}', b"\xff", b'{"prompt": "x", "n": 99}', b""]
    return "/v1/completions", bodies[i % len(bodies)]


def _too_long(i: int) -> tuple[str, bytes]:
    return "/v1/completions", _body(prompt=[5] * 20_000, max_tokens=1)


_WAYS = [
    _chat(),
    _chat(stream=True),
    _chat(stream=True, ignore_eos=True),
    _chat(response_format={"type": "json_schema", "json_schema": {"schema": _SCHEMA}}),
    _chat(priority=1),
    *(_completion, _scores, _response, _message, _tokens, _nonsense, _too_long),
]
