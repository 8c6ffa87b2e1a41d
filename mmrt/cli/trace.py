"""`mmrt trace`: what a generation costs, by token and by layer."""

import argparse
from pathlib import Path

from mmrt.cli.options import (
    add_generation_arguments,
    add_model_arguments,
    generation,
    open_model,
)
from mmrt.cli.output import note, print_table, printable, progress, tame, to_json, write_file
from mmrt.cli.prompt import add_prompt_arguments, model_and_prompt
from mmrt.memory.sizes import human
from mmrt.sight import chrome_trace, trace
from mmrt.sight.trace import Span, Trace

DESCRIPTION = """\
Continues PROMPT, and records for each token and layer what it cost: time, page
faults, bytes read from the disk; and what of the weights was in memory.

Writes trace.json, which chrome://tracing and https://ui.perfetto.dev open, and a
picture of it beside, trace.html; prints the text and a row for each layer. A
file `-` is stdout, in place of both. The output of a model that has no matrix
of its own for it counts as its embedding's, token_embd.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mmrt trace [MODEL] [PROMPT] [options]"
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("trace.json"), metavar="TRACE",
        help="the trace to write (default: trace.json)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=Path, metavar="PICTURE", help="the picture (default: beside the trace)"
    )
    parser.add_argument(
        "--png", type=Path, metavar="PICTURE", help="the picture as PNG, too (this needs Pillow)"
    )
    parser.add_argument("--cold", action="store_true", help="evict the file before")
    parser.add_argument(
        "--operations", action="store_true", help="record each operation of each layer by itself"
    )
    add_generation_arguments(parser, n_predict=16)


def run(arguments: argparse.Namespace) -> None:
    path, prompt = model_and_prompt(arguments)
    options = generation(arguments)
    arguments.draft = arguments.draft or "off"  # a step is a token
    interrupted: KeyboardInterrupt | None = None
    with open_model(path, arguments, arguments.ctx_size) as model:
        ids = model.tokenize(prompt)
        if arguments.cold:
            left = model.file.evict().after
            note(f"evicted; {left.fraction:.1%} of the file stays in memory ({left.source})")
        with trace.recording(model, arguments.operations) as recorder:
            try:
                with progress("tracing") as update:
                    for done, piece in enumerate(model.stream(ids, **options)):
                        recorder.note(piece)
                        update(done + 1, arguments.n_predict or model.context)
            except KeyboardInterrupt as signal:
                interrupted = signal  # what there is is written first
    _write(recorder.trace, arguments)
    if Path("-") not in (arguments.output, arguments.html, arguments.png):  # stdout is the table's
        print(tame("".join(step.text for step in recorder.trace.steps), "\n\t"), end="\n\n")
        _print(recorder.trace)
    if interrupted:
        raise interrupted


def _write(found: Trace, arguments: argparse.Namespace) -> None:
    from mmrt.sight.pictures import drawing, timeline

    write_file(arguments.output, to_json(chrome_trace.events(found)).encode())
    picture = timeline.draw(found)
    if page := arguments.html or _beside(arguments.output):
        write_file(page, drawing.page(picture).encode())
    if arguments.png:
        write_file(arguments.png, drawing.png(picture))


def _beside(output: Path) -> Path | None:
    return None if str(output) == "-" else output.with_suffix(".html")


def _print(found: Trace) -> None:
    """A row for each layer, times and faults of a token as means over those that were decoded."""
    decode = found.decode or found.steps
    n = max(len(decode), 1)
    first, each = found.by_label(found.prompt), found.by_label(decode)
    before, after = found.looks[0].resident, found.looks[-1].resident

    def share(resident: dict[str, int], label: str) -> str:
        size = found.sizes.get(label)
        return f"{resident[label] / size:.1%}" if size else ""

    def cells(label: str, prompt: Span, token: Span) -> tuple[str, ...]:
        return (
            printable(label),
            *(f"{prompt.ns / 1e6:.2f}", human(prompt.read_bytes), str(prompt.major_faults)),
            *(f"{token.ns / 1e6 / n:.2f}", human(token.read_bytes // n)),
            f"{token.major_faults / n:.1f}",
            *(share(before, label), share(after, label)),
        )

    rows = [cells(label, first[label], each[label]) for label in first if label in each]
    if rows:
        whole = [_sum(list(costs.values())) for costs in (first, each)]
        rows.append(cells("all", *whole))
    print_table(
        ("layer", "prompt ms", "read", "majflt", "token ms", "read", "majflt", "before", "after"),
        rows,
    )
    _print_process(found)


def _sum(spans: list[Span]) -> Span:
    columns = list(zip(*spans, strict=True))
    return Span(spans[0].start_ns, *map(sum, columns[1:]))


def _print_process(found: Trace) -> None:
    """What the kernel counted of the whole process."""
    if found.before is None or found.after is None or found.page_tables is None:
        return

    def size(n_bytes: int | None) -> str:
        return "not known" if n_bytes is None else human(n_bytes)

    print()
    rows: list[tuple[str, ...]] = [
        (name, size(getattr(found.before, field)), size(getattr(found.after, field)))
        for name, field in (
            ("RSS", "rss"),
            ("PSS", "pss"),
            ("of files", "rss_file"),
            ("anonymous", "rss_anon"),
            ("page tables (VmPTE)", "page_tables"),
        )
    ]
    predicted = [f"{human(tables.nbytes)}, {tables.tables} tables" for tables in found.page_tables]
    rows.append(("  for mapped weights, by arithmetic", *predicted))
    print_table(("process", "before", "after"), rows)
