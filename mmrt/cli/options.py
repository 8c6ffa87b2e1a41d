"""The arguments that several commands share, and what they stand for."""

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mmrt.cli.llama_cpp import GENERATION, MODEL, add_foreign_arguments
from mmrt.cli.output import note, progress
from mmrt.core.elements import KV_TYPES
from mmrt.core.sampling import Sampling
from mmrt.core.streaming import READERS
from mmrt.errors import ArgumentError
from mmrt.files.policies import POLICIES
from mmrt.memory.sizes import parse_size

if TYPE_CHECKING:
    from mmrt.run.model import Model


Read = TypeVar("Read")


class UsageError(Exception):
    """Arguments that make no sense, alone or together."""


def count(text: str) -> int:
    """The type of arguments that are numbers of things: 0 or more."""
    return _at_least(0, text)


def counts(text: str) -> list[int]:
    """The type of arguments that are several numbers of things, with commas between them."""
    return [count(word) for word in text.split(",")]


def positive(text: str) -> int:
    """The type of arguments that are whole numbers above 0."""
    return _at_least(1, text)


def or_none(least: int, *none: int) -> Callable[[str], int | None]:
    """The type of arguments that are whole numbers from `least` on, and where others stand for
    None, as they do in llama.cpp."""

    def number(text: str) -> int | None:
        return None if int(text) in none else _at_least(least, text, *none)

    return number


def _at_least(least: int, text: str, *others: int) -> int:
    value = int(text)
    if value < least:
        wanted = " or ".join(map(str, (f"{least} or more", *others)))
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {value}")
    return value


def seconds(text: str) -> float:
    """The type of arguments that are lengths of time."""
    value = float(text)
    if not 0.05 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"must be from 0.05 to 86400 seconds, not {text}")
    return value


def size(text: str) -> int:
    """The type of arguments that are numbers of bytes."""
    return refusing(parse_size, text)


def refusing(read: Callable[[str], Read], text: str) -> Read:
    """What `read` makes of the text of an argument; its ArgumentErrors name the argument."""
    try:
        return read(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", dest="model_option", metavar="MODEL",
        help="the model, a GGUF file; without one, a small default model is fetched once",
    )  # fmt: skip
    parser.add_argument(
        "-hf", "-hfr", "--hf-repo", metavar="REPO[:QUANT]",
        help="the model of this repository on huggingface.co, fetched once by the package "
        "huggingface-hub, such as Q4_K_M or another file of it whose name has QUANT in it",
    )  # fmt: skip
    parser.add_argument(
        "-hff", "--hf-file", metavar="FILE", help="this file of the repository that -hf names"
    )
    parser.add_argument(
        "--policy", choices=POLICIES, default="lazy", metavar="NAME",
        help=f"how weights come into memory: {', '.join(POLICIES)} (default: lazy)",
    )  # fmt: skip
    parser.add_argument(
        "--bundle", metavar="FILE", help="what `mmrt bundle` made of the model, if it has ReLU"
    )
    parser.add_argument(
        "--predictor", metavar="FILE",
        help="what `mmrt predictor` made of the model; lossy: what it writes is not quite the "
        "model's own. With --bundle and within a budget, only predicted neurons are read",
    )  # fmt: skip
    parser.add_argument(
        "--pre", metavar="NAME",
        help="how texts are cut into words, where the file's tokenizer.ggml.pre names a way that "
        "mmrt does not know: qwen2, llama-bpe or another that it does",
    )  # fmt: skip
    add_running_arguments(parser)
    add_foreign_arguments(parser, MODEL)


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a model, and of some layers of one."""
    parser.add_argument(
        "-t", "--threads", type=or_none(1, -1), metavar="N",
        help="threads (default: as many as cores)",
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
    parser.add_argument(
        "--exact", action="store_true",
        help="compute each token as in a step of its own: results then depend on its text alone, "
        "to the bit, and prompts are read more slowly",
    )  # fmt: skip


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-sys", "--system", "--system-prompt", metavar="TEXT",
        help="what the model is told beforehand",
    )  # fmt: skip
    add_template_arguments(parser)
    parser.add_argument(
        "--hide-reasoning", action="store_true",
        help="do not show what a model thinks before it answers (a terminal shows it dim; files "
        "and pipes never get it)",
    )  # fmt: skip
    parser.add_argument("--stats", action="store_true", help="say on stderr how it went")


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template", metavar="JINJA",
        help="how messages become a prompt, or the name of one of several templates in the model's "
        "file, such as tool_use (default: as the file says)",
    )  # fmt: skip
    parser.add_argument(
        "--chat-template-file", type=_template_file, dest="chat_template", metavar="FILE",
        help="likewise, from a file",
    )  # fmt: skip
    parser.add_argument(
        "--chat-template-kwargs", type=_variables, default={}, metavar="JSON",
        help="what else the template reads, such as '{\"enable_thinking\": false}'",
    )  # fmt: skip


def _variables(text: str) -> dict[str, Any]:
    from mmrt.text.chat import require_variables

    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text!r:.60}")
    try:
        return require_variables(found)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _template_file(path: str) -> str:
    text = text_in(path)
    if "{" not in text:
        raise argparse.ArgumentTypeError(f"{path}: this is no Jinja template: it has no braces")
    return text


def text_in(path: str) -> str:
    """The text of a file that an argument names."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{path}: not UTF-8: byte {error.start}") from None


class Setting(NamedTuple):
    """An argument that sets a field of Sampling.

    answers: its value in run and chat, where neither the user nor the model's file says another:
    greedy choice makes small models repeat themselves. key: the file's, if there is one, after
    general.sampling.
    """

    spellings: str
    name: str
    kind: Callable[[str], Any]
    answers: float
    key: str | None
    help: str


SETTINGS = [
    Setting("--temp --temperature", "temperature", float, 0.8, "temp",
            "temperature; 0 always takes the likeliest token"),
    Setting("--top-k", "top_k", count, 40, "top_k",
            "draw from this many of the likeliest tokens; 0: from all"),
    Setting("--top-p", "top_p", float, 0.95, "top_p",
            "draw from the likeliest tokens that make up this probability; 1: from all"),
    Setting("--min-p", "min_p", float, 0.05, "min_p",
            "draw from tokens this likely, relative to the likeliest; 0: from all"),
    Setting("--repeat-penalty", "repeat_penalty", float, 1.0, "penalty_repeat",
            "hold the latest tokens back by this factor; 1: do not"),
    Setting("--presence-penalty", "presence_penalty", float, 0.0, None,
            "subtract this from the logits of the latest tokens; 0: do not"),
    Setting("--frequency-penalty", "frequency_penalty", float, 0.0, None,
            "subtract this for each time that they occur; 0: do not"),
    Setting("--repeat-last-n", "repeat_last_n", int, 64, "penalty_last_n",
            "the number of latest tokens that penalties look at; -1: all"),
]  # fmt: skip


# The sampling of answers, where nobody says another.
OURS = {setting.name: setting.answers for setting in SETTINGS}


def spelled(sampling: Mapping[str, Any]) -> str:
    """`sampling` as options: "--temp 0.6 --top-k 20"."""
    given = [setting for setting in SETTINGS if setting.name in sampling]
    return " ".join(f"{s.spellings.split()[0]} {sampling[s.name]:g}" for s in given)


def add_saving_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv-dir", metavar="DIR",
        help="save keys and values there, so that what a text begins with is not read again by a "
        "later run (default: they are not saved)",
    )  # fmt: skip
    parser.add_argument(
        "--kv-dir-size", type=size, metavar="SIZE",
        help="what they may take there (default: half of what the disk has for them)",
    )  # fmt: skip


def add_draft_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft", "-md", "--model-draft", metavar="KIND",
        help="what guesses tokens, several of which one step then verifies, to the same text: "
        "ngram (what the text has said before), the file of a smaller model of the same "
        "vocabulary, off (default: ngram where steps read weights from the disk)",
    )  # fmt: skip


def add_generation_arguments(
    parser: argparse.ArgumentParser, n_predict: int, answers: bool = False
) -> None:
    """answers: whether the command fills in recommended(), and the library's defaults else."""
    parser.add_argument(
        "-n", "--n-predict", "--predict", type=or_none(0, -1, -2), default=n_predict,
        metavar="N", help="write this many tokens at most; -1 or -2: until the text ends or the "
        "context is full (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-c", "--ctx-size", type=or_none(1, 0), metavar="N",
        help="tokens that the context can hold (default: the model's own limit)",
    )  # fmt: skip
    add_saving_arguments(parser)
    add_draft_arguments(parser)
    parser.add_argument("--ignore-eos", action="store_true", help="go on where the text would end")
    parser.add_argument(
        "-j", "--json-schema", type=_schema, metavar="JSON",
        help="write JSON that is valid by this schema, {} for any; takes the package llguidance",
    )  # fmt: skip
    parser.add_argument(
        "-jf", "--json-schema-file", type=_schema_file, dest="json_schema", metavar="FILE",
        help="likewise, from a file",
    )  # fmt: skip
    sampling = parser.add_argument_group(
        "sampling",
        "Where none is given, what the model's file advises (general.sampling.*) goes before the "
        "other defaults."
        if answers
        else None,
    )
    for setting in SETTINGS:
        default = setting.answers if answers else getattr(Sampling, setting.name)
        if answers and setting.key:
            default = f"the file's {setting.key}, or {default}"
        sampling.add_argument(
            *setting.spellings.split(), dest=setting.name, type=setting.kind,
            metavar=setting.name[0].upper(), help=f"{setting.help} (default: {default})",
        )  # fmt: skip
    sampling.add_argument(
        "-s", "--seed", type=or_none(0, -1), metavar="N",
        help="the same seed draws the same tokens again (default: -1, another each time)",
    )  # fmt: skip
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given several times",
    )  # fmt: skip
    add_foreign_arguments(parser, GENERATION)


def _schema(text: str, name: str = "the schema") -> str:
    from mmrt.text.grammar import json_by

    refusing(lambda given: json_by(given, name), text)
    return text


def _schema_file(path: str) -> str:
    return _schema(text_in(path), path)


def generation(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of Model.stream that the user has given in `arguments`."""
    sampling = {setting.name: getattr(arguments, setting.name) for setting in SETTINGS}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    sampling["seed"] = arguments.seed
    try:
        Sampling(**sampling)  # knows the ranges
    except ArgumentError as error:
        raise UsageError(str(error)) from None
    return {
        **sampling,
        "max_tokens": arguments.n_predict,
        "stop": tuple(arguments.stop),
        "ignore_eos": arguments.ignore_eos,
        "json_schema": arguments.json_schema,
    }


def recommended(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling that answers have: the file's, and our own where it says nothing."""
    return OURS | advised(metadata)


def advised(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling that a model's file advises; what makes no sense is passed over, and said so."""
    found: dict[str, Any] = {}
    for setting in SETTINGS:
        key = f"general.sampling.{setting.key}"
        value = metadata.get(key) if setting.key else None
        if value is not None:
            try:
                Sampling(**{setting.name: value})
                found[setting.name] = value
            except ArgumentError:
                note(f"{key} is {value!r:.60}, which is passed over")
    return found


def one_model(arguments: argparse.Namespace) -> str | None:
    """The model, where it may be given as MODEL or with -m. None: the default one."""
    given = [word for word in (arguments.model, arguments.model_option) if word]
    require_one_model(arguments, given)
    return given[0] if given else None


def require_one_model(arguments: argparse.Namespace, given: List[str]) -> None:
    """given: the files that were named as models."""
    if len(given) + bool(arguments.hf_repo) > 1:
        raise UsageError("the model is given twice")
    if arguments.hf_file and not arguments.hf_repo:
        raise UsageError("-hff names a file of a repository, which -hf must name")


def open_model(
    path: str | None, arguments: argparse.Namespace, context: int | None = None
) -> "Model":
    """The model at `path` (None: that of -hf, or the default one), set up as `arguments` ask."""
    from mmrt.run.model import Model

    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        model = Model(
            path or fetched_model(arguments),
            threads=arguments.threads,
            context=context,
            policy=arguments.policy,
            memory=arguments.memory,
            reader=arguments.reader,
            kv_k=arguments.cache_type_k,
            kv_v=arguments.cache_type_v,
            chat_template=getattr(arguments, "chat_template", None),
            exact=arguments.exact,
            bundle=arguments.bundle,
            predictor=arguments.predictor,
            pre=arguments.pre,
            draft=getattr(arguments, "draft", None),
            kv_dir=getattr(arguments, "kv_dir", None),
            kv_dir_size=getattr(arguments, "kv_dir_size", None),
        )
    for warning in raised:
        note(str(warning.message))
    return model


def fetched_model(arguments: argparse.Namespace) -> str:
    """The path of the model that -hf names, or of the default one; fetched if need be."""
    if arguments.hf_repo:
        from mmrt.files import hub

        repository, _, quant = arguments.hf_repo.partition(":")
        return str(hub.path(repository, quant or None, arguments.hf_file))
    from mmrt.files import default_model

    if not default_model.is_cached():
        note(default_model.NOTICE)
    with progress("fetching") as update:
        waiting = "another process is fetching it: waiting"
        return str(default_model.path(update, lambda: note(waiting)))
