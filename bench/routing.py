"""Routers whose choices are set beforehand, and follow published statistics.

A random router on random states chooses evenly, which no cache can make use of and no trained model
does. Here the first half of the stream's dimensions is a code: the embedding of token t holds the
code of step t, nothing adds to these dimensions (their rows of attn_output and of all experts'
last matrices are zero), and each layer's router reads nothing else. Norms scale a code and change
no order, so that every engine chooses the same experts: those of step t for token t, whatever came
before it. A code has twice as many dimensions as there are steps, and so the routers that give each
step the logits that are wanted follow from linear equations. Further tokens repeat the steps.

What is wanted is drawn from a process: an expert's logit is the sum of what it is to the text, of
what changes slowly, of what changes from token to token, and of noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.blocks import random_blocks
from mmrt.core.quant import TYPES, dequantize
from mmrt.errors import UnsupportedError

# By how much a chosen expert's logit is raised: so that no rounding makes another choice.
_LEAD = 1.0


@dataclass(frozen=True)
class Process:
    """Standard deviations of what a logit consists of, and how much of it stays from one token to
    the next."""

    text: float
    slow: float
    fast: float
    noise: float
    slow_stays: float = 0.98
    fast_stays: float = 0.35
    first_layer: float = 1.0  # times `text`, in layer 0


# Fitted to what others have published of trained models.
PRESETS = {
    # Qwen3-30B-A3B: 8 of 128 (traces of Helldez/BigMoeOnEdge, 2026-07)
    "skewed": Process(0.95, 0.6, 0.7, 0.6, first_layer=0.4),
    # gpt-oss-120b: 4 of 128 (likewise)
    "gpt-oss": Process(0.5, 0.6, 0.3, 0.6),
    # Qwen3-Next and its kin: 10 of 512 (llama.cpp #27861, kekzl/imp #2061)
    "middle": Process(0.3, 0.6, 0.6, 0.8, slow_stays=0.97, fast_stays=0.4),
    # models balanced without a loss for it, such as GLM: 8 of 256 (JustVugg/colibri #274)
    "flat": Process(0.25, 0.3, 0.6, 0.9),
}


def draw(
    process: Process, random: np.random.Generator, steps: int, layers: int, experts: int
) -> NDArray[np.float64]:
    """Logits of one text: [steps][layers][experts]."""

    def normal() -> NDArray[np.float64]:
        return random.standard_normal((layers, experts))

    text = process.text * normal()
    text[0] *= process.first_layer
    slow, fast = normal(), normal()
    found = np.empty((steps, layers, experts))
    for logits in found:
        logits[:] = text + process.slow * slow + process.fast * fast + process.noise * normal()
        slow = _next(slow, process.slow_stays, normal())
        fast = _next(fast, process.fast_stays, normal())
    return found


def _next(
    state: NDArray[np.float64], stays: float, new: NDArray[np.float64]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = stays * state + (1 - stays**2) ** 0.5 * new
    return found


def best(logits: NDArray[np.float64], n_used: int) -> NDArray[np.int64]:
    """The experts with the largest logits, numbers rising: [...][n_used]."""
    chosen = np.argpartition(-logits, n_used - 1, axis=-1)[..., :n_used]
    return np.sort(chosen, axis=-1)


class Routing:
    """Codes and routers of a model, and what they choose.

    choices: [steps][layers][n_used], numbers rising. codes: the bytes of steps' codes, in blocks of
    the embedding's type, [steps][bytes]. routers: float32, [layers][experts][width].
    """

    def __init__(
        self,
        process: Process,
        n_embd: int,
        n_layers: int,
        n_experts: int,
        n_used: int,
        embedding: str,
        seed: int,
    ) -> None:
        """embedding: the type of token_embd. UnsupportedError if the stream has no room for a
        code."""
        random = np.random.default_rng([seed, 0xC0DE])
        kind = TYPES[embedding]
        self.width = n_embd // 2 // kind.elements * kind.elements
        self.steps = self.width // 2
        if not self.steps:
            raise UnsupportedError(
                f"routing: half of a stream of {n_embd} has no room for a block of {embedding}"
            )
        n_blocks = self.steps * self.width // kind.elements
        blocks = random_blocks(random, embedding, n_blocks, 1.0)
        self.codes = blocks.reshape(self.steps, -1)
        logits = draw(process, random, self.steps, n_layers, n_experts)
        self.choices = best(logits, n_used)
        chosen = np.take_along_axis(logits, self.choices, -1) + _LEAD
        np.put_along_axis(logits, self.choices, chosen, -1)
        values = dequantize(embedding, blocks.tobytes(), n_blocks * kind.elements)
        code = values.reshape(self.steps, self.width).astype(np.float64)
        # The least matrix R with code @ R = logits.
        solved = code.T @ np.linalg.solve(code @ code.T, logits.reshape(self.steps, -1))
        routers = solved.T.reshape(n_layers, n_experts, self.width)
        self.routers: NDArray[np.float32] = routers.astype(np.float32)
