"""`mmrt predictor`: a side file that guesses which neurons of a model with ReLU a token needs."""

import argparse
import math
import time

from mmrt.cli.options import or_none, positive, text_in
from mmrt.cli.output import print_table, progress
from mmrt.memory.sizes import human

DESCRIPTION = """\
Trains a predictor of the model in MODEL on the text in TEXT, and writes it to
OUT. With it (--predictor OUT) a model whose activation is ReLU or one of its
family computes only the neurons that are predicted to be other than zero.

That is lossy: active neurons that are not predicted are taken for zero, and
what the model writes is not quite its own. How many of them are found, and
what that does to perplexity, is measured on the last eighth of the text, and
printed. OUT appears when it is whole, and fits no other file than MODEL.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF file of a model with ReLU")
    parser.add_argument("text", metavar="TEXT", type=text_in, help="a file of text, in UTF-8")
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--rank", type=positive, default=128, metavar="N", help="of the scores (default: 128)"
    )
    parser.add_argument(
        "--recall", type=_part, default=0.97, metavar="PART",
        help="of the active neurons, the part that is to be found (default: 0.97)",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--tokens", type=positive, default=8192, metavar="N",
        help="of the text, at most (default: 8192)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=positive, default=8, metavar="N",
        help="how often the text is gone through (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "-t", "--threads", type=or_none(1, -1), metavar="N",
        help="threads (default: as many as cores)",
    )  # fmt: skip


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"a number between 0 and 1 is expected, not {text!r}")
    return value


def run(arguments: argparse.Namespace) -> None:
    from mmrt.run.predicting import train

    start = time.perf_counter()
    with progress("training") as update:
        trained = train(
            arguments.model,
            arguments.text,
            arguments.out,
            rank=arguments.rank,
            recall=arguments.recall,
            tokens=arguments.tokens,
            epochs=arguments.epochs,
            threads=arguments.threads,
            progress=update,
        )
    print_table(
        ("layer", "active", "predicted", "recall", "precision"),
        [
            (layer.name.removesuffix(".ffn_down.weight"), *map(_percent, layer[1:]))
            for layer in trained.layers
        ],
    )
    print(f"\nmeasured on {trained.n_held_out} tokens, trained on {trained.n_trained} others")
    print(
        f"perplexity {trained.exact:.3f}, with the predictor {trained.lossy:.3f} "
        f"({trained.lossy / trained.exact - 1:+.2%})"
    )
    print(f"{human(trained.n_bytes)} in {time.perf_counter() - start:.1f} s")


def _percent(part: float) -> str:
    return "-" if math.isnan(part) else f"{part:.1%}"
