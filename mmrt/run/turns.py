"""The thread of an engine, which holds the engine only while there is something to do."""

import threading
import weakref
from typing import Protocol

from mmrt.errors import ArgumentError


class Turning(Protocol):
    """An engine, as its thread sees it."""

    def has_work(self) -> bool:
        """Whether there is something to do."""

    def turn(self) -> bool:
        """Does it, or a part; False: the engine is closed."""

    def shut(self, error: BaseException) -> None:
        """Ends all texts with this error."""


def work(
    engine: "weakref.ref[Turning]", lock: "threading.RLock", changed: threading.Condition
) -> None:
    """Has the engine take its turns, until it is closed or dropped."""
    while True:
        with lock:
            alive = engine()
            while alive is not None and not alive.has_work():
                alive = None
                changed.wait(1.0)
                alive = engine()
        if alive is None:
            return
        try:
            if not alive.turn():
                alive.shut(ArgumentError("the engine was closed"))
                return
        except BaseException as error:  # a fault of ours: nobody waits for ever
            alive.shut(error)
            raise
