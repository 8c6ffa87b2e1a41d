"""`mmrt evict`: drops a weight file from the page cache."""

import argparse

from mmrt.cli import caching
from mmrt.cli.caching import CHOICES, add_arguments

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = f"""\
Drops a weight file, or parts of it, from the page cache, and says how much of
it stays. Waits until the disk has all of a file that was just written. Pages
stay that another process maps, or that hold the edge of a tensor that was not
meant.

{CHOICES}\
"""


def run(arguments: argparse.Namespace) -> None:
    caching.run(arguments, "evict")
