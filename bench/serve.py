"""What the server adds to the library: `python -m bench.serve MODEL.gguf [--only stream,health]`.

stream  an answer through the server, and the same from the library, in turns: tokens a second
        from the first token to the last; also of eight answers at once, against the engine
health  the longest wait for /health while a long prompt is read
posts   many requests at once, some of whose clients leave: how many were answered, refused with
        429 or anything else; memory of the server before and after

With --workloads instead, what users of a server wait for, also beside llama-server: see
bench/beside.py and bench/workloads.py; the binary is whichever --llama-server names.
With --soak MINUTES instead, mixed requests and clients that leave for so long: see bench/soak.py.
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import mmrt
from bench import beside, soak
from bench.serving import now, words
from bench.workloads import WORKLOADS, Sizes
from mmrt.sight.pictures.drawing import svg


@contextmanager
def served(path: str, threads: int, *options: str) -> Iterator[tuple[int, int]]:
    """`mmrt serve` in a process of its own: its port and its number."""
    command = [sys.executable, "-m", "mmrt", "serve", f"it={os.path.abspath(path)}", "--port", "0"]
    command += ["-t", str(threads), "--no-access-log", *options]
    # Not from here: for mmrt as installed.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/")
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
        if "ready:" in line:
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise RuntimeError(f"the server ended with {process.returncode}")


def ask(port: int, ids: list[int], tokens: int, **fields: Any) -> HTTPConnection:
    """A connection on which an answer has been asked for."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"prompt": ids, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **fields}
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    return connection


def through_server(port: int, ids: list[int], tokens: int) -> tuple[float, float]:
    """When the first piece of a stream came, and the last."""
    connection = ask(port, ids, tokens, stream=True)
    response = connection.getresponse()
    times = [now() for line in response if line.startswith(b"data: {")]
    connection.close()
    return times[0], times[-1]


def from_engine(
    model: mmrt.Model, texts: list[list[int]], tokens: int
) -> list[tuple[float, float]]:
    with model.engine(keep=0) as engine, ThreadPoolExecutor(len(texts)) as readers:
        handles = [engine.submit(ids, max_tokens=tokens, ignore_eos=True) for ids in texts]

        def read(handle: Any) -> tuple[float, float]:
            times = [now() for _ in handle]
            return times[0], times[-1]

        return list(readers.map(read, handles))


def rate(times: list[tuple[float, float]], tokens: int) -> float:
    """Tokens a second of all, from the first one's first to the last one's last."""
    seconds = max(last for _, last in times) - min(first for first, _ in times)
    return len(times) * (tokens - 1) / max(seconds, 1e-9)


def stream(path: str, threads: int, rounds: int, tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with served(path, threads) as (port, _), mmrt.Model(path, threads=threads) as model:
        for n in (1, 8):
            library, server = [], []
            for i in range(rounds + 1):
                texts = [words(model, 16, 100 * i + 10 * n + k) for k in range(n)]
                library.append(rate(from_engine(model, texts, tokens), tokens))
                with ThreadPoolExecutor(n) as clients:
                    made = clients.map(lambda ids: through_server(port, ids, tokens), texts)
                    server.append(rate(list(made), tokens))
            ratios = [
                b / a for a, b in zip(library[1:], server[1:], strict=True)
            ]  # the first warms
            found[f"{n} at once"] = {
                "library": statistics.median(library[1:]),
                "server": statistics.median(server[1:]),
                "server / library": statistics.median(ratios),
            }
    return found


def health(path: str, threads: int, n: int) -> dict[str, float]:
    with mmrt.Model(path, threads=1) as model:
        n = min(n, model.context - 16)
        ids = words(model, n, 7)
    with served(path, threads) as (port, _):
        started = now()
        connection = ask(port, ids, 1)
        ended = threading.Event()

        def wait() -> None:
            connection.getresponse().read()
            ended.set()

        reader = threading.Thread(target=wait)
        reader.start()
        waits = []
        while not ended.is_set():
            asked = now()
            probe = HTTPConnection("127.0.0.1", port, timeout=60)
            probe.request("GET", "/health")
            probe.getresponse().read()
            probe.close()
            waits.append(now() - asked)
            time.sleep(0.02)
        reader.join()
        seconds = now() - started
    return {
        "tokens": n,
        "seconds": seconds,
        "asked": len(waits),
        "median": statistics.median(waits),
        "worst": max(waits),
    }


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def posts(path: str, threads: int, n: int) -> dict[str, Any]:
    with mmrt.Model(path, threads=1) as model:
        texts = [words(model, 40, 1000 + i) for i in range(n)]
    seen: Counter[str] = Counter()
    draw = random.Random(1)
    leaves = {i for i in range(n) if draw.random() < 0.2}

    def post(port: int, i: int) -> None:
        try:
            connection = ask(port, texts[i], 8, stream=i in leaves)
            if i in leaves:
                connection.close()
                seen["left"] += 1
                return
            response = connection.getresponse()
            answer = json.loads(response.read())
            whole = response.status != 200 or answer["usage"]["completion_tokens"] == 8
            seen[str(response.status) if whole else "not whole"] += 1
            connection.close()
        except (OSError, HTTPException) as error:
            seen[type(error).__name__] += 1

    with served(path, threads) as (port, pid):
        post(port, 0)
        before, started = resident(pid), now()
        with ThreadPoolExecutor(100) as clients:
            list(clients.map(lambda i: post(port, i), range(1, n)))
        seconds, after = now() - started, resident(pid)
    return {"posts": n, "seconds": seconds, **seen, "resident": [before, after]}


def side_by_side(
    path: str, names: list[str], binary: str | None, rounds: int, threads: int, context: int,
    sizes: Sizes, out: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """The workloads: a table, and a plot beside `out` where there are two servers."""

    @contextmanager
    def own() -> Iterator[int]:
        with served(path, threads, "-c", str(context)) as (port, _):
            yield port

    servers: dict[str, beside.Start] = {"mmrt serve": own}
    if binary is not None:
        servers["llama-server"] = lambda: beside.llama_server(binary, path, threads, context)
    rows, second = beside.compare(servers, names, rounds, sizes)
    print(beside.table(rows))
    if out is not None and binary is not None:
        title = f"Seconds to wait, {Path(path).name}, {threads} threads"
        out.with_suffix(".svg").write_text(svg(beside.plot(title, rows)), encoding="utf-8")
    return {"rounds": rounds, "context": context, "short request alone": second, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--only", default="stream,health,posts", help="of these, some")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-n", "--tokens", type=int, default=128, help="that a stream has")
    parser.add_argument("-p", "--prompt", type=int, default=8192, help="tokens, of health")
    parser.add_argument("--posts", type=int, default=2000)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed requests for so long")
    parser.add_argument(
        "--workloads", nargs="?", const=",".join(WORKLOADS), metavar="NAMES",
        help=f"instead, of these, some: {', '.join(WORKLOADS)}",
    )  # fmt: skip
    parser.add_argument("--llama-server", metavar="PATH", help="runs this beside")
    parser.add_argument("-c", "--context", type=int, default=8192, help="of workloads")
    parser.add_argument("--words", type=float, default=1.0, help="factor of sizes of workloads")
    parser.add_argument("--time", type=float, default=1.0, help="factor of users' pauses")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there too")
    arguments = parser.parse_args()
    path, threads = arguments.model, arguments.threads
    parts: dict[str, Callable[[], Any]] = {
        "stream": lambda: stream(path, threads, arguments.rounds, arguments.tokens),
        "health": lambda: health(path, threads, arguments.prompt),
        "posts": lambda: posts(path, threads, arguments.posts),
    }
    found: dict[str, Any] = {"model": Path(path).name}
    found["machine"] = f"{mmrt.cpu_info().model}, {threads} threads, {platform.release()}"
    if arguments.soak:
        with served(path, threads, *soak.OPTIONS) as (port, pid):
            found["soak"] = soak.run(port, pid, arguments.soak)
    elif arguments.workloads:
        sizes = Sizes(arguments.words, arguments.time)
        found["workloads"] = side_by_side(
            path, arguments.workloads.split(","), arguments.llama_server, arguments.rounds,
            threads, arguments.context, sizes, arguments.json,
        )  # fmt: skip
    else:
        found |= {name: parts[name]() for name in arguments.only.split(",")}
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.soak and found["soak"]["problems"]:
        sys.exit("the server is not what it was: " + "; ".join(found["soak"]["problems"]))


if __name__ == "__main__":
    main()
