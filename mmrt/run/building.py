"""From a file to what runs it; and, of a file that does not run, what it takes that is missing."""

import contextlib
import dataclasses
import os
import weakref
from typing import NamedTuple, Protocol

from mmrt import models
from mmrt.core.arguments import whole
from mmrt.core.kernels import Pool, trim_heap
from mmrt.core.program import SPARSE, Program
from mmrt.core.state import StateStore
from mmrt.errors import ArgumentError, FormatError, MmrtError, UnsupportedError
from mmrt.files.bundle import Neurons, open_bundle
from mmrt.files.predictor import open_predictor
from mmrt.files.tensor_file import TensorFile
from mmrt.models.parts.config import Config
from mmrt.models.parts.fields import Fields
from mmrt.models.parts.unread import refuse_unread_fields, refuse_unread_tensors
from mmrt.models.parts.weights import Weights
from mmrt.run.sampler import Sampler
from mmrt.text.tokenizer import Tokenizer

# As many tokens as a step takes at most, where steps wait for weights from the disk: each reads
# them all.
MOST_STEP_TOKENS = 1024


_Path = str | os.PathLike[str]

# Of a file that has only some of a model's layers: which, as first and end.
LAYERS = "mmrt.layers"


class Built(NamedTuple):
    """A model's configuration, the memory of its texts, and its program."""

    config: Config
    store: StateStore
    program: Program
    side: list[TensorFile]  # other files whose tensors the program may read
    tensors: list[str]  # of the file, that are needed
    paths: list[str]  # of the files that keys and values depend on


def build(
    file: TensorFile,
    pool: Pool,
    *,
    context: int | None = None,
    kv: tuple[str, str] = ("f16", "f16"),
    exact: bool = False,
    beside: tuple[_Path | None, _Path | None] = (None, None),
    partial: bool = False,
    layers: range | None = None,
    make: type[Program] = Program,
) -> Built:
    """What runs the model in `file`; arguments as Model's, kv: of keys and of values,
    beside: bundle and predictor. It refers to the files' pages. partial: only these of the model's
    layers, counted from 0; None: all that the file has. Others' tensors need not be there. make: of
    what class the program is.

    Raises FileError, UnsupportedError, FormatError and ArgumentError as Model() does.
    """
    if file.format != "GGUF":
        raise UnsupportedError(
            f"{file.path}: models run from GGUF files, and this is {file.format}"
        )
    architecture = models.architecture(file.metadata, file.path)
    fields = Fields(file.metadata, file.path, architecture.__name__.split(".")[-1])
    config: Config = architecture.config(fields)
    refuse_unread_fields(fields)
    trained = config.context_length
    if context is None:
        context = trained
    else:
        context = whole("context", context, 1, trained, why=", on which the model was trained")
    part = None
    held = _held(file, config.n_layers)
    if partial:
        part = _part_of(held or range(config.n_layers), layers, file.path)
    elif held is not None:
        raise UnsupportedError(
            f"{file.path}: only layers {held.start}:{held.stop} of a model, which a Stage runs"
        )
    config = dataclasses.replace(config, context=context, part=part)
    program = None
    side: list[TensorFile] = []
    bundle, predictor = beside
    try:
        if bundle is not None:
            side.append(open_bundle(bundle, file))
        if predictor is not None:
            side.append(open_predictor(predictor, file))
        store = StateStore(config.kept, *kv)
        program = make(pool, MOST_STEP_TOKENS, store, exact)
        weights = Weights(file, {name: tensor for other in side for name, tensor in other.items()})
        architecture.build(program, config, weights)
        refuse_unread_tensors(weights, config)
        program.finish()
    except BaseException as error:
        if program is not None:
            program.close()  # which lets go of the files' pages
        for other in side:
            other.close()
        if isinstance(error, FormatError | UnsupportedError) and program is not None:
            raise type(error)(f"{file.path}: {error}") from None
        raise
    paths = [*file.paths, *(side[-1].paths if predictor is not None else [])]
    return Built(config, store, program, side, weights.used(), paths)


def _held(file: TensorFile, n_layers: int) -> range | None:
    """The layers that the file says it has; None: all."""
    found = file.metadata.get(LAYERS)
    if found is None:
        return None
    pair = isinstance(found, list) and len(found) == 2 and all(type(n) is int for n in found)
    if not pair or not 0 <= found[0] < found[1] <= n_layers:
        raise FormatError(
            f"{file.path}: {LAYERS}: expected the first and the end of some of {n_layers} layers, "
            f"found {found!r:.60}"
        )
    return range(*found)


def _part_of(held: range, layers: range | None, path: str) -> range:
    if layers is None:
        return held
    if not held.start <= layers.start < layers.stop <= held.stop or layers.step != 1:
        raise ArgumentError(
            f"layers: {layers.start}:{layers.stop} are none of those that {path} has, "
            f"{held.start}:{held.stop}"
        )
    return layers


def neurons(file: TensorFile) -> list[Neurons]:
    """The layers of the model in `file` whose activation leaves many neurons at zero.

    Raises as build() does, and UnsupportedError if there are none.
    """
    built = build(file, Pool(1))
    operations = built.program.operations
    built.program.close()
    found = []
    for note, tensors in operations:
        if note == SPARSE:
            down = tensors[0]
            gate = down.name.replace("ffn_down", "ffn_gate")
            up = down.name.replace("ffn_down", "ffn_up")
            found.append(Neurons(down, file[up], file.get(gate)))
    if not found:
        raise UnsupportedError(
            f"{file.path}: no layer of it has ReLU, so that all neurons count for each token"
        )
    return found


def build_tokenizer(
    file: TensorFile, vocab_size: int | None = None, pre: str | None = None
) -> Tokenizer:
    """The tokenizer of the model in `file`; pre: as of Model. Raises UnsupportedError,
    ArgumentError, and FormatError, also where it has not the `vocab_size` tokens of the model."""
    tokenizer = Tokenizer.from_metadata(file.metadata, file.path, pre)
    trim_heap()  # the vocabulary's lists, many megabytes, are garbage now
    if vocab_size not in (None, tokenizer.vocab_size):
        raise FormatError(
            f"{file.path}: tokenizer.ggml.tokens: {tokenizer.vocab_size} tokens where the "
            f"model has {vocab_size}"
        )
    return tokenizer


class Texts(Protocol):
    """What has a tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer: ...


def prepare_text(model: weakref.ref[Texts]) -> None:
    """Loads what texts need beside the program, as far as it can be had."""
    Sampler()
    alive = model()
    if alive is not None:
        with contextlib.suppress(MmrtError):
            _ = alive.tokenizer


def obstacles(file: TensorFile) -> list[str]:
    """Why no Model runs `file` and its texts: what Model() says to it, and what its tokenizer does.
    Empty if it runs, given the memory. Reads the header, and of the weights next to none."""
    found, vocab_size = [], None
    try:
        built = build(file, Pool(1))
        vocab_size = built.program.vocab_size
        built.program.close()
    except (FormatError, UnsupportedError) as error:
        found.append(str(error))
    if file.format == "GGUF":
        try:
            build_tokenizer(file, vocab_size)
        except (FormatError, UnsupportedError) as error:
            found.append(str(error))
    return [reason.removeprefix(f"{file.path}: ") for reason in found]
