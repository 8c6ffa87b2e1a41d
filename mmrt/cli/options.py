"""The arguments that several commands share, and what they stand for."""

import argparse
import warnings
from typing import TYPE_CHECKING, Any

from mmrt.cli.output import note, progress
from mmrt.elements import KV_TYPES
from mmrt.errors import ArgumentError
from mmrt.memory import parse_size
from mmrt.policies import POLICIES
from mmrt.streaming import READERS

if TYPE_CHECKING:
    from mmrt.model import Model


class UsageError(Exception):
    """Arguments that make no sense, alone or together."""


def count(text: str) -> int:
    """The type of arguments that are numbers of things: 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


def positive(text: str) -> int:
    """The type of arguments that are whole numbers above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def seconds(text: str) -> float:
    """The type of arguments that are lengths of time."""
    value = float(text)
    if not 0.05 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"must be from 0.05 to 86400 seconds, not {text}")
    return value


def size(text: str) -> int:
    """The type of arguments that are numbers of bytes."""
    try:
        return parse_size(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", dest="model_option", metavar="MODEL",
        help="the model, a GGUF file; without one, a small default model is fetched once",
    )  # fmt: skip
    parser.add_argument(
        "-t", "--threads", type=positive, metavar="N", help="threads (default: as many as cores)"
    )
    parser.add_argument(
        "--policy", choices=POLICIES, default="lazy", metavar="NAME",
        help=f"how weights come into memory: {', '.join(POLICIES)} (default: lazy)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", metavar="SIZE", type=size,
        help="stay within this much memory, such as 6.8GiB: keep what fits of the weights, read "
        "the rest from the disk as it is needed (default: what there is)",
    )  # fmt: skip
    parser.add_argument(
        "--reader", choices=READERS, metavar="NAME",
        help=f"how to read them: {', '.join(READERS)} (default: the fastest)",
    )  # fmt: skip
    parser.add_argument(
        "-ctk", "--cache-type-k", choices=KV_TYPES, default="f16", metavar="TYPE",
        help=f"how keys are stored: {', '.join(KV_TYPES)} (default: f16)",
    )  # fmt: skip
    parser.add_argument(
        "-ctv", "--cache-type-v", choices=KV_TYPES, default="f16", metavar="TYPE",
        help="how values are stored, likewise",
    )  # fmt: skip


def add_generation_arguments(parser: argparse.ArgumentParser, n_predict: int) -> None:
    parser.add_argument(
        "-n", "--n-predict", type=count, default=n_predict, metavar="N",
        help="write this many tokens at most (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-c", "--ctx-size", type=positive, metavar="N",
        help="tokens that the context can hold (default: the model's own limit)",
    )  # fmt: skip
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temp", type=float, default=0.0, metavar="T",
        help="temperature; 0 always takes the likeliest token (default: 0)",
    )  # fmt: skip
    sampling.add_argument(
        "--top-k", type=count, default=0, metavar="K",
        help="draw from the K likeliest tokens (default: 0, off)",
    )  # fmt: skip
    sampling.add_argument(
        "--top-p", type=float, default=1.0, metavar="P",
        help="draw from the likeliest tokens that make up this probability (default: 1, off)",
    )  # fmt: skip
    sampling.add_argument(
        "--min-p", type=float, default=0.0, metavar="P",
        help="draw from tokens this likely, relative to the likeliest (default: 0, off)",
    )  # fmt: skip
    sampling.add_argument(
        "--repeat-penalty", type=float, default=1.0, metavar="R",
        help="hold the latest 64 tokens back by this factor (default: 1, off)",
    )  # fmt: skip
    sampling.add_argument(
        "-s", "--seed", type=count, metavar="N", help="the same seed draws the same tokens again"
    )
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given several times",
    )  # fmt: skip


def generation(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of Model.stream that `arguments` stand for."""
    from mmrt.sampler import Sampler

    sampling = {
        "temperature": arguments.temp,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repeat_penalty": arguments.repeat_penalty,
        "seed": arguments.seed,
    }
    try:
        Sampler(**sampling)  # knows the ranges
    except ArgumentError as error:
        raise UsageError(str(error)) from None
    return {**sampling, "max_tokens": arguments.n_predict, "stop": tuple(arguments.stop)}


def one_model(arguments: argparse.Namespace) -> str | None:
    """The model, where it may be given as MODEL or with -m. None: the default one."""
    if arguments.model and arguments.model_option:
        raise UsageError("the model is given twice")
    model: str | None = arguments.model or arguments.model_option
    return model


def open_model(
    path: str | None, arguments: argparse.Namespace, context: int | None = None
) -> "Model":
    """The model at `path` (None: the default one), set up as `arguments` ask."""
    from mmrt.model import Model

    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        model = Model(
            path or default_model(),
            threads=arguments.threads,
            context=context,
            policy=arguments.policy,
            memory=arguments.memory,
            reader=arguments.reader,
            kv_k=arguments.cache_type_k,
            kv_v=arguments.cache_type_v,
        )
    for warning in raised:
        note(str(warning.message))
    return model


def default_model() -> str:
    """The path of the default model, fetched if need be."""
    from mmrt import default_model as packed

    if not packed.is_cached():
        note(packed.NOTICE)
    with progress("fetching") as update:
        return str(packed.path(update))
