"""Keys and values on the disk: `python -m bench.kept MODEL.gguf [--only restart,swap]`.

restart  a process reads a prompt with kv_dir and is killed; how long the next one takes to the
         first token
swap     texts of which only some have room at once: the time until all have ended, where what gives
         its memory up is always saved, never, or whichever the engine takes for quicker

--evict has files leave the page cache as soon as they are written, as they do where memory is
wanted; with --read-rate, as root on cgroups of version 1, the disk is slower. Four regimes:

    python -m bench.kept MODEL.gguf --only swap --evict                         the disk as it is
    python -m bench.kept MODEL.gguf --only swap --evict --read-rate 2000000     2 MB a second
    python -m bench.kept MODEL.gguf --only swap --evict -n 48 --texts 12        short texts
    python -m bench.kept MODEL.gguf --only swap --evict --memory SIZE           weights streamed
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmrt
from bench.serving import now, words
from mmrt.core.state import Cache
from mmrt.run.swap import Swap
from mmrt.run.worth import Worth

# ---- restart ----

READER = """
import json, os, signal, sys, time, mmrt
options, ids = json.load(sys.stdin)
with mmrt.Model(**options) as model:
    with model.engine() as engine:
        engine.submit(ids, max_tokens=1).text()
        while model.saved.length(ids) < len(ids) // 256 * 256:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def restart(path: str, n: int, threads: int, memory: str | None, evict: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": n}
    path = os.path.abspath(path)
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as place:
        options: dict[str, Any] = {"path": path, "threads": threads, "memory": memory}
        options["kv_dir"] = place
        with mmrt.Model(path) as model:
            ids = words(model, n, 1)
        started = now()
        given = json.dumps([options, ids])
        child = [sys.executable, "-c", READER]
        killed = subprocess.run(child, input=given, text=True, cwd="/")  # for mmrt as installed
        if killed.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the reader ended by itself: {killed.returncode}")
        found["first_process_seconds"] = now() - started
        files = list(Path(place).rglob("*.kv"))
        found["bytes"] = sum(file.stat().st_blocks * 512 for file in files)
        if evict:
            for file in files:
                drop(file)
        with mmrt.Model(**options) as model:
            _ = model.tokenizer
            model.generate(words(model, 8, 2), max_tokens=2)  # its weights are in memory
            before = anonymous_bytes()
            started = now()
            with model.engine() as engine:
                handle = engine.submit(ids, max_tokens=16, ignore_eos=True)
                next(handle)
                found["first_token_seconds"] = now() - started
                handle.text()
                found["cached_tokens"] = handle.cached_tokens
                found["anonymous_bytes"] = anonymous_bytes() - before
                found["mapped_bytes"] = model.store.mapped_nbytes
    return found


def drop(file: Path) -> None:
    """Out of the page cache."""
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0


# ---- swap ----


class Always(Worth):
    """No question."""

    def saving(self, n_bytes: int, seconds: float, chance: float) -> bool:
        return True

    def loading(self, n_bytes: int, seconds: float | None) -> bool:
        return True


class Evicting(Swap):
    """Files that are not in memory once they are written."""

    def save(self, cache: Cache, salt: str = "", ends: bool = True) -> None:
        super().save(cache, salt, ends)
        for file in Path(self.directory).glob("*.kv"):
            drop(file)


def swap(model: mmrt.Model, policy: str, evict: bool, n: int, texts: int, seed: int) -> float:
    """Seconds until all texts of n tokens have written 64, a third of which has room."""
    page = model.store.page_bytes
    room = max((n + 64) // 32 * texts // 3, (n + 64) // 32 + 4) * page
    with model.engine(kv=room, keep=0) as engine:
        engine.submit(words(model, 64, seed + 99), max_tokens=8, ignore_eos=True).text()
        files = Evicting(model.store) if evict else Swap(model.store)
        engine._mover._files = engine._mover._swap = files
        if policy == "save":
            files.worth = Always()
        elif policy == "read again":
            engine._mover._files, engine._mover._has_disk = None, False
        started = now()
        handles = [
            engine.submit(words(model, n, seed + i), max_tokens=64, ignore_eos=True)
            for i in range(texts)
        ]
        for handle in handles:
            handle.text()
        seconds = now() - started
    return seconds


@contextmanager
def reading_at(rate: int | None, path: str) -> Iterator[None]:
    """The process in a cgroup that reads no faster from the disk that the file is on."""
    if rate is None:
        yield
        return
    device = os.stat(path).st_dev
    group = Path("/sys/fs/cgroup/blkio") / f"mmrt-bench-{os.getpid()}"
    group.mkdir()
    try:
        limit = f"{os.major(device)}:{os.minor(device)} {rate}"
        (group / "blkio.throttle.read_bps_device").write_text(limit)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        time.sleep(0.1)
        group.rmdir()


def place_of(model: mmrt.Model) -> str:
    """Where texts are saved that give their memory up."""
    files = Swap(model.store)
    files.close()
    return os.path.dirname(os.path.dirname(files.directory))


POLICIES = ("save", "read again", "quicker")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--only", default="restart,swap", help="of these, some")
    parser.add_argument("-n", "--tokens", type=int, default=2048, help="of each text")
    parser.add_argument("--texts", type=int, default=6, help="of swap")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--memory", metavar="SIZE", help="as of mmrt.Model")
    parser.add_argument("--evict", action="store_true")
    parser.add_argument("--read-rate", type=int, metavar="BYTES", help="a second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there too")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"model": Path(arguments.model).name}
    found["machine"] = f"{mmrt.cpu_info().model}, {arguments.threads} threads, {platform.release()}"
    which = arguments.only.split(",")
    if "restart" in which:
        found["restart"] = restart(
            arguments.model, arguments.tokens, arguments.threads, arguments.memory, arguments.evict
        )
    if "swap" in which:
        options = {"threads": arguments.threads, "memory": arguments.memory}
        with mmrt.Model(arguments.model, **options) as model:
            taken: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            with reading_at(arguments.read_rate, place_of(model)):
                for i in range(arguments.rounds):
                    for policy in POLICIES:
                        seconds = swap(
                            model,
                            policy,
                            arguments.evict,
                            arguments.tokens,
                            arguments.texts,
                            50 * i,
                        )
                        taken[policy].append(seconds)
        medians = {policy: statistics.median(made) for policy, made in taken.items()}
        medians["quicker / better"] = medians["quicker"] / min(
            medians["save"], medians["read again"]
        )
        found["swap"] = medians
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
