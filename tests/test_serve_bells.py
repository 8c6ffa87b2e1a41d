"""Waking coroutines from other threads: none sleeps on, and the loop is woken once for many."""

import asyncio
import threading
from typing import Any

from mmrt.run.generation import Piece
from mmrt.run.handle import Handle
from mmrt.serving.bells import Bells


def test_many_rings_wake_the_loop_once() -> None:
    async def wait() -> tuple[int, list[bool]]:
        loop, calls = asyncio.get_running_loop(), 0
        call = loop.call_soon_threadsafe

        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return call(*arguments)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        bells, events = Bells(), [asyncio.Event() for _ in range(9)]
        for event in events:  # the loop cannot look yet
            bells.ring(event)
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in events)), 10)
        bells.ring(again := asyncio.Event())
        await asyncio.wait_for(again.wait(), 10)
        return calls, [event.is_set() for event in events]

    assert asyncio.run(wait()) == (2, [True] * 9)


def test_no_ring_is_lost() -> None:
    async def count() -> int:
        bells, came, told, heard = Bells(), asyncio.Event(), [0], 0

        def tell() -> None:
            for _ in range(20_000):
                told[0] += 1
                bells.ring(came)

        thread = threading.Thread(target=tell)
        thread.start()
        while heard < 20_000:
            await asyncio.wait_for(came.wait(), 20)
            came.clear()
            heard = told[0]
        thread.join()
        return heard

    assert asyncio.run(count()) == 20_000


def test_pieces_are_taken_without_waiting() -> None:
    handle, woken = Handle(3, lambda handle: None), list[str]()

    def wake() -> None:
        woken.append("woken")

    assert handle.take(wake) == [] == handle.take(wake) and not woken
    first, last = Piece("a", 5), Piece("b", 6, "length")
    handle.tell([first], 1.0)
    assert woken == ["woken"]  # once, however often it was wanted
    handle.tell([last], 2.0)
    assert woken == ["woken"]  # nobody has asked again
    assert handle.take(wake) == [first, last] and handle.take(wake) is None


def test_what_ended_a_text_is_raised_behind_its_pieces() -> None:
    handle, error = Handle(3, lambda handle: None), ValueError("broken")
    handle.tell([Piece("a", 5)], 1.0)
    handle.end(error)
    assert [piece.text for piece in handle.take(print) or ()] == ["a"]
    for _ in range(2):
        try:
            handle.take(print)
        except ValueError as raised:
            assert raised is error
        else:
            raise AssertionError("nothing was raised")
