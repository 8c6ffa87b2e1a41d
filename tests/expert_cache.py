"""A simulation of which experts stay in slots, by the rule of docs/streaming.md."""

from collections import Counter
from collections.abc import Sequence

_RECENT_TOKENS = 16


class Cache:
    """Slots of one size for the experts of all layers."""

    def __init__(self, slots: int, lru: bool = False) -> None:
        self._slots, self._lru = slots, lru
        self._held: set[tuple[int, int]] = set()  # (layer, expert)
        self._averages: dict[tuple[int, int], tuple[float, float]] = {}
        self._used: Counter[tuple[int, int]] = Counter()  # the step that used it last
        self._clock = 0
        self.wanted = self.found = 0
        self._by_layer: Counter[int] = Counter()

    @property
    def wanted_by_layer(self) -> list[int]:
        return [self._by_layer[layer] for layer in sorted(self._by_layer)]

    def _score(self, expert: tuple[int, int]) -> float:
        fast, slow = self._averages.get(expert, (0.0, 0.0))
        return self._used[expert] if self._lru else 0.3 * fast + slow

    def step(self, layer: int, n_experts: int, chosen: Sequence[Sequence[int]]) -> None:
        """A layer's part of a step: what each of its tokens has chosen."""
        self._clock += 1
        recent = chosen[-_RECENT_TOKENS:]
        for of_token in recent:
            for number in range(n_experts):
                fast, slow = self._averages.get((layer, number), (0.0, 0.0))
                used = number in of_token
                self._averages[layer, number] = (
                    fast * 0.6 + (1 - 0.6) * used,
                    slow * 0.98 + (1 - 0.98) * used,
                )
        wanted = sorted({(layer, number) for of_token in chosen for number in of_token})
        late = {(layer, number) for of_token in recent for number in of_token}
        self._used.update({each: self._clock - self._used[each] for each in wanted})
        missing = [each for each in wanted if each not in self._held]
        self.wanted += len(wanted)
        self.found += len(wanted) - len(missing)
        self._by_layer[layer] += len(wanted)
        for each in missing:
            self._admit(each, set(wanted), each in late)

    def _admit(self, expert: tuple[int, int], wanted: set[tuple[int, int]], is_late: bool) -> None:
        if len(self._held) >= self._slots:
            idle = self._held - wanted
            if not idle or not is_late:
                return
            victim = min(idle, key=lambda each: (self._score(each), each))
            if self._score(expert) < self._score(victim):
                return
            self._held.remove(victim)
        self._held.add(expert)
