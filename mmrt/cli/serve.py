"""`mmrt serve`: models behind HTTP, for OpenAI's clients and others."""

import argparse
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrt.cli.llama_cpp import SERVE, add_foreign_arguments
from mmrt.cli.options import (
    UsageError,
    add_draft_arguments,
    add_model_arguments,
    add_saving_arguments,
    add_template_arguments,
    count,
    fetched_model,
    open_model,
    or_none,
    positive,
    recommended,
    refusing,
    seconds,
    size,
)
from mmrt.cli.output import note
from mmrt.errors import FileError, MmrtError, UnsupportedError

if TYPE_CHECKING:
    from mmrt.run.text_model import TextModel
    from mmrt.serving.access import Access
    from mmrt.serving.house import House
    from mmrt.serving.limits import Limits

DESCRIPTION = """\
Serves models over HTTP, as clients of OpenAI and Anthropic expect of a server:

  /v1/chat/completions  /v1/completions  /v1/responses  /v1/messages  /v1/models
  /tokenize  /detokenize  /apply-template  /props  /health  /metrics  /sight

A browser finds a page to chat on at /.

Each MODEL is a GGUF file, called by its file's name without .gguf, or
NAME=FILE. They share one memory budget. Requests that name no model get the
first one. On this machine alone, unless --host says otherwise.

The first SIGTERM or Ctrl-C lets answers that are under way end for a while, the
second one ends all at once. docs/serve.md says more.\
"""


class Limit(NamedTuple):
    """An argument that sets a field of Limits."""

    spelling: str
    name: str
    kind: Callable[[str], Any]
    metavar: str
    help: str


LIMITS = [
    Limit("--queue", "queue", positive, "N",
          "texts under way at once for a model, those that wait among them; beyond: 429"),
    Limit("--max-connections", "connections", positive, "N", "connections at once"),
    Limit("--max-header", "header", size, "SIZE", "the head of a request"),
    Limit("--max-body", "body", size, "SIZE", "the body of a request"),
    Limit("--max-bodies", "bodies", size, "SIZE", "the bodies of all requests under way"),
    Limit("--max-depth", "depth", positive, "N", "nesting of a body"),
    Limit("--max-values", "marks", positive, "N", "brackets, commas and colons in a body"),
    Limit("--max-messages", "messages", positive, "N", "messages in a chat"),
    Limit("--max-tools", "tools", positive, "N", "tools in a request"),
    Limit("--max-n", "n", positive, "N", "answers to one request"),
    Limit("--max-stop", "stop", positive, "N", "stop strings in a request"),
    Limit("--max-stop-bytes", "stop_bytes", positive, "N", "bytes of a stop string"),
    Limit("--max-logit-bias", "logit_bias", positive, "N", "tokens in logit_bias"),
    Limit("--max-kept", "kept", count, "N", "responses that later requests may go on from"),
    Limit("--max-kept-bytes", "kept_bytes", size, "SIZE", "what they may take"),
    Limit("--idle-timeout", "idle_seconds", seconds, "S", "between requests on a connection"),
    Limit("--header-timeout", "header_seconds", seconds, "S", "for the head of a request"),
    Limit("--body-timeout", "body_seconds", seconds, "S", "for its body"),
    Limit("--write-timeout", "write_seconds", seconds, "S", "in which a client takes nothing"),
    Limit("--ping", "ping_seconds", seconds, "S", "after which a silent stream says that it lives"),
    Limit("--stop-timeout", "stop_seconds", seconds, "S", "for answers under way at the end"),
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mmrt.serving.limits import Limits

    parser.usage = "mmrt serve [MODEL...] [options]"
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a GGUF file, or NAME=FILE")
    add_model_arguments(parser)
    add_template_arguments(parser)
    parser.add_argument(
        "-c", "--ctx-size", type=or_none(1, 0), metavar="N",
        help="tokens that the context can hold (default: the model's own limit)",
    )  # fmt: skip
    add_saving_arguments(parser)
    add_draft_arguments(parser)
    parser.add_argument(
        "--cluster", metavar="HOSTS",
        help="run the model by the stages (`mmrt stage`) of this file of addresses; of MODEL only "
        "the tokenizer is used, and stages have options for memory, threads and the like. `ray`, "
        "or `ray:ADDRESS`: begin stages on the nodes of a Ray cluster, cut as by `mmrt plan`",
    )  # fmt: skip
    parser.add_argument(
        "--secret-file", metavar="FILE", help="what all machines of the cluster know"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="listen at this address (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=_port, default=8080, metavar="N",
        help="and this port; 0: any that is free (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="answer only who has one of its keys, one on each line",
    )
    parser.add_argument(
        "--open-metrics", action="store_true", help="answer /metrics without a key too"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], type=_host, metavar="NAME",
        help="a name by which requests may call this server, beside localhost and addresses",
    )  # fmt: skip
    parser.add_argument(
        "--cors-origin", action="append", default=[], type=_origin, metavar="ORIGIN",
        help="web pages of this origin (https://example.org) may use it; *: all may",
    )  # fmt: skip
    parser.add_argument(
        "--max-gap", type=seconds, metavar="S",
        help="for which an answer may stand still while prompts of others are read "
        "(default: 0.25, or four readings of the weights)",
    )  # fmt: skip
    parser.add_argument(
        "--sight", metavar="PATH", help="make a socket there at which `mmrt kv` sees the one model"
    )
    parser.add_argument("--no-access-log", action="store_true", help="do not log each request")
    group = parser.add_argument_group("limits")
    for limit in LIMITS:
        default = getattr(Limits, limit.name)
        group.add_argument(
            limit.spelling, dest=limit.name, type=limit.kind, default=default,
            metavar=limit.metavar, help=f"{limit.help} (default: %(default)s)",
        )  # fmt: skip

    add_foreign_arguments(parser, SERVE)


def _host(text: str) -> str:
    from mmrt.serving.access import read_host

    return refusing(read_host, text)


def _origin(text: str) -> str:
    from mmrt.serving.access import read_origin

    return refusing(read_origin, text)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {value}")
    return value


def run(arguments: argparse.Namespace) -> None:
    named = _named(arguments)
    if arguments.sight and len(named) > 1:
        raise UsageError(f"--sight: for one model, not {len(named)}")
    _check_cluster(arguments, named)
    try:
        from mmrt.serving.server import Server
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"mmrt serve needs the package {error.name}: pip install 'mmrt[serve]'"
        ) from None
    access = _access(arguments)
    server = Server(
        lambda house: _load(house, named, arguments),
        host=arguments.host,
        port=arguments.port,
        access=access,
        limits=_limits(arguments),
        note=note,
        started=_say_where,
        access_log=not arguments.no_access_log,
    )
    if not access.keys and arguments.host in ("0.0.0.0", "::", ""):
        note("anybody who reaches this machine may use it: --api-key-file asks for a key")
    try:
        server.run()
    except OSError as error:
        if isinstance(error, MmrtError):  # of a model, or of a stage
            raise
        raise FileError(
            error.errno, f"{arguments.host}:{arguments.port}: {error.strerror}"
        ) from None


def _say_where(addresses: list[tuple[str, int]]) -> None:
    for host, port in addresses:
        shown = f"[{host}]" if ":" in host else host
        note(f"listening at http://{shown}:{port}")


def _named(arguments: argparse.Namespace) -> dict[str, str | None]:
    """The models by name; None: the one that -hf names, or the default one."""
    given = [*arguments.models, *filter(None, [arguments.model_option])]
    if not given:
        return {"": None}
    if arguments.hf_repo:
        raise UsageError("the model is given twice")
    named: dict[str, str | None] = {}
    for word in given:
        name, separator, path = word.partition("=")
        if not separator or os.path.exists(word):
            name, path = _name_of(word), word
        if not name or name in named:
            raise UsageError(f"two models are called {name!r}: NAME=FILE calls one otherwise")
        named[name] = path
    return named


def _name_of(path: str) -> str:
    return os.path.basename(path).removesuffix(".gguf")


def _access(arguments: argparse.Namespace) -> "Access":
    from mmrt.serving.access import Access, read_keys

    keys = read_keys(arguments.api_key_file) if arguments.api_key_file else []
    hosts = {name.lower() for name in [arguments.host, *arguments.allowed_host]}
    access = Access(keys, frozenset(hosts), frozenset(arguments.cors_origin))
    if arguments.open_metrics:
        access.without_key |= {"/metrics"}
    return access


def _limits(arguments: argparse.Namespace) -> "Limits":
    from mmrt.serving.limits import Limits

    return Limits(**{field.name: getattr(arguments, field.name) for field in fields(Limits)})


# What is up to each stage of a cluster, by the names and the defaults of the arguments.
_OF_STAGES = {
    **dict.fromkeys(("ctx_size", "threads", "memory", "reader", "bundle")),
    **dict.fromkeys(("kv_dir", "kv_dir_size", "draft")),
    **{"policy": "lazy", "cache_type_k": "f16", "cache_type_v": "f16", "exact": False},
}


def _check_cluster(arguments: argparse.Namespace, named: dict[str, str | None]) -> None:
    if not arguments.cluster and arguments.secret_file:
        raise UsageError("--secret-file: is for --cluster")
    if not arguments.cluster:
        return
    on_ray = _is_ray(arguments.cluster)
    if on_ray == bool(arguments.secret_file):
        takes = (
            "takes no --secret-file on Ray: its stages draw one"
            if on_ray
            else "takes --secret-file"
        )
        raise UsageError(f"--cluster: {takes}")
    if len(named) > 1:
        raise UsageError(f"--cluster: for one model, not {len(named)}")
    for name, default in _OF_STAGES.items():
        if getattr(arguments, name) != default and not (on_ray and name == "ctx_size"):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option}: not with --cluster: it is for `mmrt stage`, if at all")


def _is_ray(cluster: str) -> bool:
    return cluster == "ray" or cluster.startswith("ray:")


def _open(path: str | None, arguments: argparse.Namespace) -> "TextModel":
    if not arguments.cluster:
        return open_model(path, arguments, arguments.ctx_size)
    from mmrt.cluster.coordinator import Cluster

    path = path or fetched_model(arguments)
    how = {"chat_template": arguments.chat_template, "pre": arguments.pre}
    cluster: Cluster
    if _is_ray(arguments.cluster):
        from mmrt.cluster.on_ray import RayCluster

        address = arguments.cluster.partition(":")[2] or None
        cluster = RayCluster(address=address, context=arguments.ctx_size, path=path, **how)
    else:
        from mmrt.cluster.wire import read_secret

        cluster = Cluster(arguments.cluster, read_secret(arguments.secret_file), model=path, **how)
    for place, layers in cluster.stages:
        note(f"layers {layers.start}:{layers.stop} at {place}")
    return cluster


def _prepare(model: "TextModel") -> None:
    """Makes what takes long before it is asked for: the tokenizer, and what schemas need of it."""
    from mmrt.text.constraint import vocabulary

    with suppress(UnsupportedError):
        vocabulary(model.tokenizer)


def _load(house: "House", named: dict[str, str | None], arguments: argparse.Namespace) -> None:
    """Opens the models, in one budget. Each one's engine keeps an equal part of what ended texts
    may hold."""
    from mmrt.memory.budget import Budget
    from mmrt.serving.house import Served

    if arguments.memory is not None:
        arguments.memory = Budget(arguments.memory)
    for name, path in named.items():
        model = _open(path, arguments)
        _prepare(model)
        keep = model.spare_bytes // (4 * len(named))
        engine = model.engine(
            max_gap=arguments.max_gap,
            keep=keep,
            waiting=arguments.queue + 1,
            sight=arguments.sight,
        )
        called = name or _name_of(str(model.path))
        defaults, variables = (
            recommended(model.described().metadata),
            arguments.chat_template_kwargs,
        )
        house.add(Served(called, model, engine, defaults, arguments.queue, variables))
        note(f"{called}: {model.memory}")
