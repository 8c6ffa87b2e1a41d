"""`mmrt plan`: which machine is to have which layers."""

import argparse

from mmrt.cli.options import UsageError, or_none
from mmrt.cli.output import print_table
from mmrt.memory.sizes import human

DESCRIPTION = """\
Says which machine of HOSTS is to have which layers of MODEL, so that a token of
one text takes least time, and how long that is by computation. A machine that
does not help is left out.

HOSTS has a line for each machine: its address, how much memory a stage may take
there, how fast it multiplies and, if it may, reads weights from its disk, how
long a message takes to it, and what its line carries:

  10.0.0.1:7600 memory=6.8GiB speed=35GB/s disk=2GB/s hop=0.3ms rate=1gbit

--here measures the first three on this machine and prints such a line.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF file")
    parser.add_argument("hosts", nargs="?", metavar="HOSTS", help="a file of machines")
    parser.add_argument("--here", action="store_true", help="measure this machine")
    parser.add_argument(
        "-c", "--ctx-size", type=or_none(1, 0), metavar="N",
        help="tokens whose keys and values have to have room (default: the model's own limit)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from mmrt.cluster import planning
    from mmrt.cluster.hosts import read_hosts

    if arguments.here == (arguments.hosts is not None):
        raise UsageError("expected HOSTS, or --here to measure this machine")
    if arguments.here:
        print(planning.measure(arguments.model))
        return
    hosts = read_hosts(arguments.hosts)
    found = planning.plan(planning.Shape.of(arguments.model, arguments.ctx_size), hosts)
    print_table(
        ("machine", "layers", "weights", "from its disk", "ms a token"),
        [
            (
                each.host.place,
                f"{each.layers.start}:{each.layers.stop}",
                human(each.held),
                human(each.streamed) if each.streamed else "",
                f"{each.seconds * 1000:.1f}",
            )
            for each in found.placed
        ],
    )
    print(f"and {found.hops * 1000:.1f} ms between them: {1 / found.seconds:.2f} tokens a second")
    for host, seconds in found.left_out:
        what = "has no room" if seconds == float("inf") else f"with it {seconds * 1000:.1f} ms"
        print(f"{host.place} is left out: {what}")
