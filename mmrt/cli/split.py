"""`mmrt split`: a file of some of a model's layers."""

import argparse
import re
import time

from mmrt.cli.output import progress
from mmrt.memory.sizes import human

DESCRIPTION = """\
Writes to OUT what a stage needs of the model in IN for some of its
layers, for a machine whose disk does not hold the whole: the tensors of these
layers, of the first the embedding too and of the last the output, and all
metadata. OUT appears when it is whole.\
"""


def layers(text: str) -> range:
    """The type of arguments that are layers: A:B, from A up to but not including B."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"expected layers as A:B with A below B, found {text!r}")
    return range(int(match[1]), int(match[2]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a GGUF file of a model")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--layers", type=layers, metavar="A:B", required=True,
        help="layers A to B-1, counted from 0",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from mmrt.cluster.split import split

    start = time.perf_counter()
    with progress("splitting") as update:
        size = split(arguments.source, arguments.target, arguments.layers, progress=update)
    print(f"{human(size)} of {len(arguments.layers)} layers in {time.perf_counter() - start:.1f} s")
