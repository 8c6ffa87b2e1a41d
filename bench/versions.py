"""Two builds of mmrt in turn on the same model: `python -m bench.versions PYTHON MODEL.gguf...`.

PYTHON is an interpreter that imports the other build. Each round starts a process of either, which
reads a prompt and then decodes, and prints tokens a second; the order of the two changes from round
to round. What is printed are medians, and the median of the ratios within a round, of this build's
to the other's: a busy machine slows both of a round alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

RUN = """
import json, sys, time
import numpy as np
import mmrt

path, prompt, decode, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] or None
with mmrt.Model(path, memory=memory) as model:
    ids = np.random.default_rng(0).integers(5, model.program.vocab_size, prompt + decode).tolist()
    with model.sequence() as s:
        s.extend(ids[:64])
        s.extend([ids[0]])
    with model.sequence() as s:
        start = time.perf_counter()
        s.extend(ids[:prompt])
        middle = time.perf_counter()
        for token in ids[prompt:]:
            s.extend([token])
        end = time.perf_counter()
json.dump({"prompt": prompt / (middle - start), "decode": decode / (end - middle)}, sys.stdout)
"""


def speeds(python: str, model: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [python, "-c", RUN, str(model), str(arguments.prompt), str(arguments.decode)]
    done = subprocess.run(
        [*command, arguments.memory or ""], cwd="/", stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("python", help="the interpreter of the other build")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("-r", "--rounds", type=int, default=12)
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens")
    parser.add_argument("-n", "--decode", type=int, default=64, help="tokens")
    parser.add_argument("--memory", metavar="SIZE", help="a budget for both")
    arguments = parser.parse_args()
    for model in arguments.models:
        model = model.resolve()
        rounds = []
        for number in range(arguments.rounds):
            order = [sys.executable, arguments.python][:: 1 if number % 2 else -1]
            found = {python: speeds(python, model, arguments) for python in order}
            rounds.append((found[sys.executable], found[arguments.python]))
        for what in ("prompt", "decode"):
            own = statistics.median(a[what] for a, _ in rounds)
            other = statistics.median(b[what] for _, b in rounds)
            ratio = statistics.median(a[what] / b[what] for a, b in rounds)
            print(f"{model.name:40} {what:7} {own:8.2f} {other:8.2f} tokens/s  ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
