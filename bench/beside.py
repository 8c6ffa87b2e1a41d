"""`mmrt serve` beside llama-server, under the workloads of workloads.py, in turns in one run:

    python -m bench.serve MODEL.gguf --workloads turns,mixed --llama-server PATH --json FILE.json

For each workload and round each server is started, asked, and ended. Both answer the same chats at
temperature 0, each answer of as many tokens as were asked for. The plot, FILE.svg, shows the times
of mmrt against those of llama-server.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from typing import Any, NamedTuple

from bench import bars
from bench.serving import now
from bench.workloads import WORKLOADS, Sizes, Talk, Turn, short
from mmrt.sight.pictures.drawing import Drawing

Start = Callable[[], AbstractContextManager[int]]

# Texts that are under way at once.
_SLOTS = 8


class Told(NamedTuple):
    """What became of a request. Times in seconds; evaluated: tokens of its prompt that were not in
    memory. error: "" if there was none."""

    kind: str
    first: float = 0.0
    whole: float = 0.0
    gap: float = 0.0  # the worst between two tokens
    tokens: int = 0
    prompt: int = 0
    evaluated: int = 0
    error: str = ""


@contextmanager
def llama_server(
    binary: str, path: str, threads: int, context: int, slots: int = _SLOTS
) -> Iterator[int]:
    """With all that it has for shared prompts, and a slot for each text, none of which has less
    than the whole context; the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [binary, "-m", os.path.abspath(path), "--port", str(port), "-t", str(threads)]
    command += ["-tb", str(threads), "-c", str(context * slots), "-np", str(slots)]
    command += ["--kv-unified", "--cache-ram", "8192", "--swa-full", "--jinja", "--no-ui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise RuntimeError(f"{binary} ended with {process.returncode}")
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def ask(port: int, messages: Sequence[dict[str, str]], turn: Turn) -> tuple[Told, str]:
    """A streamed answer, and its text."""
    body: dict[str, Any] = {"messages": messages, "max_tokens": turn.tokens, "ignore_eos": True}
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    if turn.answers > 1:
        body |= {"n": turn.answers, "temperature": 1, "seed": 1}
    connection = HTTPConnection("127.0.0.1", port, timeout=900)
    started, times, text, usages = now(), list[float](), "", list[dict[str, Any]]()
    try:
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
        response = connection.getresponse()
        if response.status != 200:
            return Told(turn.kind, error=f"{response.status}: {response.read()[:200]!r}"), ""
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return Told(turn.kind, error=str(event["error"])[:200]), ""
            if event.get("usage"):  # llama-server tells of each answer by itself
                usages.append(event["usage"])
            said = [choice["delta"].get("content") for choice in event["choices"]]
            if any(said):
                times.append(now())
                text += said[0] or ""
    except (OSError, HTTPException) as error:
        return Told(turn.kind, error=type(error).__name__), ""
    finally:
        connection.close()
    if not times or not usages:
        return Told(turn.kind, error="an empty answer, or no usage"), ""
    usage = usages[0]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    gap = max((b - a for a, b in pairwise(times)), default=0.0)
    prompt = usage["prompt_tokens"]
    told = Told(turn.kind, times[0] - started, now() - started, gap)
    told = told._replace(tokens=sum(usage["completion_tokens"] for usage in usages), prompt=prompt)
    return told._replace(evaluated=prompt - cached), text


def run(port: int, talks: Sequence[Talk]) -> dict[str, float]:
    """All talks, each when it is time; figures of them together."""
    started = now()

    def talk(one: Talk) -> list[Told]:
        messages: list[dict[str, str]] = []
        found = []
        time.sleep(max(started + one.at - now(), 0))
        for turn in one.turns:
            time.sleep(turn.pause)
            messages.append({"role": "user", "content": turn.text})
            told, text = ask(port, messages, turn)
            found.append(told)
            messages.append({"role": "assistant", "content": text})
        return found

    with ThreadPoolExecutor(len(talks)) as clients:
        told = [one for found in clients.map(talk, talks) for one in found]
    return figures(told, now() - started)


def figures(told: Sequence[Told], seconds: float) -> dict[str, float]:
    """Times in seconds: medians, and the 95th of 100."""
    good = [one for one in told if not one.error]
    for error in sorted({one.error for one in told if one.error}):
        print(f"  failed: {error}")
    found: dict[str, float] = {"requests": len(told), "failed": len(told) - len(good)}
    if not good:
        return found
    for kind in sorted({one.kind for one in good}):
        of_kind, name = [one for one in good if one.kind == kind], f"{kind} " if kind else ""
        found[f"{name}first token"] = statistics.median(one.first for one in of_kind)
        found[f"{name}first token, p95"] = _late(one.first for one in of_kind)
        found[f"{name}whole"] = statistics.median(one.whole for one in of_kind)
        found[f"{name}whole, p95"] = _late(one.whole for one in of_kind)
    found["worst gap, p95"] = _late(one.gap for one in good)
    found["tokens/s"] = sum(one.tokens for one in good) / seconds
    found["prompt tokens"] = sum(one.prompt for one in good)
    found["evaluated"] = sum(one.evaluated for one in good)
    return found


def _late(times: Iterator[float]) -> float:
    ordered = sorted(times)
    return ordered[int(0.95 * (len(ordered) - 1))]


Rows = dict[str, dict[str, dict[str, float]]]


def compare(
    servers: dict[str, Start], names: Sequence[str], rounds: int, sizes: Sizes
) -> tuple[Rows, float]:
    """For each workload, of each server the medians over all rounds. Also how long a short request
    takes the first server alone, in seconds, by which the rates of all are set."""
    with next(iter(servers.values()))() as port:
        ask(port, [{"role": "user", "content": "Hello"}], Turn(0.0, "", 2))  # warms
        turn = short(sizes, 5)
        second = ask(port, [{"role": "user", "content": turn.text}], turn)[0].whole
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(rounds):
        for workload in names:
            talks = WORKLOADS[workload](sizes, seed, second)
            for server, start in servers.items():
                with start() as port:
                    ask(port, [{"role": "user", "content": "Hello"}], Turn(0.0, "", 2))
                    made = run(port, talks)
                samples.setdefault(workload, {}).setdefault(server, []).append(made)
    return {
        workload: {server: _medians(made) for server, made in of.items()}
        for workload, of in samples.items()
    }, second


def _medians(made: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in made for name in one)
    return {name: statistics.median(one[name] for one in made if name in one) for name in names}


def table(rows: Rows) -> str:
    servers = list(next(iter(rows.values())))
    lines = ["| workload | | " + " | ".join(servers) + " |", "|---|---|" + "---:|" * len(servers)]
    for workload, of in rows.items():
        for name in dict.fromkeys(name for figures in of.values() for name in figures):
            cells = [f"{of[server][name]:.4g}" if name in of[server] else "" for server in servers]
            lines.append(f"| {workload} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_TIMES = ("first token", "whole", "worst gap, p95")


def plot(title: str, rows: Rows) -> Drawing:
    """Times against those of the last server: what is left of the line is shorter."""
    groups = []
    for workload, of in rows.items():
        last = list(of.values())[-1]
        for name in (name for name in last if name.endswith(_TIMES)):
            bars_ = [
                bars.Bar(server, found[name] / last[name], f"{found[name]:.3g} s")
                for server, found in of.items()
                if last[name] and name in found
            ]
            groups.append(bars.Group(f"{workload}: {name}", bars_))
    return bars.draw(title, groups, limit=list(next(iter(rows.values())))[-1])
