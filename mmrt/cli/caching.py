"""What `mmrt warm` and `mmrt evict` share."""

import argparse
from typing import Literal

from mmrt.cli.options import UsageError
from mmrt.cli.output import progress
from mmrt.errors import ArgumentError
from mmrt.files import formats
from mmrt.files.caching import Moved
from mmrt.files.selection import layer_numbers
from mmrt.memory.sizes import human

CHOICES = """\
Without --layers and --tensors, the whole file is meant. With both, tensors
that are in these layers and match a pattern:

  --layers 0-15,20 --tensors '*.attn_*' '*_norm.weight'\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="a weight file, or one of a set")
    parser.add_argument("--layers", metavar="N-M,...", help="tensors of these layers only")
    parser.add_argument(
        "--tensors", nargs="+", action="extend", default=[], metavar="PATTERN",
        help="tensors whose names match one of these only, with * ? [] as in the shell",
    )  # fmt: skip


def run(arguments: argparse.Namespace, direction: Literal["warm", "evict"]) -> None:
    layers, patterns = arguments.layers, arguments.tensors
    if arguments.file is None and len(patterns) > 1:  # the last one stood behind the patterns
        arguments.file = patterns.pop()
    if arguments.file is None:
        raise UsageError("the following arguments are required: FILE")
    if layers is not None:
        try:
            layer_numbers(layers)
        except ArgumentError as error:
            raise UsageError(str(error)) from None
    with formats.open(arguments.file) as file:
        names = file.select(layers, patterns) if layers is not None or patterns else None
        with progress("reading" if direction == "warm" else "dropping") as update:
            moved = (file.warm if direction == "warm" else file.evict)(names, update)
        what = "whole" if names is None else f"{len(names)} of {len(file)} tensors"
        print(f"{file.path}, {what}: {_report(moved)}")


def _report(moved: Moved) -> str:
    total = human(moved.after.total * moved.page_size)
    where = "in the page cache" if moved.after.source == "mincore" else "mapped by this process"
    return (
        f"{human(moved.bytes_before)} of {total} were {where} before, "
        f"{human(moved.bytes_after)} are now ({moved.after.fraction:.1%}, {moved.after.source})"
    )
