"""Responses that are kept, for clients that go on from them."""

from collections import OrderedDict
from typing import Any, NamedTuple

from mmrt.serving.limits import Limits
from mmrt.serving.sse import to_json


class Kept(NamedTuple):
    """response: as it was told. items: all that was said, from the first request on to the
    response's end. n_bytes: of both, as JSON."""

    owner: str
    response: dict[str, Any]
    items: list[dict[str, Any]]
    n_bytes: int


class Shelf:
    """The responses of all clients. Beyond the limits, those that nobody has asked for for longest
    go."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, kept: Kept) -> None:
        """Keeps one, unless it is too large on its own."""
        if kept.n_bytes > self._limits.kept_bytes:
            return
        self._kept[kept.response["id"]] = kept
        self.n_bytes += kept.n_bytes
        while len(self) > self._limits.kept or self.n_bytes > self._limits.kept_bytes:
            self._remove(next(iter(self._kept)))

    def get(self, identity: str, owner: str) -> Kept | None:
        """The one of this id, if it is kept, and the owner's."""
        kept = self._kept.get(identity)
        if kept is None or kept.owner != owner:
            return None
        self._kept.move_to_end(identity)
        return kept

    def remove(self, identity: str, owner: str) -> bool:
        """Forgets it; whether it was there."""
        if self.get(identity, owner) is None:
            return False
        self._remove(identity)
        return True

    def _remove(self, identity: str) -> None:
        self.n_bytes -= self._kept.pop(identity).n_bytes


def size_of(response: dict[str, Any], items: list[dict[str, Any]]) -> int:
    """Bytes of JSON."""
    return len(to_json([response, items]).encode("utf-8", "replace"))
