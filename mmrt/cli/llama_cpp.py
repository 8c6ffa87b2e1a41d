"""llama.cpp's options that are not mmrt's own: what each means there, and what becomes of it here.

Options that mean the same in both are mmrt's own, spelled alike: see options.py. Those below are
accepted, so that a command that was written for llama.cpp runs, or is told what to say instead.
"""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from mmrt.cli.output import note

Fate = Literal["same", "moot", "ignored", "refused"]


class Foreign(NamedTuple):
    """One option.

    fate: "same": it stands for `stands_for`, an argument and its value; "moot": it asks for what is
    so anyway; "ignored": what is read, written and kept is the same without it (it is a matter of
    speed, memory or looks), which is said; "refused": something else would come of it.
    moot: values that ask for what is so anyway, whatever the fate of others.
    """

    spellings: str
    fate: Fate
    why: str
    n_values: int = 1
    moot: tuple[str, ...] = ()
    stands_for: tuple[str, Any] = ("", None)


_CPU = "mmrt computes on the CPU alone"
_SAMPLERS = "mmrt samples by --temp, --top-k, --top-p, --min-p and penalties, in llama.cpp's order"
_ROPE = "the model's file says how it encodes positions"
_MAPPED = "weights are always mapped; --policy populate reads them all at the start"
_AFFINITY = "taskset says which CPUs a process uses"
_OFF = ("0", "0.0", "0.00")

# Of every command that runs a model.
MODEL = [
    Foreign("--mlock", "same", "weights are locked in memory", 0, stands_for=("policy", "locked")),
    Foreign("--mmap", "moot", "weights are always mapped", 0),
    Foreign("--no-mmap", "ignored", _MAPPED, 0),
    Foreign("-mmp", "ignored", _MAPPED, moot=("1",)),
    Foreign("-dio --direct-io", "ignored", _MAPPED, 0),
    Foreign("-ngl --gpu-layers --n-gpu-layers", "ignored", _CPU, moot=("0", "auto")),
    Foreign("-dev --device", "ignored", _CPU, moot=("none",)),
    Foreign("-sm --split-mode", "ignored", _CPU, moot=("none",)),
    Foreign("-ts --tensor-split", "ignored", _CPU),
    Foreign("-mg --main-gpu", "ignored", _CPU),
    Foreign("-ot --override-tensor", "ignored", _CPU),
    Foreign("-ncmoe --n-cpu-moe", "ignored", _CPU),
    Foreign("-cmoe --cpu-moe", "moot", _CPU, 0),
    Foreign("-nkvo --no-kv-offload", "moot", _CPU, 0),
    Foreign("-kvo --kv-offload", "ignored", _CPU, 0),
    Foreign("--op-offload", "ignored", _CPU, 0),
    Foreign("--no-op-offload", "moot", _CPU, 0),
    Foreign("--rpc", "ignored", "mmrt computes on this machine alone"),
    Foreign("--repack", "ignored", "weights are multiplied with as they lie", 0),
    Foreign("-nr --no-repack", "moot", "weights are multiplied with as they lie", 0),
    Foreign("--swa-full", "ignored", "keys and values are kept as the model needs them", 0),
    Foreign("-dt --defrag-thold", "ignored", "the cache is in pages, which do not fragment"),
    Foreign("-b --batch-size", "ignored", "mmrt chooses how many tokens a step reads"),
    Foreign("-ub --ubatch-size", "ignored", "mmrt chooses how many tokens a step reads"),
    Foreign("-tb --threads-batch", "ignored", "prompts are read by as many threads as -t says"),
    Foreign(
        "-fa --flash-attn", "ignored", "attention never stores its scores", moot=("on", "auto", "1")
    ),
    Foreign("--numa", "ignored", "--policy numa brings weights to the nodes that read them"),
    Foreign("--prio --prio-batch", "ignored", "nice sets priorities"),
    Foreign("--poll --poll-batch", "ignored", "mmrt chooses how its threads wait"),
    Foreign("-C --cpu-mask -Cb --cpu-mask-batch", "ignored", _AFFINITY),
    Foreign("-Cr --cpu-range -Crb --cpu-range-batch", "ignored", _AFFINITY),
    Foreign("--cpu-strict --cpu-strict-batch", "ignored", _AFFINITY, moot=("0",)),
    Foreign("-v --verbose", "ignored", "there is no log; run and chat have --stats", 0),
    Foreign("-lv --verbosity", "ignored", "there is no log; run and chat have --stats"),
    Foreign("--log-disable", "moot", "there is no log", 0),
    Foreign("--log-file", "refused", "there is no log"),
    Foreign("--log-colors", "ignored", "there is no log"),
    Foreign("--log-prefix", "ignored", "there is no log", 0),
    Foreign("--log-timestamps", "ignored", "there is no log", 0),
    Foreign("--no-warmup", "moot", "run and chat do not warm up", 0),
    Foreign("--check-tensors", "ignored", "mmrt verifies what it computes", 0),
    Foreign("--lora", "refused", "mmrt knows no adapters: merge it into the model"),
    Foreign("--lora-scaled", "refused", "mmrt knows no adapters: merge it into the model", 2),
    Foreign("-mm --mmproj", "refused", "mmrt reads text alone"),
    Foreign("-mu --model-url", "refused", "mmrt fetches no URLs: fetch the file, and name it"),
    Foreign("-hft --hf-token", "refused", "huggingface_hub reads the environment's HF_TOKEN"),
    Foreign("--override-kv", "refused", "mmrt runs a file as it describes itself, but for --pre"),
    Foreign("--rope-scaling", "refused", _ROPE),
    Foreign("--rope-scale", "refused", _ROPE),
    Foreign("--rope-freq-base", "refused", _ROPE, moot=_OFF),
    Foreign("--rope-freq-scale", "refused", _ROPE, moot=_OFF),
]  # fmt: skip

# Of those that write text.
GENERATION = [
    Foreign("--grammar --grammar-file", "refused", "mmrt knows JSON schemas (-j), not grammars"),
    Foreign(
        "--mirostat --dry-multiplier --xtc-probability --dynatemp-range", "refused", _SAMPLERS,
        moot=_OFF,
    ),
    Foreign("--typical", "refused", _SAMPLERS, moot=("1", "1.0")),
    Foreign("--top-nsigma", "refused", _SAMPLERS, moot=("-1",)),
    Foreign(
        "-l --logit-bias --samplers --sampling-seq --sampler-seq", "refused", _SAMPLERS
    ),
    Foreign("-r --reverse-prompt", "refused", "--stop TEXT ends before a text"),
    Foreign("--prompt-cache", "refused", "mmrt keeps no keys and values on the disk"),
    Foreign("-np --parallel", "refused", "generate_all() goes on with several", moot=("1",)),
    Foreign("-e --escape", "refused", "a prompt is read as it is; bash knows $'a\\nb'", 0),
    Foreign("--no-escape", "moot", "a prompt is read as it is", 0),
    Foreign("--jinja", "moot", "a chat template is always Jinja", 0),
    Foreign("--no-jinja", "refused", "a chat template is always Jinja", 0),
    Foreign("--keep", "ignored", "the system message stays where a context is full"),
    Foreign("--no-display-prompt", "moot", "the prompt is not repeated", 0),
    Foreign("--simple-io", "moot", "input and output are plain", 0),
    Foreign("-co --color", "ignored", "the text has one colour", 0),
    Foreign("--perf", "same", "how it went", 0, stands_for=("stats", True)),
    Foreign("--no-perf", "moot", "only --stats says how it went", 0),
]  # fmt: skip

RUN = [
    Foreign("--context-shift", "refused", "a text ends where the context is full", 0),
    Foreign("--no-context-shift", "moot", "a text ends where the context is full", 0),
    Foreign("-no-cnv --no-conversation", "same", "no template", 0, stands_for=("raw", True)),
    Foreign("-st --single-turn", "moot", "run answers once", 0),
    Foreign(
        "-cnv --conversation -i --interactive -if --interactive-first",
        "refused",
        "mmrt chat converses",
        0,
    ),
]

CHAT = [
    Foreign("--context-shift", "moot", "the oldest turns leave a full context", 0),
    Foreign("--no-context-shift", "refused", "the oldest turns leave a full context", 0),
    Foreign(
        "-cnv --conversation -i --interactive -if --interactive-first", "moot", "chat converses", 0
    ),
    Foreign("-no-cnv --no-conversation", "refused", "mmrt run --raw continues a text", 0),
    Foreign("-st --single-turn", "refused", "mmrt run answers once", 0),
    Foreign("-p --prompt", "refused", "mmrt run answers a prompt; chat reads stdin"),
    Foreign("-mli --multiline-input", "ignored", 'messages of several lines stand in """', 0),
]  # fmt: skip

# Of llama-server.
SERVE = [
    Foreign("--jinja", "moot", "a chat template is always Jinja", 0),
    Foreign("--no-jinja", "refused", "a chat template is always Jinja", 0),
    Foreign("-np --parallel", "ignored", "texts share steps; --queue bounds them", moot=("-1",)),
    Foreign("-cb --cont-batching", "moot", "texts come and go in any step", 0),
    Foreign("-nocb --no-cont-batching", "refused", "texts come and go in any step", 0),
    Foreign("-kvu --kv-unified", "moot", "texts share what they begin with", 0),
    Foreign("--cache-prompt", "moot", "prompts are kept", 0),
    Foreign("--no-cache-prompt", "refused", "prompts are kept; cache_salt keeps one apart", 0),
    Foreign("-cram --cache-ram", "ignored", "prompts are kept while there is memory"),
    Foreign("--cache-reuse", "ignored", "what follows a change is read anew", moot=("0",)),
    Foreign("--slot-save-path", "refused", "--kv-dir saves what was read"),
    Foreign("--slot-prompt-similarity -sps", "ignored", "all that a prompt shares is found"),
    Foreign("--slots --metrics --props", "moot", "/metrics and /props are there", 0),
    Foreign("--no-slots", "moot", "there are no slots", 0),
    Foreign("--context-shift", "refused", "nothing is cut off a prompt", 0),
    Foreign("--no-context-shift", "moot", "nothing is cut off a prompt", 0),
    Foreign("--api-key", "refused", "--api-key-file has keys; others see arguments"),
    Foreign("-a --alias", "refused", "NAME=FILE gives a model a name"),
    Foreign("--threads-http", "ignored", "one thread speaks HTTP"),
    Foreign("-to --timeout", "ignored", "--write-timeout and its like say how long to wait"),
    Foreign("--reasoning-format", "refused", "reasoning is told apart", moot=("auto", "deepseek")),
    Foreign("--ssl-key-file --ssl-cert-file", "refused", "a proxy in front speaks TLS"),
    Foreign("--embedding --embeddings --reranking --rerank", "refused", "mmrt makes text alone", 0),
    Foreign("--no-webui", "moot", "there is no page", 0),
    Foreign("--path --api-prefix", "refused", "a proxy in front serves other paths"),
]  # fmt: skip


def add_foreign_arguments(parser: argparse.ArgumentParser, options: Iterable[Foreign]) -> None:
    for option in options:
        parser.add_argument(
            *option.spellings.split(), action=_Meet, option=option, help=argparse.SUPPRESS
        )


class _Meet(argparse.Action):
    def __init__(self, option_strings: Sequence[str], option: Foreign, **settings: Any) -> None:
        settings |= {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        super().__init__(option_strings, nargs=option.n_values, **settings)
        self._option = option

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        fate, why = self._option.fate, self._option.why
        if values and all(value in self._option.moot for value in values):
            return
        said = " ".join([str(option_string), *values])
        if fate == "refused":
            raise argparse.ArgumentError(None, f"{said}: {why}")
        if fate == "ignored":
            note(f"{said} has no effect: {why}")
        if fate == "same":
            setattr(namespace, *self._option.stands_for)
