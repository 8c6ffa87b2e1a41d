"""Keys and values on the disk: `python -m bench.kept MODEL.gguf [--only restart,swap,room]`.

restart  a process reads a prompt with kv_dir and is killed; how long the next one takes to the
         first token
swap     texts of which only some have room at once: the time until all have ended, where what gives
         its memory up is always saved, never, or whichever the engine takes for quicker
room     contexts of three times the room, each way: in a process of its own, which a memory cgroup
         bounds where one can be made (as root), page cache and all: how many texts are whole, the
         most that their keys and values took, and that the process did; processes killed

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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mmrt
from bench.cgroups import MemoryCgroup, NoCgroup
from bench.cold_start import evict
from bench.serving import now, words
from mmrt.core.state import Cache
from mmrt.memory.sizes import parse_size
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
        before = set(Path(self.directory).glob("*.kv"))
        super().save(cache, salt, ends)
        for file in set(Path(self.directory).glob("*.kv")) - before:
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


# ---- room ----

_BESIDE = 192 << 20  # what a process takes beside weights, keys and values
_WRITES = 64

WRITER = """
import json, sys, threading, mmrt
options, kv, has_disk, prompts, writes = json.load(sys.stdin)
most, ended = 0, threading.Event()
with mmrt.Model(**options) as model, model.engine(kv=kv, keep=0) as engine:
    def watch():
        global most
        while not ended.wait(0.002):
            most = max(most, model.store.nbytes)
    watcher = threading.Thread(target=watch)
    watcher.start()
    engine._mover._has_disk &= has_disk
    handles = [engine.submit(ids, max_tokens=writes, ignore_eos=True) for ids in prompts]
    texts = [handle.text() for handle in handles]
    ended.set()
    watcher.join()
print(json.dumps({
    "whole": sum(text.tokens == writes for text in texts),
    "gave_memory_up": sum(handle.parked for handle in handles),
    "most_kv": most,
}))
"""


def room(path: str, n: int, texts: int, threads: int, memory: str | None) -> dict[str, Any]:
    """Texts of n tokens that write 64 each; memory: of the process; None: what it needs at least
    for all weights and a third of the texts."""
    path = os.path.abspath(path)
    with mmrt.Model(path, threads=1) as model:
        pages = -(-(n + _WRITES) // 32) * texts
        kv = -(-pages // 3) * model.store.page_bytes
        prompts = [words(model, n, 300 + i) for i in range(texts)]
        weights = sum(tensor.nbytes for tensor in model.program.weights)
    limit = parse_size(memory) if memory else weights + kv + _BESIDE
    found: dict[str, Any] = {"texts": texts, "tokens": n + _WRITES, "kv": kv, "limit": limit}
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as place:
        for way, has_disk in (("kv_dir", True), ("swap", True), ("read again", False)):
            options = {"path": path, "threads": threads, "memory": limit}
            options["context"] = max(n + _WRITES, 64)
            options |= {"kv_dir": place} if way == "kv_dir" else {}
            given = json.dumps([options, kv, has_disk, prompts, _WRITES])
            evict(path)  # for its pages to be charged to the process
            found[way] = bounded(limit, [sys.executable, "-c", WRITER], given)
    return found


def bounded(limit: int, command: list[str], given: str) -> dict[str, Any]:
    """What the command prints, run with so much memory, where that can be had."""
    started = now()
    with ExitStack() as stack:
        group = None
        with suppress(NoCgroup):
            group = stack.enter_context(MemoryCgroup(limit))
            command = group.command(command)
        ran = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, cwd="/")
        found: dict[str, Any] = json.loads(ran.stdout) if ran.returncode == 0 else {"whole": 0}
        if group is not None:
            found |= {"peak": group.peak, "kills": group.kills}
    return {**found, "ended": ran.returncode, "seconds": now() - started}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--only", default="restart,swap,room", help="of these, some")
    parser.add_argument("-n", "--tokens", type=int, default=2048, help="of each text")
    parser.add_argument("--texts", type=int, default=6, help="of swap and room")
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
    if "room" in which:
        found["room"] = room(
            arguments.model, arguments.tokens, arguments.texts, arguments.threads, arguments.memory
        )
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
