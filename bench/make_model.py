"""Makes a GGUF file of a llama's shape, of a mixture of experts, of a hybrid, or of a model whose
activation is zero for most units, with random weights:

    python -m bench.make_model 8B Q4_0 out.gguf
    python -m bench.make_model 30B-A3B Q4_0 out.gguf --n-layers 12 --routing skewed
    python -m bench.make_model Qwen3.5-4B Q4_0 out.gguf --n-layers 4
    python -m bench.make_model 7B-ReLU Q4_0 out.gguf --zeros 0.89

What such a model writes is noise, but it takes the time, the memory and the reads of a real one of
that shape and type: all matrices are of the type given, norms are float32, logits are finite. The
vocabulary is byte-level, with as many merges as it has room for, and serves other runtimes too.
Experts are chosen at random, and evenly, or as --routing says: see bench/routing.py. Which units
are zero is random too; biases of what decides it make them as many as --zeros says.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice, product
from statistics import NormalDist
from typing import Any

import numpy as np

from bench import gemma4, hybrids
from bench.blocks import random_blocks
from bench.routing import PRESETS, Routing
from mmrt.core.quant import TYPES
from mmrt.errors import MmrtError, UnsupportedError
from mmrt.files.gguf_writer import Entry, write_gguf
from mmrt.text.bpe import BYTE_LETTERS

_DECIDES = {"llama": "ffn_gate", "opt": "ffn_up"}

_NORMAL, _CONTROL = 1, 3
_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"]

# Bytes of random blocks made for each spread; a tensor is written from it, again and again.
_POOL = 1 << 24


@dataclass(frozen=True)
class Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    context: int = 8192
    rope_base: float = 500000.0
    head_dim: int = 0  # 0: n_embd / n_heads
    n_experts: int = 0
    n_used: int = 0  # experts of each token
    n_ff_expert: int = 0
    window: int = 0  # of attention
    head_dim_in_window: int = 0  # 0: as the others
    n_sharing: int = 0  # layers that have no keys of their own
    layer_embedding: int = 0  # width of what each layer has of each token
    zeros: float = 0.0  # the part of units that ReLU leaves at zero; 0: a llama has SiLU
    n_ff_shared: int = 0  # of the expert that all tokens go through
    taps: int = 0  # of short convolutions, and of those before delta nets and state spaces
    n_states: int = 0  # rows of each head's state
    n_state_heads: int = 0
    n_state_groups: int = 0  # heads of keys, or groups of state spaces
    state_width: int = 0  # of all heads
    architecture: str = "llama"

    @property
    def head_width(self) -> int:
        return self.head_dim or self.n_embd // self.n_heads

    @property
    def biases(self) -> dict[str, float]:
        """Of what decides which units are zero, by its role: for each of its rows the same."""
        if not self.zeros:
            return {}
        if self.architecture not in _DECIDES or not 0 < self.zeros < 1:
            raise UnsupportedError(f"zeros: {self.zeros} of the units of a {self.architecture}")
        # A row times a normed input is about normal, with standard deviation 1.
        return {_DECIDES[self.architecture]: -NormalDist().inv_cdf(self.zeros)}


SHAPES = {
    "1.1B": Shape(22, 2048, 5632, 32, 4, 32000),
    "8B": Shape(32, 4096, 14336, 32, 8, 128256),
    "30B": Shape(64, 5120, 27648, 40, 8, 152064),
    "30B-A3B": Shape(
        48, 2048, 6144, 32, 4, 151936, 32768, 1e6, 128, n_experts=128, n_used=8, n_ff_expert=768,
        architecture="qwen3moe",
    ),
    "gpt-oss-120b": Shape(
        36, 2880, 2880, 64, 8, 201088, 131072, 150000.0, 64, n_experts=128, n_used=4,
        n_ff_expert=2880, window=128, architecture="gpt-oss",
    ),
    "E4B": Shape(
        42, 2560, 10240, 8, 2, 262144, 131072, 1e6, 512, window=512, head_dim_in_window=256,
        n_sharing=18, layer_embedding=256, architecture="gemma4",
    ),
    "Qwen3.5-4B": Shape(
        32, 2560, 9216, 16, 4, 248320, 262144, 1e7, 256, taps=4, n_states=128, n_state_heads=32,
        n_state_groups=16, state_width=4096, architecture="qwen35",
    ),
    "Qwen3-Next-80B-A3B": Shape(
        48, 2048, 5120, 16, 2, 151936, 262144, 1e7, 256, n_experts=512, n_used=10, n_ff_expert=512,
        n_ff_shared=512, taps=4, n_states=128, n_state_heads=32, n_state_groups=16,
        state_width=4096, architecture="qwen3next",
    ),
    "Qwen3.5-35B-A3B": Shape(
        40, 2048, 5120, 16, 2, 248320, 262144, 1e7, 256, n_experts=256, n_used=8, n_ff_expert=512,
        n_ff_shared=512, taps=4, n_states=128, n_state_heads=32, n_state_groups=16,
        state_width=4096, architecture="qwen35moe",
    ),
    "Granite-4-H-Tiny": Shape(
        40, 1536, 512, 12, 4, 100352, 131072, 10000.0, 128, n_experts=64, n_used=6,
        n_ff_expert=512, n_ff_shared=1024, taps=4, n_states=128, n_state_heads=48,
        n_state_groups=1, state_width=3072, architecture="granitehybrid",
    ),
    "Granite-4-H-Micro": Shape(
        40, 2048, 8192, 32, 8, 100352, 131072, 10000.0, 64, taps=4, n_states=128,
        n_state_heads=64, n_state_groups=1, state_width=4096, architecture="granitehybrid",
    ),
    "Nemotron-3-Nano": Shape(
        52, 2688, 1856, 32, 2, 131072, 262144, 10000.0, 128, n_experts=128, n_used=6,
        n_ff_expert=1856, n_ff_shared=3712, taps=4, n_states=128, n_state_heads=64,
        n_state_groups=8, state_width=4096, architecture="nemotron_h_moe",
    ),
    "LFM2-1.2B": Shape(
        16, 2048, 8192, 32, 8, 65536, 128000, 1e6, 64, taps=3, architecture="lfm2",
    ),
    # Of OPT (arXiv:2205.01068) and of ProSparse-Llama-2 (arXiv:2402.13516), zeros and all.
    "6.7B-OPT": Shape(32, 4096, 16384, 32, 32, 50272, 2048, zeros=0.97, architecture="opt"),
    "7B-ReLU": Shape(32, 4096, 11008, 32, 32, 32000, 4096, 10000.0, zeros=0.89),
}  # fmt: skip


def vocabulary(size: int) -> dict[str, Any]:
    """All bytes, then words of two, three and more letters, each made of the one before it and a
    letter, and two control tokens."""
    n_words = size - len(BYTE_LETTERS) - len(_SPECIALS)
    if n_words < 0:
        raise SystemExit(f"a vocabulary of {size} has no room for all bytes")
    merges = list(islice(_merges("Ġabcdefghijklmnopqrstuvwxyz"), n_words))
    tokens = [*BYTE_LETTERS, *(merge.replace(" ", "") for merge in merges), *_SPECIALS]
    named = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [_NORMAL] * (size - len(_SPECIALS)) + [_CONTROL] * len(_SPECIALS),
        "merges": merges,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "add_bos_token": True,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()}


def _merges(letters: str) -> Iterator[str]:
    """ "a b" for the word "ab", "ab c" for "abc", and so on; shorter words first. Only the first
    letter may be the one that stands for a space."""
    words = list(letters)
    while True:
        longer = [(word, letter) for word, letter in product(words, letters[1:])]
        yield from (f"{word} {letter}" for word, letter in longer)
        words = [word + letter for word, letter in longer]


def metadata(name: str, shape: Shape) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vocab_size": shape.n_vocab,
        "context_length": shape.context,
        "block_count": shape.n_layers,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "rope.dimension_count": shape.head_width,
        "rope.freq_base": shape.rope_base,
    }
    if shape.n_experts:
        fields |= {
            "expert_count": shape.n_experts,
            "expert_used_count": shape.n_used,
            "expert_feed_forward_length": shape.n_ff_expert,
        }
    if shape.window:
        fields["attention.sliding_window"] = shape.window
    if shape.architecture == "gemma4":
        fields |= gemma4.fields_of(shape)
    elif shape.architecture in hybrids.ARCHITECTURES:
        fields |= hybrids.fields_of(shape)
    elif shape.architecture == "opt":
        del fields["rope.dimension_count"], fields["rope.freq_base"]
        fields["attention.layer_norm_epsilon"] = fields.pop("attention.layer_norm_rms_epsilon")
    elif shape.zeros:
        fields["hidden_activation"] = "relu"
    return {
        "general.architecture": shape.architecture,
        "general.name": f"random {name}",
        **{f"{shape.architecture}.{key}": value for key, value in fields.items()},
        **vocabulary(shape.n_vocab),
    }


def tensors(shape: Shape, type: str, embedding: str, output: str) -> list[Entry]:
    if shape.architecture in hybrids.ARCHITECTURES:
        return hybrids.tensors_of(shape, type, embedding)
    n_q, n_kv = (shape.head_width * n for n in (shape.n_heads, shape.n_kv_heads))
    layer: dict[str, tuple[str, tuple[int, ...]]] = {
        "attn_norm": ("F32", (shape.n_embd,)),
        "attn_q": (type, (n_q, shape.n_embd)),
        "attn_k": (type, (n_kv, shape.n_embd)),
        "attn_v": (type, (n_kv, shape.n_embd)),
        "attn_output": (type, (shape.n_embd, n_q)),
        "ffn_norm": ("F32", (shape.n_embd,)),
    }
    if shape.n_experts:
        wide = shape.n_experts, shape.n_ff_expert, shape.n_embd
        layer |= {
            "ffn_gate_inp": ("F32", (shape.n_experts, shape.n_embd)),
            "ffn_gate_exps": (type, wide),
            "ffn_up_exps": (type, wide),
            "ffn_down_exps": (type, (shape.n_experts, shape.n_embd, shape.n_ff_expert)),
        }
    else:
        layer |= {
            "ffn_gate": (type, (shape.n_ff, shape.n_embd)),
            "ffn_up": (type, (shape.n_ff, shape.n_embd)),
            "ffn_down": (type, (shape.n_embd, shape.n_ff)),
        }
    if shape.architecture == "gemma4":
        return gemma4.tensors_of(shape, type, embedding)
    if shape.architecture == "opt":
        return _opt_tensors(shape, type, embedding, layer)
    named = {f"{role}.weight": kind for role, kind in layer.items()}
    named |= {f"{role}.bias": ("F32", layer[role][1][:-1]) for role in shape.biases}
    if shape.architecture == "qwen3moe":
        named |= {f"attn_{x}_norm.weight": ("F32", (shape.head_width,)) for x in "qk"}
    elif shape.architecture == "gpt-oss":
        biases = {
            f"{role}.bias": ("F32", matrix[:-1])
            for role, (_, matrix) in layer.items()
            if len(matrix) > 1
        }
        named |= biases | {"attn_sinks.weight": ("F32", (shape.n_heads,))}
        named["post_attention_norm.weight"] = named.pop("ffn_norm.weight")
    return [
        Entry("token_embd.weight", embedding, (shape.n_vocab, shape.n_embd)),
        *(
            Entry(f"blk.{i}.{name}", *kind)
            for i in range(shape.n_layers)
            for name, kind in named.items()
        ),
        Entry("output_norm.weight", "F32", (shape.n_embd,)),
        Entry("output.weight", output, (shape.n_vocab, shape.n_embd)),
    ]


def _opt_tensors(
    shape: Shape, type: str, embedding: str, layer: dict[str, tuple[str, tuple[int, ...]]]
) -> list[Entry]:
    """Biases everywhere; the embedding is the output's matrix too."""
    del layer["ffn_gate"]
    both = {"weight": layer, "bias": {role: ("F32", s[:1]) for role, (_, s) in layer.items()}}
    return [
        Entry("token_embd.weight", embedding, (shape.n_vocab, shape.n_embd)),
        Entry("position_embd.weight", type, (shape.context + 2, shape.n_embd)),
        *(
            Entry(f"blk.{i}.{role}.{part}", *kind)
            for i in range(shape.n_layers)
            for part, roles in both.items()
            for role, kind in roles.items()
        ),
        *(Entry(f"output_norm.{part}", "F32", (shape.n_embd,)) for part in both),
    ]


class Weights:
    """The bytes of random tensors: cuts from a pool of random blocks, each from another place; but
    what decides which experts are chosen is as `routing` has it, if there is one. Biases are zero,
    or as `biases` has them by their role."""

    def __init__(
        self, seed: int, routing: Routing | None = None, biases: dict[str, float] | None = None
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._routing = routing
        self._biases = biases or {}
        self._pools: dict[tuple[str, float], bytes] = {}

    def __call__(self, tensor: Entry) -> Iterator[memoryview]:
        *_, role, kind = tensor.name.split(".")
        if kind == "ssm_a":  # states decay
            factors = -np.exp(self._random.normal(-1, 1, tensor.shape)).astype(np.float32)
            yield memoryview(factors.data).cast("B")
        elif kind == "bias":
            values = np.full(tensor.shape, self._biases.get(role, 0.0), np.float32)
            yield memoryview(values.data).cast("B")
        elif len(tensor.shape) == 1 or role == "ssm_norm" or kind == "ssm_d":
            norm = 1 + 0.1 * self._random.standard_normal(tensor.shape, np.float32)
            if self._routing and role.endswith("norm"):
                norm[: self._routing.width] = 1
            yield memoryview(norm.data).cast("B")
        elif not self._routing:
            yield from self._blocks(tensor.type, tensor.shape[-1], tensor.nbytes)
        elif role == "ffn_gate_inp":
            yield self._router(tensor, self._routing)
        elif role == "token_embd":
            yield from self._embedding(tensor, self._routing)
        elif role in ("attn_output", "ffn_down_exps"):
            yield from self._beside_code(tensor, self._routing)
        else:
            yield from self._blocks(tensor.type, tensor.shape[-1], tensor.nbytes)

    def _blocks(self, type: str, width: int, left: int) -> Iterator[memoryview]:
        """So many bytes, of rows of `width`."""
        n_bytes = TYPES[type].bytes
        pool = self._pool(type, width**-0.5)
        while left:
            start = int(self._random.integers(len(pool) // n_bytes)) * n_bytes
            part = memoryview(pool)[start : start + left]
            yield part
            left -= len(part)

    def _router(self, tensor: Entry, routing: Routing) -> memoryview:
        """Reads the code alone."""
        matrix = np.zeros(tensor.shape, np.float32)
        matrix[:, : routing.width] = routing.routers[int(tensor.name.split(".")[1])]
        return memoryview(matrix.data).cast("B")

    def _embedding(self, tensor: Entry, routing: Routing) -> Iterator[memoryview]:
        """Token t has the code of step t, of steps in a circle."""
        n_rows, width = tensor.shape
        row_bytes = tensor.nbytes // n_rows
        for first in range(0, n_rows, routing.steps):
            n = min(routing.steps, n_rows - first)
            parts = self._blocks(tensor.type, width, n * row_bytes)
            rows = np.frombuffer(b"".join(parts), np.uint8).reshape(n, row_bytes).copy()
            rows[:, : routing.codes.shape[1]] = routing.codes[:n]
            yield memoryview(rows.data).cast("B")

    def _beside_code(self, tensor: Entry, routing: Routing) -> Iterator[memoryview]:
        """Adds nothing to the code: blocks of zeros are zeros in every type."""
        *stack, n_rows, width = tensor.shape
        n_matrices = stack[0] if stack else 1
        row_bytes = tensor.nbytes // n_matrices // n_rows
        for _ in range(n_matrices):
            yield memoryview(bytes(routing.width * row_bytes))
            yield from self._blocks(tensor.type, width, (n_rows - routing.width) * row_bytes)

    def _pool(self, type: str, spread: float) -> bytes:
        if (type, spread) not in self._pools:
            n = _POOL // TYPES[type].bytes
            self._pools[type, spread] = random_blocks(self._random, type, n, spread).tobytes()
        return self._pools[type, spread]


def make_model(
    path: str,
    shape: Shape,
    type: str,
    *,
    embedding: str | None = None,
    output: str | None = None,
    name: str = "llama",
    seed: int = 0,
    routing: Routing | None = None,
) -> int:
    """Writes the file and returns its tensors' bytes. embedding, output: types, if not `type`.
    routing: see routing_of()."""
    entries = tensors(shape, type, embedding or type, output or type)
    weights = Weights(seed, routing, shape.biases)
    with write_gguf(path, metadata(name, shape), entries) as writer:
        for entry in entries:
            for part in weights(entry):
                writer.write(part)
    return sum(entry.nbytes for entry in entries)


def routing_of(shape: Shape, preset: str, embedding: str, seed: int = 0) -> Routing:
    """For a model of this shape, whose embedding is of this type. The same arguments make the
    same one."""
    if not shape.n_experts:
        raise UnsupportedError("routing: a model without experts has none")
    return Routing(
        PRESETS[preset],
        shape.n_embd,
        shape.n_layers,
        shape.n_experts,
        shape.n_used,
        embedding,
        seed,
    )


def main() -> None:
    types = [kind.name for kind in TYPES.values() if kind.has_unpack]
    parser = argparse.ArgumentParser(
        prog="bench.make_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shape", choices=SHAPES, help="what it is to be as large as")
    parser.add_argument("type", choices=types, metavar="TYPE", help="of all matrices: Q4_0, ...")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--embedding", choices=types, metavar="TYPE", help="of the embedding")
    parser.add_argument("--output", choices=types, metavar="TYPE", help="of the output matrix")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--routing", choices=PRESETS, help="the statistics that its routers follow")
    changes = parser.add_argument_group("to change the shape")
    for field in fields(Shape)[:-1]:
        option = "--" + field.name.replace("_", "-")
        changes.add_argument(option, type=float if field.type is float else int, metavar="N")
    arguments = vars(parser.parse_args())
    name = arguments.pop("shape")
    given = {field.name: arguments.pop(field.name) for field in fields(Shape)[:-1]}
    shape = replace(
        SHAPES[name], **{key: value for key, value in given.items() if value is not None}
    )
    start = time.perf_counter()
    preset = arguments.pop("routing")
    try:
        if preset:
            embedding = arguments["embedding"] or arguments["type"]
            arguments["routing"] = routing_of(shape, preset, embedding, arguments["seed"])
        size = make_model(arguments.pop("out"), shape, name=name, **arguments)
    except MmrtError as error:
        raise SystemExit(f"bench.make_model: {error}") from None
    seconds = time.perf_counter() - start
    print(f"{size / 1e9:.2f} GB of weights in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")


if __name__ == "__main__":
    main()
