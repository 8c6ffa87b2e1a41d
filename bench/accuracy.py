"""How far each runtime's logits are from float32's: `python -m bench.accuracy MODEL.gguf ...`

The reference multiplies the dequantised weights in float32 (tests/oracle.py) along a passage of
text, one row of logits a token; what is told of each runtime is the mean KL divergence from it.
Needs gguf, some minutes, and four bytes of memory for each weight of the largest matrix.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mmrt
from bench.engines import ENGINES, LIMIT, OURS, installed
from bench.llama import Llama

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import measures  # noqa: E402
import oracle  # noqa: E402

STEP = 256  # tokens whose logits are in memory at once
Logits = NDArray[np.float32]
Reader = Callable[[list[int]], Logits]  # the next tokens of the text: a row of logits for each


@dataclass(frozen=True)
class Row:
    model: str
    engine: str
    version: str
    positions: int
    kl_mean: float  # nats, KL(reference || engine)


def ours(path: str, threads: int) -> tuple[str, Reader]:
    sequence = mmrt.Model(path, threads=threads).sequence()
    version = f"{mmrt.__version__} {mmrt.cpu_info().isa}"
    return version, lambda ids: sequence.extend(ids, "all")


def theirs(name: str, path: str, threads: int, n_vocab: int) -> tuple[str, Reader]:
    engine = ENGINES[name].start(path, threads)
    assert isinstance(engine, Llama)
    engine.clear()

    def read(ids: list[int]) -> Logits:
        engine.read(ids, all_logits=True)
        return np.stack([engine.logits(i, n_vocab) for i in range(len(ids))])

    return engine.version, read


def compare(path: str, n: int, threads: int, engines: list[str]) -> list[Row]:
    with mmrt.Model(path) as model:
        ids = model.tokenize((TESTS / "golden/passage.txt").read_text())[:n]
    reference = oracle.logits(path, ids)
    n_vocab = reference.shape[1]
    rows = []
    for name in engines:
        own = name == OURS
        version, read = ours(path, threads) if own else theirs(name, path, threads, n_vocab)
        divergence = [
            measures.kl_divergence(reference[at : at + STEP], read(ids[at : at + STEP]))
            for at in range(0, len(ids), STEP)
        ]
        mean = float(np.concatenate(divergence).mean())
        rows.append(Row(Path(path).name, name, version, len(ids), mean))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("-n", type=int, default=512, help="positions (default 512)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    engines = [name for name in installed() if name != LIMIT]
    parser.add_argument(
        "-e", nargs="+", default=engines, metavar="ENGINE", choices=engines,
        help=f"which to compare (default: {', '.join(engines)})",
    )  # fmt: skip
    parser.add_argument("-o", type=Path, help="also write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.models:
        rows += compare(path, arguments.n, arguments.t, arguments.e)
    print("| model | runtime | mean KL to float32 logits |\n|---|---|---:|")
    for row in rows:
        print(f"| {row.model} | {row.engine} {row.version} | {row.kl_mean:.3e} |")
    if arguments.o:
        arguments.o.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
