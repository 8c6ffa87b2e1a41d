"""`mmrt bench`: how fast a model reads and writes, and what it costs in memory and I/O."""

import argparse
import random
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrt import __version__
from mmrt.cli.inspect import summary
from mmrt.cli.options import (
    UsageError,
    add_model_arguments,
    counts,
    fetched_model,
    one_model,
    open_model,
    positive,
)
from mmrt.cli.output import Update, progress, to_json
from mmrt.core import kernels
from mmrt.core.streaming import Streaming
from mmrt.errors import MmrtError
from mmrt.files import formats
from mmrt.memory import counters
from mmrt.memory.sizes import human

if TYPE_CHECKING:
    from mmrt.run.model import Model
    from mmrt.run.sequence import Sequence

DESCRIPTION = """\
Measures two things, as llama-bench does:
  ppP  prefill: one step over P tokens, on an empty sequence
  tgN  generation: N steps of one token each, from an empty sequence
and with a depth D both after D tokens that are read before and not counted.
Lists (-p 512,128) measure each number, at each depth.
The tokens are random, the same in every repetition. Nothing is sampled, so
that the figures are the model's alone. A first run is not counted. Faults and
bytes read are sums over the repetitions; peak PSS is the highest of samples
taken after each; a cold run evicts the file from memory before each.\
"""

_EVICTED = 0.01  # at most this part of a cold file may still be in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    add_model_arguments(parser)
    parser.add_argument(
        "-p", "--n-prompt", type=counts, default=[512], metavar="P,...",
        help="tokens of prefill (default: 512; 0: leave it out)",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--n-gen", type=counts, default=[128], metavar="N,...",
        help="tokens of generation (default: 128; 0: leave it out)",
    )  # fmt: skip
    parser.add_argument(
        "-d", "--n-depth", type=counts, default=[0], metavar="D,...",
        help="tokens that the sequence has before (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "-r", "--repetitions", type=positive, default=5, metavar="R",
        help="times that each is measured (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--cold", action="store_true", help="evict the file before each repetition")
    parser.add_argument(
        "-o", "--output", choices=("md", "json"), default="md", help="format (default: md)"
    )


class _Test(NamedTuple):
    n_prompt: int
    n_gen: int
    n_depth: int

    def __str__(self) -> str:
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_gen


class _Sample(NamedTuple):
    ns: int
    reads: counters.Reads
    memory: counters.Footprint
    streaming: Streaming | None  # what this sample did


def run(arguments: argparse.Namespace) -> None:
    tests = [
        _Test(n_prompt, n_gen, depth)
        for depth in arguments.n_depth
        for n_prompt, n_gen in [*((p, 0) for p in arguments.n_prompt),
                                *((0, n) for n in arguments.n_gen)]
        if n_prompt or n_gen
    ]  # fmt: skip
    if not tests:
        raise UsageError("nothing to measure: -p and -n are both 0")
    if any(arguments.n_depth) and arguments.cold:
        raise UsageError("the tokens before, of -d, would warm what --cold is to measure")
    path = one_model(arguments) or fetched_model(arguments)
    with formats.open(path) as file:
        about = _about(file)
    rows = []
    for test in tests:
        with progress(str(test)) as update:
            rows.append(about | _measure(test, path, arguments, update))
    print(to_json(rows, 2) if arguments.output == "json" else _markdown(rows))


def _about(file: formats.TensorFile) -> dict[str, Any]:
    """What is the same in every row, under llama-bench's names."""
    said = summary(file)
    kind = [said["architecture"], file.metadata.get("general.size_label"), *said["types"]]
    return {
        "build_commit": f"mmrt {__version__}",
        "build_number": 0,
        "cpu_info": kernels.cpu_info().model,
        "model_filename": file.path,
        "model_type": " ".join(str(word) for word in kind[:3] if word),
        "model_size": file.nbytes,
        "model_n_params": said["parameters"],
    }


def _measure(
    test: _Test, path: str, arguments: argparse.Namespace, update: Update
) -> dict[str, Any]:
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    repetitions = arguments.repetitions
    samples = []
    if arguments.cold:
        for done in range(repetitions):
            update(done, repetitions)
            # Opened anew each time: pages that a model has mapped cannot be evicted.
            _evict(path)
            with open_model(path, arguments) as model, model.sequence() as sequence:
                samples.append(_sample(model, sequence, test))
                settings = _settings(model, arguments)
    else:
        with open_model(path, arguments) as model, model.sequence() as sequence:
            if test.n_depth:
                sequence.extend(_tokens(model, test.n_depth))
            for done in range(repetitions + 1):
                update(done, repetitions + 1)
                with sequence.fork() as text:  # some models cannot go back to a depth
                    samples.append(_sample(model, text, test))
            del samples[0]  # the warm-up
            settings = _settings(model, arguments)
    return (
        settings
        | {
            "n_prompt": test.n_prompt,
            "n_gen": test.n_gen,
            "n_depth": test.n_depth,
            "test_time": began,
        }
        | _speed(test, samples)
        | {"cache_state": "cold" if arguments.cold else "warm"}
        | _cost(samples)
        | _streaming(samples)
    )


def _settings(model: "Model", arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "n_threads": model.threads,
        "isa": model.isa,
        "policy": arguments.policy,
        "type_k": arguments.cache_type_k,
        "type_v": arguments.cache_type_v,
    }


def _evict(path: str) -> None:
    """Drops the file from memory. Raises MmrtError where that did not work: a figure from a
    half-warm file would be worth nothing.
    """
    with formats.open(path) as file:
        left = file.evict().after.fraction
    if left > _EVICTED:
        raise MmrtError(f"cannot evict {path}: {left:.0%} of it stays in memory")


def _tokens(model: "Model", n: int) -> list[int]:
    draw = random.Random(0)
    return [draw.randrange(model.vocab_size) for _ in range(n)]


def _sample(model: "Model", sequence: "Sequence", test: _Test) -> _Sample:
    tokens = _tokens(model, test.n_tokens)
    streamed, before = model.streaming, counters.reads()
    started = time.perf_counter_ns()
    if test.n_prompt:
        sequence.extend(tokens)
    else:
        for token in tokens:
            sequence.extend([token])
    ns = time.perf_counter_ns() - started
    reads, now = counters.reads() - before, model.streaming
    done = now - streamed if now and streamed else None
    return _Sample(ns, reads, counters.footprint(), done)


def _speed(test: _Test, samples: list[_Sample]) -> dict[str, Any]:
    ns = [sample.ns for sample in samples]
    rates = [test.n_tokens / (n * 1e-9) for n in ns]
    several = len(samples) > 1
    return {
        "avg_ns": round(statistics.fmean(ns)),
        "stddev_ns": round(statistics.stdev(ns)) if several else 0,
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": statistics.stdev(rates) if several else 0.0,
        "samples_ns": ns,
        "samples_ts": rates,
    }


def _cost(samples: list[_Sample]) -> dict[str, Any]:
    """Faults and reads of all samples together; memory at the last of them, but the highest PSS."""
    n_bytes = [sample.reads.read_bytes for sample in samples]
    pss = [sample.memory.pss for sample in samples]
    last = samples[-1].memory
    return {
        "majflt": sum(sample.reads.major_faults for sample in samples),
        "minflt": sum(sample.reads.minor_faults for sample in samples),
        "read_bytes": None if None in n_bytes else sum(filter(None, n_bytes)),
        "peak_rss": last.peak_rss,
        "rss_anon": last.rss_anon,
        "rss_file": last.rss_file,
        "page_tables": last.page_tables,
        "peak_pss": max(filter(None, pss), default=None),
        "memory_limit": counters.memory_limit(),
    }


def _streaming(samples: list[_Sample]) -> dict[str, Any]:
    """Of all samples together; nothing is streamed where all weights may stay in memory."""
    done = [sample.streaming for sample in samples if sample.streaming]
    stalled, busy = sum(s.stall_seconds for s in done), sum(s.busy_seconds for s in done)
    steps = sum(s.steps for s in done)
    last = done[-1] if done else None
    return {
        "reader": last.reader if last else None,
        "kept_share": last.kept / (last.kept + last.streamed) if last else 1.0,
        "streamed_bytes_per_step": sum(s.read for s in done) / steps if steps else 0,
        "stall_ns": round(1e9 * stalled),
        "overlap": 1 - min(stalled / busy, 1) if busy else 1.0,
        "experts_wanted": sum(s.experts.wanted for s in done),
        "experts_found": sum(s.experts.found for s in done),
        "expert_slots": last.experts.slots if last else 0,
        "expert_matrices_read": sum(s.experts.read_units for s in done),
        "expert_bytes_read": sum(s.experts.read for s in done),
        "expert_stall_ns": round(1e9 * sum(s.experts.stall_seconds for s in done)),
        "cgroup_peak": counters.cgroup_peak(),
    }


def _markdown(rows: list[dict[str, Any]]) -> str:
    table = [
        ("model", "size", "params", "isa", "threads", "cache", "test", "t/s",
         "majflt", "read", "kept", "stall", "peak PSS"),
        ("---", "--:", "--:", "---", "--:", "---", "--:", "--:", "--:", "--:", "--:", "--:", "--:"),
    ]  # fmt: skip
    table += [
        (
            row["model_type"],
            human(row["model_size"]),
            f"{row['model_n_params'] / 1e6:.2f} M",
            row["isa"],
            str(row["n_threads"]),
            row["cache_state"],
            str(_Test(row["n_prompt"], row["n_gen"], row["n_depth"])),
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
            str(row["majflt"]),
            "?" if row["read_bytes"] is None else human(row["read_bytes"]),
            f"{row['kept_share']:.0%}",
            f"{row['stall_ns'] / (sum(row['samples_ns']) or 1):.0%}",
            "?" if row["peak_pss"] is None else human(row["peak_pss"]),
        )
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
