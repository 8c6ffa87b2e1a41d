"""A network that a test has for itself: see bench/networks.py."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from bench.networks import Network, RefusedError


def in_network(work: Callable[[Network], Any]) -> None:
    """Calls work(network) in a thread; what it raises fails the test. Skips it where no network can
    be made."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work(Network())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    if raised and isinstance(raised[0], RefusedError):
        pytest.skip(f"no network can be made here: {raised[0]}")
    if raised:
        raise raised[0]
