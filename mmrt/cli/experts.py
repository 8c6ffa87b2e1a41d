"""`mmrt experts`: which experts tokens go to, and what a cache of them would find."""

import argparse
import re
import sys
from pathlib import Path

from mmrt.cli.options import (
    UsageError,
    add_generation_arguments,
    add_model_arguments,
    count,
    generation,
    open_model,
    require_one_model,
    size,
)
from mmrt.cli.output import print_table, progress, tame, write_file
from mmrt.cli.prompt import add_prompt_arguments, model_and_prompt
from mmrt.errors import FormatError
from mmrt.memory.sizes import human
from mmrt.sight import replay, routing
from mmrt.sight.replay import POLICIES, Replay
from mmrt.sight.routing import RoutingTrace

DESCRIPTION = """\
Continues PROMPT with a mixture of experts, or reads --ids, and shows which
experts its tokens have gone to; --trace keeps that in a file. --replay takes it
from such a file instead, and shows too what of these experts would have been in
memory, in caches of several sizes and by several rules.\
"""

_PARTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)  # of all experts, in a cache
_LAGS = (1, 2, 4, 8, 16, 32)
_MOST_IDS = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mmrt experts [MODEL] [PROMPT] [options]\n       mmrt experts --replay TRACE"
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    parser.add_argument(
        "--ids", type=_ids, metavar="IDS",
        help="read these tokens one by one instead of a prompt: 0:384, or 5,17,3",
    )  # fmt: skip
    parser.add_argument(
        "--trace", type=Path, metavar="TRACE", help="write the trace, as CSV; .xz: compressed"
    )
    parser.add_argument("--replay", type=Path, metavar="TRACE", help="take it from this file")
    parser.add_argument(
        "--cache", type=_sizes, metavar="SIZES",
        help="replay in caches of these sizes, such as 2GiB,4GiB (default: parts of all experts)",
    )  # fmt: skip
    parser.add_argument(
        "--skip", type=count, default=0, metavar="N",
        help="steps of the trace that fill the cache and are not counted (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--disk", type=size, metavar="SIZE",
        help="with --bandwidth: forecast tokens/s, of a disk that reads so much in a second",
    )  # fmt: skip
    parser.add_argument(
        "--bandwidth", type=size, metavar="SIZE",
        help="of weights that are multiplied from memory in a second",
    )  # fmt: skip
    parser.add_argument(
        "--png", type=Path, metavar="PICTURE", help="draw the uses as PNG (needs Pillow)"
    )
    parser.add_argument("--html", type=Path, metavar="PICTURE", help="draw them as a page")
    add_generation_arguments(parser, n_predict=128)


def run(arguments: argparse.Namespace) -> None:
    if bool(arguments.disk) != bool(arguments.bandwidth):
        raise UsageError("a forecast needs both --disk and --bandwidth")
    if arguments.replay:
        if arguments.words or arguments.prompt or arguments.ids or arguments.trace:
            raise UsageError("--replay takes no model, prompt, --ids or --trace")
        trace = routing.read(arguments.replay)
    else:
        if arguments.cache or arguments.skip or arguments.disk:
            raise UsageError("--cache, --skip, --disk and --bandwidth go with --replay")
        trace = _record(arguments)
    if arguments.trace:
        trace.write(arguments.trace)
    _draw(trace, arguments)
    if Path("-") in (arguments.png, arguments.html):  # stdout is the picture's
        return
    _print_uses(trace)
    if arguments.replay:
        print()
        _print_replay(trace, arguments)


def _ids(text: str) -> list[int]:
    """0:384 is 0 to 383."""
    found: list[int] = []
    for word in text.split(","):
        if not re.fullmatch(r"\d{1,9}(:\d{1,9})?", word, re.ASCII):
            raise argparse.ArgumentTypeError(
                f"expected ids such as 0:384 or 5,17,3, not {text!r:.60}"
            )
        first, _, end = word.partition(":")
        found += range(int(first), int(end or first) + (not end))[:_MOST_IDS]
    if not 0 < len(found) < _MOST_IDS:
        raise argparse.ArgumentTypeError(f"{len(found)} ids")
    return found


def _sizes(text: str) -> list[int]:
    return [size(word) for word in text.split(",")]


# ---- recording ----


def _record(arguments: argparse.Namespace) -> RoutingTrace:
    if arguments.ids:
        path, prompt = _only_model(arguments), ""
    else:
        path, prompt = model_and_prompt(arguments)
    options = generation(arguments)
    with (
        open_model(path, arguments, arguments.ctx_size) as model,
        routing.recording(model) as recorder,
        progress("reading") as update,
    ):
        if arguments.ids:
            model.require_room(len(arguments.ids))
            with model.sequence() as sequence:
                for done, token in enumerate(arguments.ids):
                    sequence.extend([token])
                    update(done + 1, len(arguments.ids))
        else:
            for done, _ in enumerate(model.stream(prompt, **options)):
                update(done + 1, arguments.n_predict or model.context)
        return recorder.trace


def _only_model(arguments: argparse.Namespace) -> str | None:
    given = [*arguments.words, *([arguments.model_option] if arguments.model_option else [])]
    if arguments.prompt is not None or arguments.file is not None:
        raise UsageError("--ids stand in place of a prompt")
    require_one_model(arguments, given)
    return given[0] if given else None


# ---- what is shown ----


def _draw(trace: RoutingTrace, arguments: argparse.Namespace) -> None:
    if not (arguments.png or arguments.html):
        return
    from mmrt.sight.pictures import drawing, experts

    picture = experts.draw(trace)
    if arguments.html:
        write_file(arguments.html, drawing.page(picture).encode())
    if arguments.png:
        write_file(arguments.png, drawing.png(picture))


def _print_uses(trace: RoutingTrace) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        from mmrt.sight.pictures.experts import TerminalExperts

        Console().print(TerminalExperts(trace))
    n_used, n = trace.choices.shape[2], trace.n_experts
    rows = [
        ("model", tame(trace.model)),
        ("tokens, steps", f"{trace.n_tokens}, {len(trace.steps)}"),
        ("layers", f"{len(trace.layers)}, {n_used} of {n} experts a token"),
        ("an expert", human(max(trace.expert_bytes)) if max(trace.expert_bytes) else "not known"),
    ]
    rows += [
        (f"the same as {lag} before", f"{trace.again(lag):.1%}")
        for lag in _LAGS
        if lag < trace.n_tokens
    ]
    rows += [
        (f"uses of the {part} most used", f"{trace.share_of_most_used(part):.1%}")
        for part in (n // 16, n // 8, n // 4, n // 2)
        if part
    ]
    print_table(("", ""), rows)


def _print_replay(trace: RoutingTrace, arguments: argparse.Namespace) -> None:
    if arguments.skip >= len(trace.steps):
        raise UsageError(f"--skip: the trace has {len(trace.steps)} steps")
    if arguments.cache or arguments.disk:
        _require_sizes(arguments.replay, trace)
    parts = [n / trace.bank_bytes for n in arguments.cache] if arguments.cache else _PARTS
    head = ["cache", "of all", "slots", *(f"{name}, found" for name in POLICIES)]
    head += ["missed a token"] if trace.bank_bytes else []
    head += ["tokens/s"] if arguments.disk else []
    rows = [_row(trace, part, arguments) for part in parts]
    print_table(head, rows, "what a cache would find")
    print_table(("", ""), [(name, what) for name, what in POLICIES.items()])


def _require_sizes(path: Path, trace: RoutingTrace) -> None:
    if not trace.bank_bytes or not trace.dense_bytes:
        raise FormatError(f"{path}: says no expert_bytes or no dense_bytes")


def _row(trace: RoutingTrace, part: float, arguments: argparse.Namespace) -> list[str]:
    slots = replay.slots(trace, part)
    found = {name: replay.replay(trace, name, slots) for name in POLICIES}
    ours: Replay = found["score"]
    first = arguments.skip
    row = [human(int(part * trace.bank_bytes)) if trace.bank_bytes else "", f"{part:.0%}"]
    row += [str(sum(slots.values())), *(f"{one.hit_rate(first):.1%}" for one in found.values())]
    if trace.bank_bytes:
        row.append(human(int(ours.missed_bytes[first:].sum()) // sum(trace.steps[first:])))
    if arguments.disk:
        rate = replay.forecast(trace, ours, arguments.disk, arguments.bandwidth, first)
        row.append(f"{rate:.2f}")
    return row
