"""Running a server: it listens, loads its models, and ends when it is told to."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable

from mmrt.serving.access import Access
from mmrt.serving.app import App
from mmrt.serving.desk import Desk
from mmrt.serving.house import House
from mmrt.serving.http import HttpServer
from mmrt.serving.limits import Limits

Load = Callable[[House], None]


class Server:
    """A server of models, to be run by one thread.

    load: puts the models into a House; it runs in a thread of its own, while /health says 503.
    note: says something to whoever runs the server. started: called with the addresses that it
    listens at.
    """

    def __init__(
        self,
        load: Load,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        access: Access | None = None,
        limits: Limits | None = None,
        note: Callable[[str], None] = lambda text: None,
        started: Callable[[list[tuple[str, int]]], None] = lambda addresses: None,
        access_log: bool = True,
    ) -> None:
        self.house = House()
        self.limits = limits or Limits()
        self._load, self._host, self._port = load, host, port
        self._started, self._note = started, note
        self.desk = Desk(self.house, access or Access(), self.limits)
        self.http = HttpServer(App(self.desk, note, access_log), self.limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self._told_to_stop = asyncio.Event()
        self._at_once = asyncio.Event()

    def run(self) -> None:
        """Serves until stop() or, in the main thread, SIGTERM or SIGINT. Raises OSError where it
        cannot listen, and what `load` raises."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Has it end, from any thread: what is under way may go on for a while; called again, at
        once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        (self._at_once if self._told_to_stop.is_set() else self._told_to_stop).set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop)
        addresses = await self.http.listen(self._host, self._port)
        self._started(addresses)
        loading = asyncio.ensure_future(asyncio.to_thread(self._load, self.house))
        stopping = asyncio.ensure_future(self._told_to_stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self.house.is_ready = True
                self.house.prepare()
                self._note(f"ready: {', '.join(self.house.models)}")
                await stopping
        finally:
            stopping.cancel()
            await self._end()
            with contextlib.suppress(Exception):
                await loading
            await asyncio.to_thread(self.house.close)

    async def _end(self) -> None:
        """Lets what is under way end, for a while, or until it is to be at once."""
        ending = asyncio.ensure_future(self.http.stop(self.limits.stop_seconds))
        at_once = asyncio.ensure_future(self._at_once.wait())
        await asyncio.wait({ending, at_once}, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        if not ending.done():
            await self.http.stop(0)
        await ending
