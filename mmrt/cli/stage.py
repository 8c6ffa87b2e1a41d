"""`mmrt stage`: some of a model's layers, behind a socket."""

import argparse

from mmrt.cli.options import add_running_arguments, or_none
from mmrt.cli.split import layers

DESCRIPTION = """\
Runs layers of MODEL for a coordinator elsewhere (mmrt.Cluster), until it is
ended. Of MODEL, a GGUF file or one that `mmrt split` made, only what these
layers need is read.

Who calls has to know the secret in --secret-file: 16 bytes or more, in a file
that others cannot read. What is sent is not encrypted. docs/cluster.md says
more.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF file")
    parser.add_argument(
        "--layers", type=layers, metavar="A:B",
        help="layers A to B-1, counted from 0 (default: all that the file has)",
    )  # fmt: skip
    parser.add_argument(
        "--listen", required=True, metavar="ADDRESS:PORT",
        help="at this address of this machine, or that of this interface, alone; port 0: any "
        "that is free",
    )  # fmt: skip
    parser.add_argument(
        "--secret-file", required=True, metavar="FILE", help="what all machines of the cluster know"
    )
    parser.add_argument(
        "-c", "--ctx-size", type=or_none(1, 0), metavar="N",
        help="tokens that the context can hold (default: the model's own limit)",
    )  # fmt: skip
    add_running_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    from mmrt.cluster import wire
    from mmrt.cluster.server import StageServer
    from mmrt.cluster.stage import Stage

    address = wire.parse_address(arguments.listen)
    secret = wire.read_secret(arguments.secret_file)
    with (
        Stage(
            arguments.model,
            arguments.layers,
            threads=arguments.threads,
            context=arguments.ctx_size,
            memory=arguments.memory,
            reader=arguments.reader,
            kv_k=arguments.cache_type_k,
            kv_v=arguments.cache_type_v,
            exact=arguments.exact,
        ) as stage,
        StageServer(stage, address, secret) as server,
    ):
        host, port = server.address
        here = stage.layers
        print(f"layers {here.start}:{here.stop} listen at {host}:{port}", flush=True)
        server.serve()
