"""Makes a predictor of neurons that names so many of them at random:

    python -m bench.make_predictor model.gguf model.gguf.predictor --part 0.06

It is for measuring what reading by prediction costs on models of bench.make_model, whose neurons no
low rank can tell: it takes the arithmetic and the reads of a trained one that names as many. Its
names depend on what a layer reads, so that one token's are others than the next one's. What a model
writes with it is noise of another kind.
"""

import argparse
from statistics import NormalDist

import numpy as np

from mmrt.files import formats
from mmrt.files.predictor import Scores, write_predictor
from mmrt.memory.sizes import human
from mmrt.run.building import neurons


def make(path: str, out: str, part: float, rank: int) -> int:
    """part: of the neurons, that is named for a token on average. Returns the predictor's bytes."""
    random = np.random.default_rng(0)

    def scores(width: int, n_neurons: int) -> Scores:
        # Normed rows have values of about 1, and so do the scores made of them, before the bias.
        inner = random.standard_normal((rank, width), np.float32) / width**0.5
        outer = random.standard_normal((n_neurons, rank), np.float32) / rank**0.5
        bias = np.full(n_neurons, NormalDist().inv_cdf(part), np.float32)
        return Scores(inner.astype(np.float16), outer.astype(np.float16), bias)

    with formats.open(path) as file:
        downs = [layer.down for layer in neurons(file)]
        return write_predictor(out, file, [(down, scores(*down.shape)) for down in downs])


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.make_predictor", description=__doc__)
    parser.add_argument("model", help="a GGUF file of a model with ReLU")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--part", type=float, default=0.06, help="of the neurons (default: 0.06)")
    parser.add_argument("--rank", type=int, default=128, help="of the scores (default: 128)")
    arguments = parser.parse_args()
    print(human(make(arguments.model, arguments.out, arguments.part, arguments.rank)))


if __name__ == "__main__":
    main()
