"""The line that says what a slow model is doing."""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mmrt.cli import live
from mmrt.cli.live import status_line
from mmrt.core.streaming import Streaming

GIB = 1 << 30
START = Streaming("uring", 2 * GIB, 0, 3 * GIB, 64 << 20, 5, 15 * GIB, 2 * GIB, 1.0, 9.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_it_says() -> None:
    assert status_line(2.2, None, None) == "[2 s]"
    half = replace(START, read=START.read + 3 * GIB // 2)
    assert status_line(1.0, START, half) == "[1 s: 1.50 GiB of 3.00 GiB read, 1.61 GB/s]"
    more = replace(START, read=START.read + 4 * GIB)  # and some of the next token's
    assert "3.00 GiB of 3.00 GiB read" in status_line(2.0, START, more)
    begun = replace(START, read=0, loaded=0)
    assert status_line(1.0, begun, replace(begun, loaded=GIB)) == "[1 s: 1.00 GiB of 2.00 GiB kept]"


def test_it_comes_late_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def clock() -> float:
        looks.append(1000.0 if patience_is_over else 0.0)
        return looks[-1]

    def until(sign: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not sign():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    patience_is_over = False
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(live, "_EVERY", 0.01)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    model: Any = SimpleNamespace(streaming=START)
    with live.live(model) as line:
        until(lambda: len(looks) > 4)  # the thread has looked
        assert screen.getvalue() == ""
        patience_is_over = True
        until(lambda: "read" in screen.getvalue())
        line.begin()
        print("text", end="")
    shown = screen.getvalue()
    # Saved and restored, so that the text goes on where it was; cleared before it.
    assert shown.count("\x1b7") == shown.count("\x1b8") > 0
    assert "\x1b[Ktext" in shown


@pytest.mark.parametrize("screen", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_nothing_where_there_is_no_terminal(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[live.Live] = []
    monkeypatch.setattr(live.Live, "watch", lambda line: watched.append(line))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", screen)
    model: Any = SimpleNamespace(streaming=None)
    with live.live(model):
        pass
    assert len(watched) == screen.isatty()
