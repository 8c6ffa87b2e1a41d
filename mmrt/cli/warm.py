"""`mmrt warm`: reads a weight file into the page cache."""

import argparse

from mmrt.cli import caching
from mmrt.cli.caching import CHOICES, add_arguments

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = f"""\
Reads a weight file, or parts of it, into the page cache, waits until it is
there, and says how much of it is. The system takes pages away again when it
needs the memory.

{CHOICES}\
"""


def run(arguments: argparse.Namespace) -> None:
    caching.run(arguments, "warm")
