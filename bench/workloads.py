"""Workloads of a server: who asks for what, and when. Nothing here knows what a server is.

turns     five users, each of ten turns: a beginning that all share (2,000 words), 220 words a turn,
          150 tokens for each answer, and a user thinks for a while before the next turn
branches  four requests at once that begin alike (4,500 words) and end otherwise
mixed     requests at random: eight of ten are short (220 words, 60 tokens), the others long
          (2,800 words, 300 tokens), at 0.8 of what the first server can do one by one
bursts    requests of very different sizes, many of them at once, at 0.8 likewise
answers   eight answers to one prompt (1,400 words, 64 tokens each)
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

_TEXT = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but "
    "have an had they you were their one all we can her has there been if more when will would who "
    "so no out up into than them only its time new some could these two may first then do any like "
    "my now over such our man me even most made after also did many before must through years "
    "where much your way well down should because each just those people how too little state very "
    "make world still own see men work long here get both between life being under never day same "
    "another know while last might us great old year off come since against go came right used take"
)
_WORDS = _TEXT.split()


class Turn(NamedTuple):
    """pause: seconds after the end of the turn before. text: what is said. tokens: of the answer.
    kind: requests of the same kind are looked at together."""

    pause: float
    text: str
    tokens: int
    kind: str = ""
    answers: int = 1


class Talk(NamedTuple):
    """at: seconds after the start of all. Its turns follow one another, each with all before."""

    at: float
    turns: Sequence[Turn]


class Sizes(NamedTuple):
    """Of what the workloads are made: factors, of words and tokens, and of time."""

    words: float = 1.0
    time: float = 1.0

    def text(self, draw: random.Random, n: float) -> str:
        return " ".join(draw.choices(_WORDS, k=max(round(n * self.words), 1)))

    def tokens(self, n: float) -> int:
        return max(round(n * self.words), 2)


def turns(sizes: Sizes, seed: int, second: float) -> list[Talk]:
    draw = random.Random(seed)
    beginning = sizes.text(draw, 2000)
    talks = []
    for user in range(5):
        made = []
        for i in range(10):
            text = sizes.text(draw, 220)
            pause = draw.expovariate(1 / 5.0) * sizes.time if i else 0.0
            tokens = sizes.tokens(150)
            kind = "first" if i == 0 else "later"
            made.append(Turn(pause, text if i else f"{beginning}\n{text}", tokens, kind))
        talks.append(Talk(user * sizes.time, made))
    return talks


def branches(sizes: Sizes, seed: int, second: float) -> list[Talk]:
    draw = random.Random(seed)
    beginning = sizes.text(draw, 4500)
    ends = [sizes.text(draw, 40) for _ in range(4)]
    return [Talk(0.0, [Turn(0.0, f"{beginning}\n{end}", sizes.tokens(64))]) for end in ends]


_SHORT, _LONG = (220, 60), (2800, 300)


def mixed(sizes: Sizes, seed: int, second: float) -> list[Talk]:
    draw = random.Random(seed)
    # A long one takes about as long as nine short ones.
    between = second * (0.8 * 1 + 0.2 * 9) / 0.8
    at, talks = 0.0, []
    for _ in range(40):
        at += draw.expovariate(1 / between)
        is_short = draw.random() < 0.8
        words, tokens = _SHORT if is_short else _LONG
        kind = "short" if is_short else "long"
        turn = Turn(0.0, sizes.text(draw, words), sizes.tokens(tokens), kind)
        talks.append(Talk(at, [turn]))
    return talks


def bursts(sizes: Sizes, seed: int, second: float) -> list[Talk]:
    """Sizes have a long tail, and so have the times between: most are far below the mean."""
    draw = random.Random(seed)
    at, talks = 0.0, []
    for _ in range(40):
        at += draw.gammavariate(0.3, 1 / 0.3) * second * 1.5 / 0.8
        words = min(draw.lognormvariate(5.2, 1.1), 2800)
        tokens = min(draw.lognormvariate(4.2, 0.9), 400)
        turn = Turn(0.0, sizes.text(draw, words), sizes.tokens(tokens))
        talks.append(Talk(at, [turn]))
    return talks


def answers(sizes: Sizes, seed: int, second: float) -> list[Talk]:
    draw = random.Random(seed)
    text = sizes.text(draw, 1400)
    return [Talk(0.0, [Turn(0.0, text, sizes.tokens(64), answers=8)])]


def short(sizes: Sizes, seed: int) -> Turn:
    """One short request of `mixed`, by which `second` is measured: how long it takes alone."""
    draw = random.Random(seed)
    return Turn(0.0, sizes.text(draw, _SHORT[0]), sizes.tokens(_SHORT[1]))


WORKLOADS = {
    "turns": turns,
    "branches": branches,
    "mixed": mixed,
    "bursts": bursts,
    "answers": answers,
}
