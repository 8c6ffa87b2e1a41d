"""What the server adds to the library: `python -m bench.serve MODEL.gguf [--only stream,health]`.

stream  an answer through the server, and the same from the library, in turns: tokens a second
        from the first token to the last; also of 4, 8 and 16 answers at once, against the engine,
        while all are being written; with --llama-server PATH, also through that one
health  the longest wait for /health while a long prompt is read
posts   many requests at once, some of whose clients leave: how many were answered, refused with
        429 or anything else; memory of the server before and after

With --workloads instead, what users of a server wait for, also beside llama-server: see
bench/beside.py and bench/workloads.py.
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
from contextlib import ExitStack, contextmanager
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


def through_server(port: int, ids: list[int], tokens: int) -> list[float]:
    """When the pieces of a stream came."""
    connection = ask(port, ids, tokens, stream=True)
    response = connection.getresponse()
    times = [now() for line in response if line.startswith(b"data: {")]
    connection.close()
    return times


def from_engine(model: mmrt.Model, texts: list[list[int]], tokens: int) -> list[list[float]]:
    with model.engine(keep=0) as engine, ThreadPoolExecutor(len(texts)) as readers:
        handles = [
            engine.submit(ids, max_tokens=tokens, ignore_eos=True, temperature=0) for ids in texts
        ]

        def read(handle: Any) -> list[float]:
            return [now() for _ in handle]

        return list(readers.map(read, handles))


def rate(texts: list[list[float]], tokens: int) -> float:
    """Tokens a second of all, while all are being written: from the last one's first piece to the
    first one's last. Each has `tokens` in all of its pieces, whose times are given."""
    begin, end = max(times[0] for times in texts), min(times[-1] for times in texts)
    written = sum(
        sum(begin < time <= end for time in times) * tokens / len(times) for times in texts
    )
    return written / max(end - begin, 1e-9)


AT_ONCE = (1, 4, 8, 16)


def stream(
    path: str, threads: int, rounds: int, tokens: int, binary: str | None = None
) -> dict[str, Any]:
    """binary: of llama-server, if that is to be measured too."""
    rates: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        model = stack.enter_context(mmrt.Model(path, threads=threads))
        ports = {"server": stack.enter_context(served(path, threads))[0]}
        if binary is not None:
            context = max(512, 2 * tokens)
            other = beside.llama_server(binary, path, threads, context, slots=max(AT_ONCE))
            ports["llama-server"] = stack.enter_context(other)
        for i in range(rounds + 1):
            for n in AT_ONCE:
                texts = [words(model, 16, 1000 * i + 20 * n + k) for k in range(n)]
                made = {"library": rate(from_engine(model, texts, tokens), tokens)}
                made |= {name: at_once(port, texts, tokens) for name, port in ports.items()}
                for name, one in made.items() if i else ():  # the first round warms
                    rates.setdefault(name, {}).setdefault(n, []).append(one)
    return {f"{n} at once": beside_each_other(rates, n) for n in AT_ONCE}


def at_once(port: int, texts: list[list[int]], tokens: int) -> float:
    with ThreadPoolExecutor(len(texts)) as clients:
        made = clients.map(lambda ids: through_server(port, ids, tokens), texts)
        return rate(list(made), tokens)


def beside_each_other(rates: dict[str, dict[int, list[float]]], n: int) -> dict[str, float]:
    """Medians of n answers at once, and of their ratios in the same round."""

    def ratio(over: list[float], under: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(over, under, strict=True))

    found = {name: statistics.median(of[n]) for name, of in rates.items()}
    for name, of in rates.items():
        found[f"{name} / one"] = ratio(of[n], of[1])
    for name in ("library", "llama-server"):
        if name in rates:
            found[f"server / {name}"] = ratio(rates["server"][n], rates[name][n])
    if "llama-server" in rates:
        found["library / llama-server"] = ratio(rates["library"][n], rates["llama-server"][n])
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
        "stream": lambda: stream(
            path, threads, arguments.rounds, arguments.tokens, arguments.llama_server
        ),
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
