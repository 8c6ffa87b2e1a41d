"""How many texts fare in one engine: `python -m bench.serving MODEL.gguf [--only gap,share]`.

batch   1, 4, 8 and 16 texts that write at once: tokens a second, against one text, and what the
        engine itself takes of the time
gap     a text that writes, beside a prompt of 4000 tokens: its worst wait for a token, also as a
        share of max_gap, and how fast the prompt is read, also as a share of its rate alone
mixed   short texts (300 tokens in, 60 out) and long ones (4000 in, 400 out; two of ten) that
        arrive at random, at 0.8 of the rate at which they are done when all come at once, by
        feedback and first come first served in turn: how long short ones and the slowest take, and
        how many times better that is by feedback
share   turns of a conversation, branches of one beginning, answers to one prompt: tokens that
        are evaluated, and pages held, of recurrent models also states for each answer; how long
        a fork of that beginning takes
system  a new conversation after a long one with the same system prompt, of a fifth of its tokens:
        how much of it is found, and the time to the first token
flips   greedy texts against those that are written alone: in an engine, with their prompt in
        memory, beside others, and after an answer that is in memory as it was written; how many
        differ, and how often the next token is another one; with exact=True none may
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mmrt
from mmrt.core.state import Cache
from mmrt.run.checkpoints import interval
from mmrt.run.engine import Engine
from mmrt.run.feedback import Feedback, Job
from mmrt.run.generation import Piece


def words(model: mmrt.Model, n: int, seed: int) -> list[int]:
    """A prompt of n tokens that no other one begins with."""
    draw = random.Random(seed)
    return [draw.randrange(5, model.vocab_size) for _ in range(n)]


# ---- batch ----


def batch(model: mmrt.Model, texts: int, tokens: int, seed: int) -> dict[str, float]:
    """The rate while all texts write: none ends before each has written `tokens` on average."""
    with model.engine(keep=0) as engine:
        handles = [
            engine.submit(words(model, 16, seed + i), max_tokens=None, ignore_eos=True)
            for i in range(texts)
        ]

        def wait_for(is_so: Callable[[], bool]) -> int:
            while not is_so() and not any(handle.report.ended for handle in handles):
                time.sleep(0.001)
            return written()

        def written() -> int:
            return sum(handle.tokens for handle in handles)

        before = wait_for(lambda: all(handle.tokens >= 2 for handle in handles))
        in_steps, started = engine.step_seconds, now()
        after = wait_for(lambda: written() >= before + texts * tokens)
        seconds = now() - started
        in_steps = engine.step_seconds - in_steps
        if any(handle.report.ended for handle in handles):
            raise RuntimeError(f"a text of {texts} ended within the measured time")
        for handle in handles:
            handle.cancel()
    return {"tokens_per_second": (after - before) / seconds, "own_share": 1 - in_steps / seconds}


def now() -> float:
    return time.perf_counter()


# ---- gap ----


def gap(model: mmrt.Model, prompt: int, seed: int) -> dict[str, float]:
    with model.engine(keep=0) as engine:
        started = now()
        engine.submit(words(model, prompt, seed), max_tokens=1).text()
        alone = prompt / (now() - started)
        started = now()
        writer = engine.submit(words(model, 16, seed + 1), max_tokens=None, ignore_eos=True)
        while now() - started < 2:  # by then it is not young any more
            next(writer)
        started = now()
        reader = engine.submit(words(model, prompt, seed + 2), max_tokens=1)
        times = [started]
        while not reader.report.ended:
            next(writer)
            times.append(now())
        beside = prompt / (reader.report.ended or 1)
        writer.cancel()
        return {
            "worst_gap": max(b - a for a, b in pairwise(times)),
            "max_gap": max(0.25, 4 * engine.cost.weights),
            "prompt_alone": alone,
            "prompt_beside": beside,
        }


# ---- mixed ----


class FirstCome(Feedback):
    """No feedback: who came first runs first."""

    def aged(self, p: int, c: int) -> int:
        return 0

    def join(self, job: Job, now: float) -> None:
        again = job.joined if job.is_ready else None
        super().join(job, now)
        if again is not None:
            job.joined = again


# What a short and a long text read and write.
_SHORT, _LONG = (300, 60), (4000, 400)


def mixed(
    model: mmrt.Model, rule: type[Feedback], n: int, seed: int, rate: float | None
) -> dict[str, float]:
    """Eight of ten texts are short; so many arrive in a second, at random; None: all at once."""
    draw = random.Random(seed)
    most = model.context - _LONG[1]
    with model.engine(keep=0) as engine:
        engine._feedback = rule(1000, Engine._now())
        handles = []
        started = now()
        at = started
        for i in range(n):
            at += draw.expovariate(1.0) / rate if rate else 0.0
            time.sleep(max(at - now(), 0))
            is_short = draw.random() < 0.8
            size, out = _SHORT if is_short else _LONG
            ids = words(model, min(size, most), seed + 1 + i)
            handles.append((is_short, engine.submit(ids, max_tokens=out, ignore_eos=True)))
        for _, handle in handles:
            handle.text()
        seconds = now() - started
    ends = sorted(handle.report.ended or 0.0 for _, handle in handles)
    short = [handle.report.ended or 0.0 for is_short, handle in handles if is_short]
    return {
        "median_short": statistics.median(short),
        "mean_short": statistics.mean(short),
        "p99": ends[int(0.99 * (len(ends) - 1))],
        "tokens_per_second": sum(handle.tokens for _, handle in handles) / seconds,
        "texts_per_second": n / seconds,
    }


# ---- share ----


def share(model: mmrt.Model, n: int, seed: int) -> dict[str, float]:
    """n: tokens of the beginning, and of the prompt that has several answers."""
    found: dict[str, float] = {"prompt_tokens": n}
    with model.engine() as engine:
        talk = words(model, 300, seed)
        worst = 0
        for turn in range(5):
            before = engine.evaluated_tokens
            handle = engine.submit(talk, max_tokens=20, ignore_eos=True)
            written = [piece.token for piece in handle if piece.token is not None]
            if turn:
                worst = max(worst, engine.evaluated_tokens - before - 20 - 19)
            talk = [*talk, *written, *words(model, 20, seed + turn)]
        found["turn_tokens_beyond_new"] = worst
        prefix, before = words(model, n, seed + 9), engine.evaluated_tokens
        for handle in [engine.submit([*prefix, i], max_tokens=1) for i in range(4)]:
            handle.text()
        found["branches_work"] = (engine.evaluated_tokens - before) / (n + 4)
        found |= forks(engine, prefix)
    with model.engine() as engine:
        prompt, store = words(model, n, seed + 10), model.store
        answers = [
            engine.submit(prompt, max_tokens=64, temperature=1.0, seed=i, ignore_eos=True)
            for i in range(8)
        ]
        for handle in answers:
            handle.text()
        ended = [text.cache for text in engine.prefixes.ended()]
        pages = len({page.number for cache in ended for page in cache.pages()})
        found["answers_pages"] = pages / (n / 32 + 8 * 64 / 32)
        if store.is_recurrent:
            states = (store.nbytes - pages * store.page_bytes) / store.block_bytes
            found["answer_states"] = states / 8
    return found


def forks(engine: Engine, prefix: list[int], n: int = 32) -> dict[str, float]:
    """Of what is in memory of `prefix`, which is looked up each time as for a new text."""
    store, times, made = engine.prefixes.store, list[float](), list[Cache]()
    held, lost = store.nbytes, interval(store) if store.is_recurrent else 0
    for _ in range(n):
        started = now()
        made.append(engine.prefixes.take(prefix))
        times.append(now() - started)
    if any(fork.length < len(prefix) - lost for fork in made):
        raise RuntimeError("the beginning is not in memory any more")
    grown = store.nbytes - held
    return {"fork_seconds": max(times), "fork_bytes": grown / n}


def system(model: mmrt.Model, n: int, seed: int) -> dict[str, float]:
    """n: tokens of the long conversation."""
    prompt = words(model, n // 5, seed)
    with model.engine() as engine:
        engine.submit([*prompt, *words(model, n - len(prompt), seed + 1)], max_tokens=8).text()
        before, started = engine.evaluated_tokens, now()
        handle = engine.submit([*prompt, *words(model, 24, seed + 2)], max_tokens=1)
        next(handle)
        return {
            "conversation_tokens": n,
            "system_tokens": len(prompt),
            "cached_tokens": handle.cached_tokens,
            "evaluated_tokens": engine.evaluated_tokens - before,
            "first_token_seconds": now() - started,
        }


# ---- flips ----


def flips(model: mmrt.Model, n: int, tokens: int) -> dict[str, dict[str, float]]:
    """Of `n` prompts, which are what the model itself writes at temperature 1, and `tokens` tokens
    after each."""
    prompts = [text_of_its_own(model, 24 + 3 * i % 64, i) for i in range(n)]

    def in_engine(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
        handles = [engine.submit(ids, max_tokens=tokens, temperature=0) for ids in prompts]
        return [ids_of(handle) for handle in handles]

    def by_itself(prompts: list[list[int]]) -> list[list[int]]:
        return [ids_of(model.stream(ids, max_tokens=tokens, temperature=0)) for ids in prompts]

    alone = by_itself(prompts)
    turns = [
        [*ids, *text, *words(model, 9, i)]
        for i, (ids, text) in enumerate(zip(prompts, alone, strict=True))
    ]
    with model.engine() as engine:
        cold, cached, turn = (
            [in_engine(engine, [ids])[0] for ids in each] for each in (prompts, prompts, turns)
        )
    with model.engine() as engine:
        batched = in_engine(engine, prompts)
    return {
        "cold": compared(alone, cold),
        "cached": compared(alone, cached),
        "batched": compared(alone, batched),
        "next turn": compared(by_itself(turns), turn),
    }


def ids_of(pieces: Iterable[Piece]) -> list[int]:
    return [piece.token for piece in pieces if piece.token is not None]


def text_of_its_own(model: mmrt.Model, n: int, seed: int) -> list[int]:
    start = [model.tokenizer.bos_id or 0]
    pieces = model.stream(start, max_tokens=n - 1, temperature=1.0, seed=seed, ignore_eos=True)
    return start + ids_of(pieces)


def compared(alone: list[list[int]], others: list[list[int]]) -> dict[str, float]:
    """A text that differs counts up to its first other token: what follows is of another text."""
    n_flips = n_tokens = 0
    for a, b in zip(alone, others, strict=True):
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        n_flips += first is not None
        n_tokens += min(len(a), len(b)) if first is None else first + 1
    return {"texts": len(alone), "differ": n_flips, "flips_a_token": n_flips / max(n_tokens, 1)}


def medians(made: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in made) for key in made[0]}


def run(
    model: mmrt.Model,
    which: list[str],
    rounds: int,
    tokens: int,
    texts: int = 40,
    prompt: int = 8192,
) -> dict[str, Any]:
    """texts: of mixed. prompt: tokens of share; those of system are five in four of them."""
    prompt = min(prompt, (model.context - 256) * 4 // 5)
    found: dict[str, Any] = {}
    if "batch" in which:
        samples: dict[int, list[dict[str, float]]] = {n: [] for n in (1, 4, 8, 16)}
        for i in range(rounds):
            for n in samples:
                samples[n].append(batch(model, n, tokens, 1000 * i))
        one = samples[1]
        for n, made in samples.items():
            ratios = [
                a["tokens_per_second"] / b["tokens_per_second"]
                for a, b in zip(made, one, strict=True)
            ]
            found[f"batch {n}"] = {
                "tokens_per_second": statistics.median(m["tokens_per_second"] for m in made),
                "ratio": statistics.median(ratios),
                "own_share": statistics.median(m["own_share"] for m in made),
            }
    if "gap" in which:
        made = [gap(model, min(4000, model.context - 512), 7 * i) for i in range(rounds)]
        found["gap"] = medians(made)
        found["gap"]["worst_gap / max_gap"] = statistics.median(
            one["worst_gap"] / one["max_gap"] for one in made
        )
        found["gap"]["prompt_beside / prompt_alone"] = statistics.median(
            one["prompt_beside"] / one["prompt_alone"] for one in made
        )
    if "mixed" in which:
        by: dict[str, list[dict[str, float]]] = {"feedback": [], "first come": []}
        for i in range(rounds):
            rate = 0.8 * mixed(model, Feedback, texts, i, None)["texts_per_second"]
            for name, rule in (("feedback", Feedback), ("first come", FirstCome)):
                by[name].append(mixed(model, rule, texts, i, rate))
        found["mixed"] = {name: medians(made) for name, made in by.items()}
        pairs = list(zip(by["feedback"], by["first come"], strict=True))
        found["mixed"]["times better"] = {
            **{
                key: statistics.median(b[key] / a[key] for a, b in pairs)
                for key in ("median_short", "mean_short", "p99")
            },
            "tokens_per_second": statistics.median(
                a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs
            ),
        }
    if "share" in which:
        found["share"] = share(model, prompt, 5)
    if "system" in which:
        made = [system(model, prompt * 5 // 4, 11 * i) for i in range(rounds)]
        found["system"] = medians(made)
    if "flips" in which:
        for mode in ("fast", "exact"):
            with mmrt.Model(
                model.path, threads=model.threads, context=model.context, exact=mode == "exact"
            ) as opened:
                for way, figures in flips(opened, 16 * rounds, tokens).items():
                    found[f"flips {mode}, {way}"] = figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--only", default="batch,gap,mixed,share,system,flips", help="of these, some"
    )
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument(
        "-n", "--tokens", type=int, default=64, help="that each text of batch and flips writes"
    )
    parser.add_argument(
        "-p", "--prompt", type=int, default=8192, help="tokens of share, and of system four fifths"
    )
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there too")
    arguments = parser.parse_args()
    with mmrt.Model(arguments.model, threads=arguments.threads, context=arguments.context) as model:
        which = arguments.only.split(",")
        found = run(model, which, arguments.rounds, arguments.tokens, prompt=arguments.prompt)
        found["machine"] = f"{mmrt.cpu_info().model}, {model.threads} threads, {platform.release()}"
        found["model"] = Path(model.path).name
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
