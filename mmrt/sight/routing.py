"""Which experts each token of a text goes to: recorded from a model at work, and kept as CSV.

    with mmrt.Model(path) as model, routing.recording(model) as recorder:
        model.generate("Once upon a time")
    recorder.trace.write("text.csv.xz")

A file begins with comments, `# key=value key=value`: the model's name, how many experts a layer
has (n_expert), how many bytes of other matrices a token reads (dense_bytes), and for each layer of
them `layer=` and the bytes of an expert, `expert_bytes`. Then comes a line with the columns' names,
and one for each choice:

    step,token,layer,expert

step counts runs of the program, token the tokens of all steps from the first on, in the order of
their step; a token's experts come best first. Other columns may be there. Without a column `token`,
`step` counts tokens, each a step of its own. Names that end in `.xz` are compressed.
"""

import csv
import lzma
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmrt.core.program import Part, Program
from mmrt.errors import ArgumentError, FileError, FormatError
from mmrt.files import layers

if TYPE_CHECKING:
    from mmrt.run.model import Model

_COLUMNS = ("step", "token", "layer", "expert")
_MOST = 1 << 15  # experts, layers: what int16 can hold


@dataclass
class RoutingTrace:
    """choices: int16, [tokens][layers][experts of a token], the best first; -1 where a layer has
    chosen none, as the last one does for tokens whose logits nobody wants.
    """

    model: str
    n_experts: int  # of each layer
    layers: list[int]  # numbers of those that have experts, rising
    expert_bytes: list[int]  # of one expert of each; 0: not known
    dense_bytes: int  # of the matrices that every token reads; 0: not known
    steps: list[int]  # how many of the tokens each has
    choices: NDArray[np.int16]

    @property
    def n_tokens(self) -> int:
        return len(self.choices)

    @property
    def bank_bytes(self) -> int:
        """Of all experts."""
        return self.n_experts * sum(self.expert_bytes)

    def uses(self) -> NDArray[np.int64]:
        """How many tokens have gone to each expert: [layers][experts]."""
        found = np.zeros((len(self.layers), self.n_experts), np.int64)
        for layer, counts in enumerate(found):
            chosen = self.choices[:, layer].ravel()
            counts += np.bincount(chosen[chosen >= 0], minlength=self.n_experts)
        return found

    def again(self, after: int) -> float:
        """What part of a token's experts are those of the token so many before."""
        now, before = self.choices[after:], self.choices[:-after]
        same = (now[..., :, None] == before[..., None, :]) & (now[..., :, None] >= 0)
        used = np.count_nonzero(now >= 0)
        return float(same.any(-1).sum() / used) if used else 0.0

    def share_of_most_used(self, n: int) -> float:
        """What part of the uses the `n` most used experts of each layer have."""
        counts = np.sort(self.uses(), axis=1)[:, ::-1]
        return float(counts[:, :n].sum() / max(counts.sum(), 1))

    # ---- files ----

    def write(self, path: Path) -> None:
        """Raises FileError."""
        try:
            with lzma.open(path, "wt") if path.suffix == ".xz" else open(path, "w") as out:
                out.writelines(self._lines())
        except OSError as error:
            raise FileError(error.errno, error.strerror, str(path)) from None

    def _lines(self) -> Iterator[str]:
        name = "_".join(self.model.split()) or "?"
        yield "# mmrt routing trace 1\n"
        yield f"# model={name} n_expert={self.n_experts} dense_bytes={self.dense_bytes}\n"
        for layer, n_bytes in zip(self.layers, self.expert_bytes, strict=True):
            yield f"# layer={layer} expert_bytes={n_bytes}\n"
        yield ",".join(_COLUMNS) + "\n"
        of_token = np.repeat(np.arange(len(self.steps)), self.steps)
        for token, (step, rows) in enumerate(zip(of_token, self.choices, strict=True)):
            for layer, row in zip(self.layers, rows, strict=True):
                yield from (f"{step},{token},{layer},{e}\n" for e in row if e >= 0)


def read(path: Path) -> RoutingTrace:
    """The trace in a file. FileError, or FormatError, which names the line."""
    try:
        with lzma.open(path, "rt") if path.suffix == ".xz" else open(path) as file:
            return _parse(path, file)
    except OSError as error:
        raise FileError(error.errno, error.strerror, str(path)) from None
    except (lzma.LZMAError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: {error}") from None


def _parse(path: Path, file: Iterator[str]) -> RoutingTrace:
    about: dict[str, str] = {}
    of_layer: dict[int, dict[str, int]] = {}
    number = 0
    header: list[str] = []
    for number, line in enumerate(file, 1):
        if not line.startswith("#"):
            header = line.strip().split(",")
            break
        words = dict(word.split("=", 1) for word in line[1:].split() if "=" in word)
        if "layer" in words:
            numbers = {key: _whole(path, number, key, value) for key, value in words.items()}
            of_layer[numbers["layer"]] = numbers
        else:
            about |= words
    missing = [name for name in ("step", "layer", "expert") if name not in header]
    if missing:
        raise FormatError(f"{path}: line {number}: no column {missing[0]!r}; found {header[:9]!r}")
    has_tokens = "token" in header
    at = [header.index(name) for name in ("step", "token" if has_tokens else "step")]
    at += [header.index(name) for name in ("layer", "expert")]
    found: dict[tuple[int, int], list[int]] = {}
    step_of: dict[int, int] = {}
    for row in csv.reader(file):
        number += 1
        if len(row) != len(header):
            raise FormatError(f"{path}: line {number}: expected {len(header)} columns")
        step, token, layer, expert = (
            _whole(path, number, name, row[i]) for name, i in zip(_COLUMNS, at, strict=True)
        )
        if max(layer, expert) >= _MOST:
            raise FormatError(f"{path}: line {number}: expert {expert} of layer {layer}")
        if step_of.setdefault(token, step) != step:
            raise FormatError(f"{path}: line {number}: token {token} is in two steps")
        chosen = found.setdefault((token, layer), [])
        if expert in chosen:
            raise FormatError(f"{path}: line {number}: expert {expert} is chosen twice")
        chosen.append(expert)
    if not found:
        raise FormatError(f"{path}: no choice")
    tokens, layers_ = sorted(step_of), sorted({layer for _, layer in found})
    in_order = [step_of[token] for token in tokens]
    if in_order != sorted(in_order):
        raise FormatError(f"{path}: a token is before one of an earlier step")
    steps = [in_order.count(step) for step in sorted(set(in_order))]
    largest = max(max(chosen) for chosen in found.values())
    n_experts = _whole(path, 1, "n_expert", about.get("n_expert", str(largest + 1)))
    if not largest < n_experts <= _MOST:
        raise FormatError(f"{path}: n_expert={n_experts}, and expert {largest} is chosen")
    width = max(map(len, found.values()))
    choices = np.full((len(tokens), len(layers_), width), -1, np.int16)
    rows = {token: i for i, token in enumerate(tokens)}
    columns = {layer: i for i, layer in enumerate(layers_)}
    for (token, layer), chosen in found.items():
        choices[rows[token], columns[layer], : len(chosen)] = chosen
    return RoutingTrace(
        about.get("model", "?").rsplit("/", 1)[-1],
        n_experts,
        layers_,
        [of_layer.get(layer, {}).get("expert_bytes", 0) for layer in layers_],
        _dense_bytes(path, about, of_layer),
        steps,
        choices,
    )


def _dense_bytes(path: Path, about: dict[str, str], of_layer: dict[int, dict[str, int]]) -> int:
    """Of the model, or else of its layers together."""
    if "dense_bytes" in about:
        return _whole(path, 1, "dense_bytes", about["dense_bytes"])
    return sum(numbers.get("dense_bytes", 0) for numbers in of_layer.values())


def _whole(path: Path, line: int, name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise FormatError(f"{path}: line {line}: {name}: {text[:40]!r} is no whole number")
    return int(text)


# ---- recording ----


class Recorder:
    """Watches the steps of a model; made by recording()."""

    def __init__(self, model: "Model") -> None:
        self._program = model.program
        self._run = model.program.run
        self._n_used = [n for _, n in model.program.routes]
        self._steps: list[int] = []
        self._choices: list[NDArray[np.int16]] = []
        self._empty = shape_of(model)

    def step(self, parts: Sequence[Part], logits: NDArray[np.float32] | None = None) -> None:
        """In place of Program.run."""
        n = sum(len(part.tokens) for part in parts)
        choices = np.full(n * sum(self._n_used), -1, np.int32)
        self._run(parts, logits, choices=choices)
        rows = np.full((n, len(self._n_used), max(self._n_used)), -1, np.int16)
        at = 0
        for layer, n_used in enumerate(self._n_used):
            rows[:, layer, :n_used] = choices[at : at + n * n_used].reshape(n, n_used)
            at += n * n_used
        self._steps.append(n)
        self._choices.append(rows)

    @property
    def trace(self) -> RoutingTrace:
        """Of the steps so far."""
        empty = self._empty
        choices = np.concatenate([empty.choices, *self._choices])
        return RoutingTrace(
            empty.model, empty.n_experts, empty.layers, empty.expert_bytes, empty.dense_bytes,
            list(self._steps), choices,
        )  # fmt: skip


@contextmanager
def recording(model: "Model") -> Iterator[Recorder]:
    """Records the choices of all steps of `model` while the block lasts, into `.trace`.
    ArgumentError if it has no experts."""
    recorder = Recorder(model)
    model.run_step = recorder.step
    try:
        yield recorder
    finally:
        model.run_step = model.program.run


def shape_of(model: "Model") -> RoutingTrace:
    """A trace of no tokens. ArgumentError if the model has no experts."""
    program = model.program
    if not program.routes:
        raise ArgumentError(f"{model.path}: the model has no experts")
    numbers = [_layer(program, op) for op, _ in program.routes]
    sizes, dense = _sizes(program)
    n_experts = max(tensor.shape[0] for tensor in program.weights if len(tensor.shape) == 3)
    n_used = max(n for _, n in program.routes)
    return RoutingTrace(
        model.path.rsplit("/", 1)[-1],
        n_experts,
        numbers,
        [sizes.get(number, 0) for number in numbers],
        dense,
        [],
        np.empty((0, len(numbers), n_used), np.int16),
    )


def _layer(program: Program, operation: int) -> int:
    """The layer of a ROUTE operation: that of the last weights before it, its router's."""
    for _, tensors in reversed(program.operations[: operation + 1]):
        if tensors:
            return _number(tensors[0].name)
    return -1


def _sizes(program: Program) -> tuple[dict[int, int], int]:
    """Bytes of an expert by layer, and of what every token is multiplied with."""
    of_layer: dict[int, int] = {}
    dense = 0
    for what, tensors in program.operations:
        for tensor in tensors:
            if len(tensor.shape) == 3:
                layer = _number(tensor.name)
                of_layer[layer] = of_layer.get(layer, 0) + tensor.nbytes // tensor.shape[0]
            elif what != "embed":
                dense += tensor.nbytes
    return of_layer, dense


def _number(name: str) -> int:
    """Of the layer that a tensor is in; -1: in none."""
    return int(layers.place(name).layer.rpartition(".")[2] or -1)
