"""`mmrt residency`: which pages of a weight file are in memory."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from mmrt.cli.options import UsageError, seconds
from mmrt.cli.output import note, print_table, printable, to_json, write_file
from mmrt.core.mapping import Mapping
from mmrt.core.residency import Residency
from mmrt.errors import FileError
from mmrt.files import formats
from mmrt.files.formats import TensorFile
from mmrt.files.layers import place
from mmrt.files.residency import FileResidency
from mmrt.memory import counters
from mmrt.memory.sizes import human
from mmrt.sight import pagetables

DESCRIPTION = """\
Shows which pages of a weight file are in memory, by layer and tensor: as a heat
map on a terminal, elsewhere as a table. Reads none of the weights in, but the
file's header, whose pages are there therefore.

Of a file that you neither own nor may write, the kernel does not say what is
cached; then the pages are shown that this process has mapped, and it says so.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a weight file, or one of a set")
    parser.add_argument(
        "--watch", nargs="?", type=seconds, const=1.0, metavar="SECONDS",
        help="draw it anew every SECONDS (default: 1) until Ctrl-C",
    )  # fmt: skip
    parser.add_argument(
        "--png", type=Path, metavar="PICTURE", help="write a picture (needs Pillow; -: to stdout)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="PICTURE",
        help="write a page for the browser that tells the exact pages under the pointer; "
        "-: to stdout",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with every run of pages")


def run(arguments: argparse.Namespace) -> None:
    if arguments.watch is not None and (arguments.png or arguments.html or arguments.json):
        raise UsageError("--watch draws on the terminal alone, without --png, --html and --json")
    if arguments.watch is not None and not sys.stdout.isatty():
        raise UsageError("--watch needs a terminal")
    with formats.open(arguments.file) as file:
        if arguments.watch is not None:
            _watch(file, arguments.watch)
            return
        now = file.residency()
        _warn(now)
        if arguments.png or arguments.html:
            _draw(file, now, arguments.png, arguments.html)
        elif arguments.json:
            print(to_json(report(file, now), 2))
        elif sys.stdout.isatty():
            from rich.console import Console

            from mmrt.sight.pictures.terminal import TerminalMap

            Console().print(TerminalMap(file, now))
        else:
            _print_table(now)


def _warn(now: FileResidency) -> None:
    if now.source == "pagemap":
        note(
            "the kernel tells what is cached of this file only to its owner and to those who may "
            "write it; what follows are the pages that this process has mapped"
        )


def _watch(file: TensorFile, interval: float) -> None:
    """Draws until Ctrl-C, which is how this is meant to end."""
    from rich.console import Console
    from rich.live import Live

    from mmrt.sight.pictures.terminal import TerminalMap

    console = Console()

    def look() -> TerminalMap:
        _require_unmoved(file)
        return TerminalMap(file, file.residency(), console.height)

    try:
        with Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        console.print(TerminalMap(file, file.residency()))  # stays, as the screen does not


def _require_unmoved(file: TensorFile) -> None:
    """FileError where a path leads to the file no more whose pages are looked at."""
    for mapping in file.mappings:
        try:
            same = os.path.samestat(os.stat(mapping.path), os.fstat(mapping.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise FileError(f"{mapping.path} has been deleted or replaced since it was opened")


def _draw(file: TensorFile, now: FileResidency, png: Path | None, page: Path | None) -> None:
    from mmrt.sight.pictures import drawing, heatmap

    picture = heatmap.draw(file, now)
    if png:
        write_file(png, drawing.png(picture))
    if page:
        write_file(page, drawing.page(picture).encode())


def _print_table(now: FileResidency) -> None:
    rows = [(path, now.files[path]) for path in now.files]
    for layer in now.layers:
        if layer.name:
            rows.append((layer.name, now.layer(layer)))
        else:
            rows += [(place(name).role, now.tensors[name]) for name in layer.names]
    print_table(
        ("what", "resident pages", "pages", "resident", "share", "source"),
        [
            (
                printable(what),
                str(found.resident),
                str(found.total),
                human(found.resident * now.page_size),
                f"{found.fraction:.1%}",
                found.source,
            )
            for what, found in rows
        ],
    )


def report(file: TensorFile, now: FileResidency) -> dict[str, Any]:
    """All that is known, for programs."""
    return {
        "file": file.path,
        "page_size": now.page_size,
        **_counts(now.whole),
        "files": [_of_file(mapping, now) for mapping in file.mappings],
        "layers": [
            {"name": layer.name, **_counts(now.layer(layer))} for layer in now.layers if layer.name
        ],
        "tensors": [
            {
                "name": tensor.name,
                "layer": place(tensor.name).layer or None,
                "role": place(tensor.name).role,
                "type": tensor.type,
                "nbytes": tensor.nbytes,
                "offset": tensor.offset,
                **_counts(now.tensors[tensor.name]),
            }
            for tensor in file.values()
        ],
        "process": {"page_tables": counters.page_tables()},
    }


def _of_file(mapping: Mapping, now: FileResidency) -> dict[str, Any]:
    residency = now.files[mapping.path]
    tables = pagetables.spanning(mapping.address, mapping.size)
    return {
        "path": mapping.path,
        "address": mapping.address,
        **_counts(residency),
        "runs": residency.runs(),
        "page_tables": {"leaf": tables.leaf, "middle": tables.middle, "bytes": tables.nbytes},
    }


def _counts(residency: Residency) -> dict[str, Any]:
    return {
        "resident": residency.resident,
        "pages": residency.total,
        "source": residency.source,
    }
