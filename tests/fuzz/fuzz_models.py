"""Fuzzes whole models: small ones whose header is changed as bytes, or whose metadata and tensors
are. Each is opened and writes two tokens, with its weights streamed by each reader too.

A model writes the same whichever way its weights are read, or is refused.
"""

import random
from functools import cache
from typing import Any

import fuzzing
import numpy as np
import tiny_models
from fuzzing import Choices

import mmrt
from mmrt import models
from mmrt.core.readers import check_reader
from mmrt.core.streaming import READERS

FOLDER = fuzzing.folder()  # on a disk: tmpfs has no direct reads
SMALL = {"n_layers": 3, "n_embd": 32, "n_ff": 64, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16}
KEYS = ["general.alignment", "general.file_type", "split.count", "split.no", "rope.scaling.type"]
KEYS += ["rope.scaling.factor", "attention.sliding_window", "expert_count", "vocab_size"]
KEYS += ["rope.scaling.original_context_length", "final_logit_softcapping", "logit_scale"]
KEYS += ["tokenizer.chat_template", "attention.scale", "rope.dimension_sections"]


@cache
def base(architecture: str, type: str, tied: bool) -> tuple[tiny_models.TinyModel, bytes, int]:
    """A sound model, its file, and how long that file's header is."""
    shape: dict[str, Any] = {**SMALL, "type": type, "separate_output": not tied}
    if architecture == "gemma3":
        model = tiny_models.gemma3(**shape)
    else:
        model = tiny_models.transformer(architecture, **shape)
    path = model.write(FOLDER / "base.gguf")
    with mmrt.open(path) as file:
        header = min(tensor.offset for tensor in file.values())
    return model, path.read_bytes(), header


def changed(c: Choices, given: tiny_models.TinyModel, architecture: str) -> bytes:
    model = tiny_models.TinyModel(dict(given.metadata), dict(given.tensors))
    for _ in range(c.between(1, 3)):
        name = c.pick(list(model.metadata))
        tensor = c.pick(list(model.tensors))
        blocks = model.tensors[tensor]
        rows = blocks.data.reshape(-1, blocks.data.shape[-1])
        match c.below(9):
            case 0:
                del model.metadata[name]
            case 1:
                model.metadata[name] = c.pick([c.number() % (1 << 63), c.below(100), c.text()])
            case 2:
                model.metadata[name] = c.pick([0.0, -1.0, 1e38, float("nan"), float("inf"), True])
            case 3:
                model.metadata[name] = [c.below(70) for _ in range(c.between(1, 5))]
            case 4:
                key = c.pick(KEYS)
                key = key if "." in key and not key.startswith("rope") else f"{architecture}.{key}"
                model.metadata[key] = c.pick([c.number() % (1 << 63), 2.0, "yarn", "linear", 1])
            case 5:
                del model.tensors[tensor]
            case 6:
                model.tensors[c.pick(list(model.tensors))] = blocks
            case 7:
                model.tensors[tensor] = tiny_models.Blocks(blocks.type, rows[: c.between(1, 40)])
            case 8:
                room = bytearray(rows.tobytes())
                n = min(c.below(64), len(room))
                room[:n] = c.take(n)
                data = np.frombuffer(room, rows.dtype).reshape(rows.shape)
                model.tensors[tensor] = tiny_models.Blocks(blocks.type, data)
    return model.write(FOLDER / "changed.gguf").read_bytes()


def tokens(model: mmrt.Model) -> list[int]:
    """Two tokens after a prompt."""
    sequence = model.sequence()
    model.generate("ab c", sequence=sequence, max_tokens=2, temperature=0)
    return list(sequence.tokens)


def one(c: Choices) -> None:
    architecture = c.pick(models.architectures())
    type = c.pick(["F32", "Q8_0", "Q4_0", "BF16"])
    model, data, header = base(architecture, type, c.chance(2))
    if c.chance(2):
        place = c.pick([c.below(600), header - 1 - c.below(2500), c.below(header)])
        end = min(header, place + c.pick([1, 4, 8, 64]))
        put = c.mutated(data[place:end])
        put = put if c.chance(8) else put[: end - place].ljust(end - place, b"\0")
        data = data[:place] + put + data[end:]
    else:
        # The choices decide on one of the many ways in which the writer may refuse, too.
        try:
            data = changed(c, model, architecture)
        except Exception:
            data = changed(Choices(random.Random(c.below(256)).randbytes(64)), model, architecture)
    path = FOLDER / "model.gguf"
    path.write_bytes(data)
    with mmrt.Model(path, threads=2) as opened:
        expected = tokens(opened)
    for reader in READERS:
        with mmrt.open(path) as file:
            try:
                check_reader(reader, file.mappings[0])
            except mmrt.UnsupportedError:
                continue
        with mmrt.Model(path, threads=2, memory="3GiB", reader=reader) as opened:
            opened.program.set_budget(opened.program.plan(0).least)
            assert tokens(opened) == expected, reader


# Each thread that allocates reserves addresses, of which little becomes memory.
FUZZER = fuzzing.Fuzzer("models", one, memory=4 << 30)

if __name__ == "__main__":
    FUZZER.main()
