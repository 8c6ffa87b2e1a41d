"""`mmrt quantize`: makes a model smaller."""

import argparse
import time

from mmrt.cli.options import UsageError, positive
from mmrt.cli.output import print_table, printable, progress
from mmrt.files.quantizer import QUANTIZABLE, Quantized, nearest, quantize
from mmrt.memory.sizes import human

DESCRIPTION = f"""\
Writes the model in IN to OUT, its matrices as blocks of another type.

TYPE is one of {", ".join(QUANTIZABLE[:6])},
{", ".join(QUANTIZABLE[6:])}; larger numbers are larger and closer
to the model. IN holds float matrices, or Q8_0. Norms and biases keep their
type, the output matrix gets Q6_K at least, and rows that TYPE does not fit
get the next type that does: what was not as asked for is said in the end.
OUT appears when it is whole.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a GGUF file of F32, F16, BF16 or Q8_0")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument("type", metavar="TYPE", type=str.upper, help="as named above")
    parser.add_argument(
        "-t", "--threads", type=positive, metavar="N", help="threads (default: as many as cores)"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.type not in QUANTIZABLE:
        near = nearest(arguments.type)
        hint = f"; {near} comes nearest" if near else ""
        raise UsageError(f"TYPE is one of {', '.join(QUANTIZABLE)}, not {arguments.type!r}{hint}")
    start = time.perf_counter()
    with progress("quantizing") as update:
        result = quantize(
            arguments.source,
            arguments.target,
            arguments.type,
            threads=arguments.threads,
            progress=update,
        )
    _report(result, time.perf_counter() - start)


def _report(result: Quantized, seconds: float) -> None:
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for choice in result.choices:
        kinds.setdefault((choice.source, choice.target, choice.reason), []).append(choice.name)
    print_table(
        ("from", "to", "tensors", "because"),
        [
            (source, target, str(len(names)), f"{reason}: {_sketch(names)}" if reason else "")
            for (source, target, reason), names in kinds.items()
        ],
    )
    share = result.size_after / result.size_before if result.size_before else 1
    print(
        f"{human(result.size_before)} became {human(result.size_after)} ({share:.0%}) "
        f"in {seconds:.1f} s"
    )


def _sketch(names: list[str]) -> str:
    return printable(names[0], 40) + (", ..." if len(names) > 1 else "")
