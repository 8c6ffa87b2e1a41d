"""What a stage says of itself, and which stages make up a model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from mmrt.cluster.stage import STEP_TOKENS, Stage
from mmrt.core.gguf import Metadata
from mmrt.errors import ArgumentError, ClusterError
from mmrt.files.tensor_file import TensorFile
from mmrt.run.building import LAYERS

# No fact is a greater number.
_MOST = (1 << 40) - 1


@dataclass(frozen=True)
class Facts:
    first: int  # layer
    end: int
    n_layers: int  # of the model
    taken: int  # values of a row that it takes; 0: token ids
    width: int  # values of a row that it gives
    context: int
    max_tokens: int  # of a step
    page_bytes: int  # of keys and values for 32 tokens
    weights: int  # bytes
    kept: int  # of these, bytes that may stay in memory; as it began
    scratch: int  # bytes of a step
    spare: int  # bytes that its budget leaves beside its weights
    model: str  # alike in stages of one model
    settings: str  # what else has to be alike

    @classmethod
    def of(cls, stage: Stage) -> "Facts":
        return cls(
            first=stage.layers.start,
            end=stage.layers.stop,
            n_layers=stage.config.n_layers,
            taken=stage.program.taken,
            width=stage.width,
            context=stage.config.context,
            max_tokens=stage.program.max_tokens,
            page_bytes=stage.program.store.page_bytes,
            weights=stage.weights,
            kept=stage.kept,
            scratch=stage.program.step_bytes(STEP_TOKENS),
            spare=min(stage.budget.beside(stage.program), _MOST),
            model=digest(stage.file),
            settings=f"keys {stage.kv[0]}, values {stage.kv[1]}{', exact' * stage.exact}",
        )

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Facts":
        """ClusterError for what is no such thing."""
        try:
            values = json.loads(data)
            facts = cls(**values)
        except (ValueError, TypeError, RecursionError):
            raise ClusterError(f"no facts of a stage: {data!r:.60}") from None
        for name, kind in cls.__annotations__.items():
            value = getattr(facts, name)
            if type(value) is not kind or (kind is int and not 0 <= value <= _MOST):
                raise ClusterError(f"no fact of a stage: {name} is {value!r:.60}")
        return facts


def digest(file: TensorFile) -> str:
    """Of a model's metadata: the same in a file of some of its layers."""
    total = hashlib.blake2b(digest_size=16)
    metadata = file.metadata
    assert isinstance(metadata, Metadata)  # of a GGUF file, as those of all models are
    for key in sorted(metadata):
        if key != LAYERS and not key.startswith("split."):
            kind, data = metadata.raw(key)
            total.update(repr((key, kind, len(data))).encode())
            total.update(data)
    return total.hexdigest()


def check_chain(stages: Sequence[tuple[str, Facts]]) -> None:
    """Whether stages, each with its address, are one model in this order. ArgumentError says what
    is missing, or who differs."""
    at = 0
    for name, facts in stages:
        if facts.first != at:
            lack = f"layers {at}:{facts.first} are on none" if facts.first > at else ""
            raise ArgumentError(f"{name}: {lack or f'layers {facts.first}:{at} are on others too'}")
        at = facts.end
    if at != stages[0][1].n_layers:
        raise ArgumentError(f"layers {at}:{stages[0][1].n_layers} are on none of the stages")
    for (name, before), (other, facts) in pairwise(stages):
        if before.model != facts.model:
            raise ArgumentError(f"{name} and {other} have different models")
        if before.settings != facts.settings:
            raise ArgumentError(
                f"{name} has {before.settings}, and {other} {facts.settings}: they must be alike"
            )
        if before.width != facts.taken:
            raise ArgumentError(
                f"{name} gives rows of {before.width}, and {other} takes rows of {facts.taken}"
            )
