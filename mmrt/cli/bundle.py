"""`mmrt bundle`: a side file of a model whose activation leaves most neurons at zero."""

import argparse
import time

from mmrt.cli.output import progress
from mmrt.files import formats
from mmrt.files.bundle import write_bundle
from mmrt.memory.sizes import human

DESCRIPTION = """\
Writes to OUT the neurons of the model in IN, each in one piece: its column of
`down`, its row of `up`, and its row of the gate where there is one.
With it (--bundle OUT) a model whose activation is ReLU or one of its family
multiplies, for each token, only the columns that meet no zero. With a predictor
beside it (mmrt predictor), which is lossy, and within a budget, it reads
nothing else of these layers.
`down` has to be in F32, F16 or BF16. IN stays as it is; a bundle fits no
other file. OUT appears when it is whole.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a GGUF file of a model")
    parser.add_argument("target", metavar="OUT", help="the file to write")


def run(arguments: argparse.Namespace) -> None:
    from mmrt.run.building import neurons

    start = time.perf_counter()
    with formats.open(arguments.source) as file:
        layers = neurons(file)
        with progress("bundling") as update:
            size = write_bundle(arguments.target, file, layers, progress=update)
    print(f"{len(layers)} layers, {human(size)} in {time.perf_counter() - start:.1f} s")
