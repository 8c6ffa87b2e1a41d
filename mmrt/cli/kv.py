"""`mmrt kv`: the pages of a running engine, who shares what, and what its texts did."""

import argparse
import sys
from pathlib import Path

from mmrt.cli.options import UsageError
from mmrt.cli.output import print_table, printable, tame, to_json, write_file
from mmrt.run.snapshot import Snapshot

DESCRIPTION = """\
Draws the keys and values of a running engine: which pages each text holds, who
shares them, and what each text did so far: waited, read, wrote, was parked.

ENGINE is the socket at which the engine shows itself,

    engine = model.engine(sight="/tmp/engine")     # then: mmrt kv /tmp/engine

or a file that has engine.snapshot().to_json() in it. Texts themselves are not
shown, and the socket is open to its owner alone.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", nargs="?", metavar="ENGINE", help="a socket or a file")
    parser.add_argument(
        "--html", type=Path, metavar="PICTURE", help="write a page for the browser; -: to stdout"
    )
    parser.add_argument(
        "--png", type=Path, metavar="PICTURE", help="write a picture (needs Pillow; -: to stdout)"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="TRACE",
        help="write what the texts did for chrome://tracing and https://ui.perfetto.dev",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(arguments: argparse.Namespace) -> None:
    from mmrt.sight import chrome_trace, engines

    if arguments.engine is None:
        raise UsageError(
            "no engine is named: open one with model.engine(sight=PATH), then `mmrt kv PATH`"
        )
    snapshot = engines.look(arguments.engine)
    if arguments.trace:
        write_file(arguments.trace, to_json(chrome_trace.of_texts(snapshot)).encode())
    if arguments.html or arguments.png:
        from mmrt.sight.pictures import drawing
        from mmrt.sight.pictures import engines as pictures

        picture = pictures.draw(snapshot)
        if arguments.html:
            write_file(arguments.html, drawing.page(picture).encode())
        if arguments.png:
            write_file(arguments.png, drawing.png(picture))
    if Path("-") in (arguments.html, arguments.png, arguments.trace):  # stdout is the picture's
        return
    if arguments.json:
        print(to_json(snapshot.as_dict()))
    else:
        _print(snapshot)


def _print(snapshot: Snapshot) -> None:
    from mmrt.sight import engines
    from mmrt.sight.pictures import engines as pictures

    print(f"{printable(snapshot.model)}, process {snapshot.process}")
    print("\n".join(map(tame, pictures.about(snapshot))), end="\n\n")
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(pictures.TerminalEngine(snapshot))
        return
    owner = engines.owners(snapshot.texts)
    rows: list[tuple[str, ...]] = []
    for text in snapshot.texts:
        table = [
            run.places + (f" (held by {run.holders})" if run.holders > 1 else "")
            for run in engines.runs(text, owner)
        ]
        backs = ", ".join(map(str, text.checkpoints))
        rows.append((*pictures.row_of(text), str(len(text.pages)), "; ".join(table), backs))
    columns: tuple[str, ...] = ("text", "does", "tokens", "pages", "which", "checkpoints")
    if not any(text.checkpoints for text in snapshot.texts):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows)
    times = [
        (f"text {number}", *(f"{sum(s.end - s.start for s in spans if s.doing == doing):.2f}"
                             for doing in pictures.DOING))
        for number, spans in pictures.timelines(snapshot)
    ]  # fmt: skip
    if times:
        print()
        print_table(("seconds", *pictures.DOING), times)
