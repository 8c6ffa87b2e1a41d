"""Who takes part in a step, by what each step costs."""

from dataclasses import dataclass
from typing import Any

import pytest

from mmrt.run.cost import StepCost
from mmrt.run.step import take_part


@dataclass
class Text:
    """What a step asks of one."""

    writes: bool
    had: float = 0.0  # milliseconds
    length: int = 0
    to_read: int = 4000
    rank_class: int = 0

    def cut(self, n: int) -> int:
        return n


@pytest.fixture(scope="module")
def cost() -> StepCost:
    """10 ms for the weights and 1 ms for each token."""
    cost = StepCost()
    for n in (1, 2, 8, 32, 128, 256, 64, 1):
        cost.observe([(n, 0)], 0.01 + 0.001 * n)
    return cost


def tokens(jobs: list[Any], cost: StepCost) -> list[int]:
    return [n for _, n in take_part(jobs, cost, None, 1 << 16, lambda job, before: True)]


def test_a_prompt_gets_what_max_gap_leaves(cost: StepCost) -> None:
    old = Text(writes=True, had=5000)
    assert tokens([old, Text(writes=False, had=5000)], cost) == [1, pytest.approx(239, abs=2)]
    assert tokens([Text(writes=False)], cost) == [pytest.approx(990, abs=8)]  # alone


def test_an_old_prompt_gives_way_to_young_texts_that_write(cost: StepCost) -> None:
    young, prompt = Text(writes=True, had=999), Text(writes=False, had=1000)
    assert tokens([young, prompt], cost) == [1, pytest.approx(5, abs=1)]
    others = [Text(writes=True, had=5000) for _ in range(9)]
    assert tokens([young, *others, prompt], cost) == [1] * 10 + [pytest.approx(10, abs=1)]


def test_a_prompt_that_is_young_or_first_does_not(cost: StepCost) -> None:
    young, old = Text(writes=True), Text(writes=False, had=5000)
    assert tokens([young, Text(writes=False, had=500)], cost)[1] > 200
    assert tokens([old, young], cost)[1] > 200  # the old one ranks first


def test_a_step_that_costs_more_than_max_gap_reads_a_token(cost: StepCost) -> None:
    writers = [Text(writes=True, had=5000) for _ in range(300)]
    assert tokens([*writers, Text(writes=False)], cost)[-1] == 1
