"""`mmrt inspect`: what is in a weight file."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrt.cli.options import UsageError, size
from mmrt.cli.output import print_table, printable, tame, to_json
from mmrt.core.gguf import Beginning, Metadata
from mmrt.errors import ArgumentError
from mmrt.files import formats
from mmrt.files.formats import TensorFile
from mmrt.memory.sizes import human
from mmrt.run.building import obstacles
from mmrt.text.chat import template_names

DESCRIPTION = """\
Shows what is in a weight file: the model, whether it runs here (if not, what is
missing), its tensor types, its metadata. Reads the file's header, and of its
weights next to none.

With --memory, shows instead what a budget would keep of a model's weights, what
it would stream from the disk for each token, and how fast that and other
budgets can be at best. Reads some of the file to measure the disk.\
"""

_SHOWN = 8  # elements of a long array
_LONGEST_VERDICT = 2000  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a weight file")
    parser.add_argument("--tensors", action="store_true", help="list the tensors too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--metadata", metavar="KEY", help="print this value only, whole")
    parser.add_argument(
        "--memory", metavar="SIZE", type=size, help="the plan for a budget, such as 6.8GiB"
    )
    parser.add_argument(
        "--routing", metavar="TRACE", type=Path,
        help="with --memory: for a text that chooses experts as in this file of `mmrt experts`",
    )  # fmt: skip
    parser.add_argument(
        "--png", metavar="PICTURE", type=Path,
        help="with --memory: draw speed by budget (needs Pillow; -: to stdout, and no plan)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    if arguments.memory is not None:
        _show_plan(arguments)
        return
    if arguments.png:
        raise UsageError("--png draws the plan of a budget: it needs --memory")
    if arguments.routing:
        raise UsageError("--routing is for the plan of a budget: it needs --memory")
    with formats.open(arguments.file) as file:
        if arguments.metadata is not None:
            _print_value(_lookup(file, arguments.metadata), arguments.json)
        elif arguments.json:
            _print_json(file, arguments.tensors)
        else:
            _print_tables(file, arguments.tensors)


def _show_plan(arguments: argparse.Namespace) -> None:
    from mmrt.cli.budget_plan import Plans
    from mmrt.sight.pictures import drawing

    if arguments.png:
        drawing.require_pillow()  # before anything is measured
    plans = Plans(arguments.file, arguments.memory, arguments.routing)
    if arguments.png:
        plans.draw(arguments.png)
    if str(arguments.png) == "-":
        return
    if arguments.json:
        print(to_json(plans.report(), 2))
    else:
        plans.print()


def _lookup(file: TensorFile, key: str) -> Any:
    if key not in file.metadata:
        raise ArgumentError(f"{file.path}: no metadata {key!r}")
    return file.metadata[key]


def _print_value(value: Any, as_json: bool) -> None:
    if as_json:
        print(to_json(value))
        return
    # A program gets it as it is; a terminal is not to be steered by it.
    shown = (lambda text: tame(text, "\n\t")) if sys.stdout.isatty() else str
    for element in value if isinstance(value, list) else [value]:
        print(shown(_plain(element)))


def _print_json(file: TensorFile, with_tensors: bool) -> None:
    report = summary(file)
    report["metadata"] = {key: _abbreviated(value) for key, value in _beginnings(file)}
    if with_tensors:
        report["tensors"] = [
            {
                "name": tensor.name,
                "type": tensor.type,
                "shape": tensor.shape,
                "nbytes": tensor.nbytes,
                "offset": tensor.offset,
            }
            for tensor in file.values()
        ]
    print(to_json(report, 2))


def _print_tables(file: TensorFile, with_tensors: bool) -> None:
    said = summary(file)
    types = said.pop("types")
    tokenizer = said.pop("tokenizer") or {}
    said["size"] = human(said["size"])
    said |= {f"tokenizer {key}": value for key, value in tokenizer.items()}
    missing = said.pop("missing")
    del said["runs"]
    known = [(key, printable(_plain(value))) for key, value in said.items() if value is not None]
    known.insert(2, ("runs", _verdict(missing)))
    print_table(("", ""), [(key.replace("_", " "), value) for key, value in known])

    n_bytes = sum(row["nbytes"] for row in types.values()) or 1
    print()
    print_table(
        ("type", "tensors", "parameters", "size", "share"),
        [
            (
                printable(name),
                str(row["tensors"]),
                str(row["parameters"]),
                human(row["nbytes"]),
                f"{row['nbytes'] / n_bytes:.1%}",
            )
            for name, row in types.items()
        ],
        "Types",
    )
    if file.metadata:
        print()
        print_table(
            ("key", "value"),
            [(printable(key), printable(_sketch(value))) for key, value in _beginnings(file)],
            "Metadata",
        )
    if with_tensors:
        print()
        print_table(
            ("tensor", "type", "shape", "size", "offset"),
            [
                (printable(t.name), printable(t.type), _by(t.shape), human(t.nbytes), str(t.offset))
                for t in file.values()
            ],
            "Tensors",
        )


def _verdict(missing: Sequence[str]) -> str:
    return f"no: {printable('; '.join(missing), _LONGEST_VERDICT)}" if missing else "yes"


def summary(file: TensorFile) -> dict[str, Any]:
    """What there is to say before any detail; None for what the file does not say."""
    types: dict[str, dict[str, int]] = {}
    for tensor in file.values():
        row = types.setdefault(tensor.type, {"tensors": 0, "parameters": 0, "nbytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(tensor.shape)
        row["nbytes"] += tensor.nbytes
    parameters = sum(row["parameters"] for row in types.values())
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    missing = obstacles(file)
    return {
        "file": file.path,
        "format": file.format,
        "runs": not missing,
        "missing": missing,
        "size": sum(mapping.size for mapping in file.mappings),
        "name": metadata.get("general.name"),
        "architecture": architecture,
        "parameters": parameters,
        "tensor_count": len(file),
        "bits_per_weight": round(8 * file.nbytes / parameters, 2) if parameters else None,
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["nbytes"])),
        "context_length": metadata.get(f"{architecture}.context_length"),
        "tokenizer": _tokenizer(metadata),
    }


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    if "tokenizer.ggml.model" not in metadata:
        return None
    return {
        "model": metadata["tokenizer.ggml.model"],
        "pre": metadata.get("tokenizer.ggml.pre"),
        "tokens": _length(metadata, "tokenizer.ggml.tokens"),
        "chat_template": bool(template_names(metadata)),
        "chat_templates": template_names(metadata),
    }


def _beginnings(file: TensorFile) -> Iterator[tuple[str, Any]]:
    """The metadata; of long lists only the Beginning, and no more than that is decoded."""
    for key in file.metadata:
        yield key, _beginning(file.metadata, key, _SHOWN)


def _beginning(metadata: Mapping[str, Any], key: str, most: int) -> Any:
    if isinstance(metadata, Metadata):
        return metadata.beginning(key, most)
    value = metadata[key]
    return Beginning(len(value), value[:most]) if _is_longer(value, most) else value


def _is_longer(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) > most


def _length(metadata: Mapping[str, Any], key: str) -> int | None:
    """Of a list; None for another value."""
    found = _beginning(metadata, key, 0) if key in metadata else []
    if isinstance(found, Beginning):
        return found.length
    return len(found) if isinstance(found, list) else None


def _abbreviated(value: Any) -> Any:
    """A value for JSON, with Beginnings as objects."""
    if isinstance(value, Beginning):
        return {"length": value.length, "first": _abbreviated(value.first)}
    return [_abbreviated(inner) for inner in value] if isinstance(value, list) else value


def _sketch(value: Any) -> str:
    """A value for one cell of a table."""
    if isinstance(value, Beginning):
        return f"{value.length} values: {printable(', '.join(map(_plain, value.first)), 40)}"
    return _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_abbreviated(value), ensure_ascii=False)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
