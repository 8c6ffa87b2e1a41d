"""HTTP/1.1 over asyncio: connections, their limits, and the end of clients who leave.

h11 reads and writes the protocol. While a request is answered, the connection is read on: when the
client is gone, whatever answers is cancelled.
"""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import h11

from mmrt.serving.limits import Limits, Shape
from mmrt.serving.problems import Refused, refused
from mmrt.serving.sse import PING, to_json

_READ = 1 << 16
_WRITTEN_AHEAD = 1 << 16  # bytes that a client has not taken yet, from which on we wait for it
_PIPELINED = 1 << 16  # bytes of further requests that are read while one is answered
_LINGER_SECONDS = 2.0  # for which a refused client may go on sending before it is cut off
_PROBE_SECONDS = 0.05  # until the first answer to a probe may be here


@dataclass
class Request:
    """What a client asks for. path: without its query, its escapes decoded. headers: names in lower
    case, of those that come twice the last. note: what the access log says of it beside the usual.
    """

    method: str
    path: str
    headers: dict[str, str]
    peer: str
    body: bytes = b""
    note: str = ""

    @cached_property
    def id(self) -> str:
        """What the request is called in the answer's head and in the log: as its client calls it,
        if that is a short word."""
        given = self.headers.get("x-request-id", "")
        return given if re.fullmatch(r"[!-~]{1,128}", given) else f"req_{uuid.uuid4().hex}"


@dataclass
class Response:
    """body: whole, or as it comes, in parts that are whole events. done: called when it has been
    sent, or the client has left. ping: what a stream says when it has nothing to say."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)
    done: Callable[[], object] = lambda: None
    ping: bytes = PING


def json_response(value: Any, status: int = 200) -> Response:
    return Response(status, to_json(value).encode("utf-8", "replace"))


Handler = Callable[[Request], Awaitable[Response]]


class App(Protocol):
    """What answers. None of it may block."""

    def find(self, request: Request) -> Handler:
        """Who answers a request, of which the body has not been read. Raises Refused."""

    def problem(self, request: Request | None, problem: Refused) -> Response:
        """The answer to a request that was refused; None: it could not be read."""

    def headers(self, request: Request | None) -> list[tuple[str, str]]:
        """What every response has."""

    def log(self, request: Request, status: int, sent: int, seconds: float) -> None:
        """Takes note of a request that was answered; status 499: the client had left."""

    def fault(self, error: BaseException) -> None:
        """Takes note of an error that nobody foresaw."""


class HttpServer:
    """Listens, and holds the connections."""

    def __init__(self, app: App, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.stopping = False
        self.body_bytes = 0  # of requests that are being read or answered
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._listeners: list[asyncio.Server] = []

    async def listen(self, host: str, port: int) -> list[tuple[str, int]]:
        """Returns the addresses. Raises OSError."""
        listener = await asyncio.start_server(
            self._connected, host, port, limit=_READ, backlog=1024
        )
        self._listeners.append(listener)
        return [socket.getsockname()[:2] for socket in listener.sockets]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        if len(self._connections) >= self.limits.connections:
            with contextlib.suppress(OSError):
                await connection.turn_away()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = connection
        try:
            await connection.run()
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # the client is gone, or the server is to end
        except Exception as error:
            self.app.fault(error)
        finally:
            del self._connections[task]
            writer.close()

    async def stop(self, seconds: float) -> None:
        """Takes no more requests, and waits for so long for those that are being answered."""
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        idle = [task for task, one in self._connections.items() if not one.is_busy]
        for task in idle:
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=seconds)
        rest = list(self._connections)
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=5)


class _Left(Exception):
    """The client has closed the connection."""


class _Connection:
    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._limits = server.limits
        self._reader, self._writer = reader, writer
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=server.limits.header)
        peer = writer.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else "-"
        self._sent = 0
        self._ping = b""  # of the stream that is being sent
        self._last_written = 0.0
        self.is_busy = False  # with a request

    # ---- a connection's life ----

    async def turn_away(self) -> None:
        """There are too many connections."""
        problem = Refused(
            503, "too many connections", code="overloaded", headers=(("Retry-After", "1"),)
        )
        response = self._server.app.problem(None, problem)
        assert isinstance(response.body, bytes)
        head = [f"HTTP/1.1 {response.status} Service Unavailable", "Connection: close"]
        head += [f"Content-Type: {response.content_type}"]
        head += [f"{name}: {value}" for name, value in response.headers]
        head += [f"Content-Length: {len(response.body)}", "", ""]
        self._writer.write("\r\n".join(head).encode("latin-1") + response.body)
        await self._part()

    async def run(self) -> None:
        while await self._one_request():
            self._h11.start_next_cycle()
            self.is_busy = False
        await self._part()

    async def _part(self) -> None:
        """Closes the connection, but lets a client that is still sending read the answer first."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._linger(), _LINGER_SECONDS)
        self._writer.close()

    async def _linger(self) -> None:
        await self._writer.drain()
        if self._writer.can_write_eof():
            self._writer.write_eof()
        while await self._reader.read(_READ):
            pass

    async def _one_request(self) -> bool:
        """Answers a request; whether another one may follow."""
        request: Request | None = None
        started = time.monotonic()
        try:
            request = await self._head()
            if request is None:
                return False
            started = time.monotonic()
            handler = self._server.app.find(request)
            if self._server.stopping:
                raise Refused(503, "the server is about to end", code="stopping")
            request.body = await self._body(request)
        except Refused as problem:
            await self._send(request, self._server.app.problem(request, problem), last=True)
            if request is not None:
                self._log(request, problem.status, started)
            return False
        except (_Left, asyncio.TimeoutError):
            return False
        size = len(request.body)
        try:
            status = await self._watched(self._answer(handler, request))
        finally:
            self._server.body_bytes -= size
        self._log(request, status, started)
        done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        return done and not self._server.stopping

    def _log(self, request: Request, status: int, started: float) -> None:
        self._server.app.log(request, status, self._sent, time.monotonic() - started)

    # ---- reading ----

    async def _head(self) -> Request | None:
        """The next request's head; None: there is none."""
        if not self._h11.trailing_data[0]:
            try:
                read = self._reader.read(_READ)
                data = await asyncio.wait_for(read, self._limits.idle_seconds)
            except asyncio.TimeoutError:
                return None
            if not data:
                return None
            self.is_busy = True
            self._h11.receive_data(data)
        self.is_busy = True
        try:
            event = await asyncio.wait_for(self._event(), self._limits.header_seconds)
        except asyncio.TimeoutError:
            raise Refused(408, "the head of the request did not come in time") from None
        if not isinstance(event, h11.Request):
            return None
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if size > self._limits.header:
            raise Refused(431, f"the head of the request is larger than {self._limits.header}")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        if "transfer-encoding" in headers and ("content-length" in headers or _is_old(event)):
            # Whoever stands between may have read another length: what follows is not trusted.
            raise Refused(400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0")
        path, host = _split(event.target.decode("latin-1"))
        if host is not None:
            headers["host"] = host
        return Request(event.method.decode("latin-1"), path, headers, self._peer)

    async def _event(self) -> Any:
        while True:
            try:
                event = self._h11.next_event()
                if event is not h11.NEED_DATA:
                    return event
                if self._h11.they_are_waiting_for_100_continue:
                    self._write(h11.InformationalResponse(status_code=100, headers=[]))
                data = await self._reader.read(_READ)
                self._h11.receive_data(data)
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                raise Refused(status, f"the request is no HTTP: {error}") from None
            if not data and self._h11.their_state is not h11.IDLE:
                raise _Left

    async def _body(self, request: Request) -> bytes:
        limits = self._limits
        length = request.headers.get("content-length")
        if length is not None and length.isdigit() and int(length[:20]) > limits.body:
            raise Refused(413, f"the body of {length[:20]} bytes is larger than {limits.body}")
        try:
            return await asyncio.wait_for(self._read_body(), limits.body_seconds)
        except asyncio.TimeoutError:
            raise Refused(408, "the body did not come in time") from None

    async def _read_body(self) -> bytes:
        server, limits = self._server, self._limits
        shape, chunks, size = Shape(limits), list[bytes](), 0
        try:
            while not isinstance(event := await self._event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    raise _Left
                chunk = bytes(event.data)
                size += len(chunk)
                server.body_bytes += len(chunk)
                if size > limits.body:
                    raise Refused(413, f"the body is larger than {limits.body} bytes")
                if server.body_bytes > limits.bodies:
                    raise Refused(
                        503,
                        "the requests under way are too large together",
                        code="overloaded",
                        headers=(("Retry-After", "1"),),
                    )
                shape.feed(chunk)
                chunks.append(chunk)
        except BaseException:
            server.body_bytes -= size
            raise
        return b"".join(chunks)

    # ---- answering ----

    async def _watched(self, answering: Any) -> int:
        """Waits for an answer, and cancels it when the client has gone."""
        answer = asyncio.ensure_future(answering)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return int(answer.result())
            return 499
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _gone(self) -> None:
        """Returns when the client has left."""
        ahead = 0
        while ahead < _PIPELINED:
            try:
                data = await self._reader.read(_READ)
            except OSError:
                return
            if not data:
                break
            ahead += len(data)
            self._h11.receive_data(data)
        await self._unheard()

    async def _unheard(self) -> None:
        """Returns when a client of whom nothing more is read does not listen either: only what is
        sent to it tells, as the system of a client that has left refuses it."""
        lost = asyncio.ensure_future(self._writer.wait_closed())
        seconds = _PROBE_SECONDS
        try:
            while not (await asyncio.wait({lost}, timeout=seconds))[0]:
                if not self._probe():
                    return
                seconds = min(2 * seconds, self._limits.ping_seconds)
        finally:
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

    def _probe(self) -> bool:
        """Sends what clients pass over. False: those of HTTP/1.0 know no answer before the last,
        and are taken to have left, as proxies that speak it have."""
        if self._h11.our_state is h11.SEND_RESPONSE:
            if self._h11.their_http_version == b"1.0":
                return False
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        elif self._h11.our_state is h11.SEND_BODY and self._ping:
            self._write(h11.Data(data=self._ping))
        return True

    async def _answer(self, handler: Handler, request: Request) -> int:
        app = self._server.app
        try:
            response = await handler(request)
        except Exception as error:
            problem = refused(error)
            if problem.status == 500:
                app.fault(error)
            response = app.problem(request, problem)
        await self._send(request, response)
        return response.status

    async def _send(self, request: Request | None, response: Response, last: bool = False) -> None:
        self._sent = 0
        self._ping = b"" if isinstance(response.body, bytes) else response.ping
        headers = [
            ("Content-Type", response.content_type),
            *response.headers,
            *self._server.app.headers(request),
        ]
        if isinstance(response.body, bytes) and response.status != 204:
            headers.append(("Content-Length", str(len(response.body))))
        if last or self._server.stopping:
            headers.append(("Connection", "close"))
        try:
            self._write(h11.Response(status_code=response.status, headers=headers))
            is_head = request is not None and request.method == "HEAD"
            if isinstance(response.body, bytes):
                if not is_head:
                    self._write(h11.Data(data=response.body))
            elif not is_head:
                await self._send_stream(response.body)
            self._write(h11.EndOfMessage())
            await self._taken()
        finally:
            response.done()
            if not isinstance(response.body, bytes):
                await _close(response.body)

    async def _send_stream(self, body: AsyncIterator[bytes]) -> None:
        pinging = asyncio.ensure_future(self._ping_on())
        try:
            async for chunk in body:
                self._write(h11.Data(data=chunk))
                if self._has_much_to_send():
                    await self._taken()
        finally:
            pinging.cancel()

    async def _ping_on(self) -> None:
        """Sends a ping wherever nothing else was sent for so long."""
        wait = self._limits.ping_seconds
        left = wait
        while True:
            await asyncio.sleep(left)
            left = self._last_written + wait - time.monotonic()
            if left <= 0:
                left = wait
                if not self._has_much_to_send():
                    self._write(h11.Data(data=self._ping))

    def _has_much_to_send(self) -> bool:
        return self._writer.transport.get_write_buffer_size() > _WRITTEN_AHEAD

    def _write(self, event: Any) -> None:
        data = self._h11.send(event)
        self._last_written = time.monotonic()
        if data and not self._writer.transport.is_closing():  # or asyncio complains, at each
            self._sent += len(data)
            self._writer.write(data)

    async def _taken(self) -> None:
        """Waits until the client has taken enough of what was written."""
        await asyncio.wait_for(self._writer.drain(), self._limits.write_seconds)


def _is_old(request: Any) -> bool:
    return bool(request.http_version < b"1.1")


def _split(target: str) -> tuple[str, str | None]:
    """The path of a request's target, and the host where the target names one, as for proxies."""
    host = None
    if "://" in target and not target.startswith("/"):
        try:
            parts = urlsplit(target)
        except ValueError:
            raise Refused(400, f"{target!r:.80} is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Refused(400, f"{target!r:.80} is no URL of HTTP")
        target, host = parts.path or "/", parts.netloc.rpartition("@")[2]
    return unquote(target.partition("?")[0]), host


async def _close(body: AsyncIterator[bytes]) -> None:
    close = getattr(body, "aclose", None)
    if close is not None:
        await close()
