"""How the next token is chosen from logits l, one for each token of the vocabulary.

In this order, which is llama.cpp's, so that settings carry over:

1. biases: some tokens get l + bias;
2. repetition penalty r: each token seen lately gets l / r if l > 0, else l * r
   (Keskar et al. 2019, CTRL, arXiv:1909.05858);
3. presence penalty a and frequency penalty b: each token seen lately, n times, gets l - a - b * n;
4. top-k: the k highest logits stay (Fan et al. 2018, arXiv:1805.04833);
5. top-p: of p = softmax(l), the fewest tokens, most likely first, whose p add up to at least
   top_p (Holtzman et al. 2019, nucleus sampling, arXiv:1904.09751);
6. min-p: the tokens with p >= min_p * max(p) (Nguyen et al. 2024, arXiv:2407.01082);
7. temperature t: a draw from softmax(l / t) over what stayed.

Filters see the untempered p, so temperature changes the draw and not what it is made from. Among
equal logits the lower token id goes first. csrc/sample computes all of it, in float32.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from mmrt.core.arguments import instance, number, whole

_LARGEST = sys.float_info.max
_LARGEST_ID = 2**31 - 1
_PENALTY = 1e6  # no larger one makes a difference, and logits stay finite


class Filters(TypedDict, total=False):
    """All of Sampling but the temperature, as keyword arguments."""

    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_n: int
    logit_bias: Mapping[int, float] | None
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises ArgumentError for a setting that is out of its range.

    temperature: of the draw; 0 takes the most likely token, whatever the filters.
    top_k: draw from this many of the most likely tokens; 0: from all.
    top_p: draw from the most likely tokens that make up this probability; 1: from all.
    min_p: draw from tokens this likely, relative to the most likely; 0: from all.
    repeat_penalty: hold tokens that were seen lately back by this factor; 1: do not.
    presence_penalty: subtract this from the logits of tokens that were seen lately; 0: do not.
    frequency_penalty: subtract this for each time that they were seen; 0: do not.
    repeat_last_n: the number of latest tokens that penalties look at; -1: all.
    logit_bias: what is added to the logits of these tokens, by their ids; None: nothing.
    seed: the same one gives the same draws in the same order; None: others each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        checked = {
            "temperature": number("temperature", self.temperature, 0, _LARGEST),
            "top_k": whole("top_k", self.top_k, 0),
            "top_p": number("top_p", self.top_p, 0, 1, above=True),
            "min_p": number("min_p", self.min_p, 0, 1),
            "repeat_penalty": number("repeat_penalty", self.repeat_penalty, 1 / _PENALTY, _PENALTY),
            "presence_penalty": number(
                "presence_penalty", self.presence_penalty, -_PENALTY, _PENALTY
            ),
            "frequency_penalty": number(
                "frequency_penalty", self.frequency_penalty, -_PENALTY, _PENALTY
            ),
            "repeat_last_n": whole("repeat_last_n", self.repeat_last_n, -1),
            "logit_bias": _biases(self.logit_bias),
            "seed": None if self.seed is None else whole("seed", self.seed, 0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def penalises(self) -> bool:
        """Whether choices depend on the tokens before them."""
        penalties = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0) and self.repeat_last_n != 0


def _biases(given: Mapping[int, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    return {
        whole("logit_bias", token, 0, _LARGEST_ID): number(
            f"logit_bias[{token!r:.20}]", bias, -_PENALTY, _PENALTY
        )
        for token, bias in instance("logit_bias", given, Mapping, "a dict of token ids").items()
    }
