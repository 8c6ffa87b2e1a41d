"""What drafts are worth: `python -m bench.drafts MODEL.gguf --draft ngram`.

Writes two texts, one that repeats a file of code and one of free prose, with drafts and without, in
turns: a busy machine slows both of a round alike. Prints the medians of tokens a second, the median
of the ratios within a round, tokens a step, how many guesses were right, in all and by their place
after right ones in a draft, and what the models held. That the texts are the same is checked.

A smaller model for a target of which only a quantised file is at hand:

    python -m bench.dequantise TARGET-Q4_K_M.gguf TARGET-F16.gguf
    mmrt quantize TARGET-F16.gguf TWIN-Q2_K.gguf Q2_K
    python -m bench.drafts TARGET-F16.gguf --draft TWIN-Q2_K.gguf
"""

import argparse
import inspect
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mmrt
from mmrt.run import cost

ASKED = {
    "copying": "Repeat this file, with the name StepCost changed to Cost:\n\n{code}",
    "prose": "Tell a story about a lighthouse keeper who finds a letter in the sand.",
}


def begin(model: mmrt.Model, task: str, tokens: int) -> mmrt.Stream:
    asked = ASKED[task].format(code=inspect.getsource(cost))
    if model.chat_template is None:
        return model.stream(asked, max_tokens=tokens, ignore_eos=True)
    messages = [{"role": "user", "content": asked}]
    return model.stream_chat(messages, max_tokens=tokens, ignore_eos=True)


def write(model: mmrt.Model, task: str, tokens: int) -> tuple[str, float, float]:
    """(the text, its tokens a second after the first, these by steps)"""
    stream = begin(model, task, tokens)
    pieces = [next(stream)]
    steps = 0
    run = model.run_step

    def counted(parts: Any, logits: Any) -> None:
        nonlocal steps
        steps += 1
        run(parts, logits)

    model.run_step = counted
    started = time.perf_counter()
    pieces += stream
    seconds = time.perf_counter() - started
    after = stream.tokens - 1
    return "".join(piece.text for piece in pieces), after / seconds, after / steps


def compare(path: str, draft: str, tokens: int, rounds: int, **options: Any) -> dict[str, Any]:
    """The figures of each task."""
    found: dict[str, Any] = {}
    for task in ASKED:
        made: list[dict[str, float]] = []
        record = held = ""
        tried, right = Counter[int](), Counter[int]()
        for number in range(rounds):
            of_round: dict[str, tuple[str, float, float]] = {}
            for kind in ("off", draft)[:: 1 if number % 2 else -1]:
                with mmrt.Model(path, draft=kind, **options) as model:
                    of_round[kind] = write(model, task, tokens)
                    if kind != "off":
                        record, held = str(model.drafts.record), str(model.memory)
                        for depth, (n, n_right) in enumerate(model.drafts.record.by_depth, 1):
                            tried[depth] += n
                            right[depth] += n_right
            (plain, slow, _), (drafted, fast, of_step) = of_round["off"], of_round[draft]
            if plain != drafted:
                raise SystemExit(f"{task}: the texts differ: {plain!r} and {drafted!r}")
            figures = {"plain": slow, "drafted": fast, "ratio": fast / slow}
            made.append(figures | {"tokens a step": of_step})
        found[task] = {name: statistics.median(one[name] for one in made) for name in made[0]}
        found[task]["drafts"] = record
        found[task]["right by depth"] = {n: f"{right[n]} of {tried[n]}" for n in tried}
        found[task]["memory"] = held
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--draft", default="ngram", help="as of mmrt.Model")
    parser.add_argument("-n", "--tokens", type=int, default=128, help="of each text")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--memory", metavar="SIZE", help="as of mmrt.Model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there too")
    arguments = parser.parse_args()
    options = {"threads": arguments.threads, "memory": arguments.memory}
    found = compare(arguments.model, arguments.draft, arguments.tokens, arguments.rounds, **options)
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
