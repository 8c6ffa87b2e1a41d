"""A stage behind a socket: it does what a coordinator tells it, step by step.

A coordinator asks what the stage is, and then sends a plan: to whom the stage gives its rows. A
plan has an epoch, which rises; from then on frames of earlier epochs come from nobody, and what
texts the stage had is gone. Steps come from the coordinator to the first stage, and to the others
from the one before; what fails is told to the coordinator at once.
"""

import json
import queue
import socket
import threading
import time
from contextlib import suppress

import numpy as np

from mmrt.cluster import steps, wire
from mmrt.cluster.facts import Facts
from mmrt.cluster.stage import Stage
from mmrt.cluster.steps import Step
from mmrt.cluster.wire import Connection, Kind
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.errors import ClusterError, MmrtError, OutOfMemoryError, UnsupportedError

# Connections that are not yet known to know the secret, and texts of a plan.
_MOST_STRANGERS = 16
_MOST_TEXTS = 1 << 16

# Steps that have come and not begun.
_MOST_AHEAD = 64


class _Plan:
    """What the stage is to do, and the texts that it has for that."""

    def __init__(self, epoch: int, form: str, control: Connection) -> None:
        self.epoch = epoch
        self.form = form
        self.control = control
        self.before: Connection | None = None
        self.after: Connection | None = None
        self.texts: dict[int, Cache] = {}
        self.steps: queue.Queue[bytes | None] = queue.Queue(_MOST_AHEAD)
        self.over = False

    def end(self) -> None:
        """Ends its connections, and its worker after the step that it is in."""
        self.over = True
        for connection in (self.control, self.before, self.after):
            if connection is not None:
                connection.close()
        with suppress(queue.Full):  # its worker looks at `over` before each
            self.steps.put_nowait(None)

    def fail(self, error: BaseException, number: int = 0, lost: bool = False) -> None:
        """Tells the coordinator. lost: another machine has failed, not the step."""
        with suppress(ClusterError):
            self.control.send(Kind.FAILED, self.epoch, _failure(error, number, lost))


def _failure(error: BaseException, number: int = 0, lost: bool = False) -> bytes:
    if isinstance(error, MemoryError) and not isinstance(error, MmrtError):
        error = OutOfMemoryError(str(error))
    elif not isinstance(error, MmrtError):
        error = ClusterError(f"{type(error).__name__}: {error}")
    kind = type(error).__name__
    told = {"step": number, "kind": kind, "message": str(error)[:4000], "lost": lost}
    return json.dumps(told).encode()


class StageServer:
    """Has `stage` listen at `address`, for those who know `secret`; a context manager.

    address: host, or the name of an interface, and port; 0: any that is free. Raises ClusterError
    if it cannot listen there, ArgumentError for a secret of less than 16 bytes.
    """

    def __init__(self, stage: Stage, address: tuple[str, int], secret: bytes) -> None:
        self._stage = stage
        self._secret = wire.check_secret(secret)
        self._facts = Facts.of(stage)
        if stage.program.store.is_recurrent:
            raise UnsupportedError(
                f"{stage.file.path}: layers {stage.layers.start}:{stage.layers.stop} keep a "
                "recurrent state, which a cluster cannot take back yet when a step fails"
            )
        self._strangers: list[socket.socket] = []  # the oldest first
        self._lock = threading.Lock()  # of _plan
        self._plan: _Plan | None = None
        self._epoch = 0
        self._working = threading.Lock()  # one step at a time, of whichever plan
        self._closed = False
        self._taken: list[StageServer] = []  # of other layers, from machines that are gone
        self._listener = wire.listen(address)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def serve(self) -> None:
        """Answers until it is closed, from another thread or by an exception such as
        KeyboardInterrupt."""
        while not self._closed:
            try:
                sock = self._listener.accept()[0]
            except OSError:  # of a caller that is gone, or of close(); or files are too many
                time.sleep(0.01)
                continue
            with self._lock:
                self._strangers.append(sock)
                for oldest in self._strangers[:-_MOST_STRANGERS]:
                    with suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)  # which its thread notices
            threading.Thread(target=self._meet, args=(sock,), daemon=True).start()

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        with self._lock:
            if self._plan is not None:
                self._plan.end()
        with self._working:  # until the step under way has ended
            pass
        while self._taken:
            self._taken.pop()._end()

    def _end(self) -> None:
        self.close()
        self._stage.close()

    def __enter__(self) -> "StageServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- one connection ----

    def _meet(self, sock: socket.socket) -> None:
        try:
            connection = wire.accept(sock, self._secret)
        except ClusterError:
            return
        finally:
            with self._lock:
                self._strangers.remove(sock)
        with suppress(ClusterError):  # who broke it knows; the plan ends with its connections
            self._attend(connection)
        connection.close()

    def _attend(self, connection: Connection) -> None:
        plan: _Plan | None = None
        try:
            while (frame := connection.receive(None)) is not None:
                if frame.kind == Kind.ASK:
                    connection.send(Kind.FACTS, frame.epoch, self._facts.to_json())
                elif frame.kind == Kind.PING:
                    connection.send(Kind.PONG, frame.epoch)
                elif frame.kind == Kind.TAKE and plan is None:
                    self._take_over(connection, frame.epoch, frame.payload)
                elif frame.kind == Kind.PLAN and plan is None:
                    plan = self._begin(connection, frame.epoch, frame.payload)
                elif frame.kind == Kind.JOIN and plan is None:
                    plan = self._join(connection, frame.epoch)
                elif frame.kind == Kind.STEP and plan is not None and frame.epoch == plan.epoch:
                    self._take(plan, connection, frame.payload)
                else:
                    raise connection.broken(f"a frame {frame.kind.name} out of turn")
        finally:
            if plan is not None:
                if connection is plan.before and not plan.over:
                    plan.fail(ClusterError("the stage before it is gone"), lost=True)
                plan.end()

    def _begin(self, control: Connection, epoch: int, payload: bytes) -> _Plan:
        try:
            told = json.loads(payload)
            form, after = told["form"], told["next"]
            if form not in steps.FORMS or not isinstance(after, str | None):
                raise ValueError
            if (after is None) != self._stage.is_last:
                raise ValueError
        except (ValueError, TypeError, LookupError, RecursionError):
            raise control.broken("what came is no plan") from None
        plan = _Plan(epoch, form, control)
        with self._lock:
            if epoch <= self._epoch:
                plan.fail(ClusterError("a later plan is in force"), lost=True)
                raise control.broken("a plan that is out of date")
            if self._plan is not None:
                self._plan.end()
            self._plan, self._epoch = plan, epoch
        if self._stage.is_first:
            control.largest = steps.largest_step(self._facts.max_tokens, 0)
        try:
            if after is not None:
                plan.after = wire.connect(wire.parse_address(after), self._secret)
                plan.after.send(Kind.JOIN, epoch)
        except MmrtError as error:
            plan.fail(error, lost=True)
            plan.end()
            raise control.broken(str(error)) from None
        threading.Thread(target=self._work, args=(plan,), daemon=True).start()
        control.send(Kind.PLANNED, epoch)
        return plan

    def _take_over(self, connection: Connection, epoch: int, payload: bytes) -> None:
        """Begins a stage of other layers, on a port of its own."""
        try:
            first, end = json.loads(payload)
            if not 0 <= int(first) < int(end) <= self._facts.n_layers:
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise connection.broken("what came is no range of layers") from None
        try:
            with self._lock:
                if self._closed:
                    raise ClusterError("the stage is closed")
                for server in [each for each in self._taken if each._plan and each._plan.over]:
                    self._taken.remove(server)  # whoever it was for is gone
                    server._end()
                stage = self._stage.beside(range(first, end))
                try:
                    server = StageServer(stage, (self.address[0], 0), self._secret)
                except BaseException:
                    stage.close()
                    raise
                self._taken.append(server)
            threading.Thread(target=server.serve, daemon=True).start()
        except (MmrtError, MemoryError) as error:
            connection.send(Kind.FAILED, epoch, _failure(error))
            return
        connection.send(Kind.TAKEN, epoch, json.dumps(server.address[1]).encode())

    def _join(self, before: Connection, epoch: int) -> _Plan:
        with self._lock:
            plan = self._plan
            if plan is None or plan.epoch != epoch or plan.before or self._stage.is_first:
                raise before.broken("who joins is not in the plan")
            plan.before = before
        before.largest = steps.largest_step(self._facts.max_tokens, self._facts.taken)
        return plan

    def _take(self, plan: _Plan, connection: Connection, payload: bytes) -> None:
        if connection is not (plan.control if self._stage.is_first else plan.before):
            raise connection.broken("a step from who is not to send any")
        try:
            plan.steps.put_nowait(payload)
        except queue.Full:
            raise connection.broken("more steps than can wait") from None

    # ---- steps ----

    def _work(self, plan: _Plan) -> None:
        try:
            while (payload := plan.steps.get()) is not None and not plan.over:
                with self._working:
                    self._run(plan, payload)
        finally:  # whatever has ended it: nobody is to wait for it
            plan.end()
            with self._working:
                plan.texts.clear()

    def _run(self, plan: _Plan, payload: bytes) -> None:
        number = 0
        try:
            step = steps.unpack_step(payload, self._facts.max_tokens, self._facts.taken)
            number = step.number
            rows = self._rows_of(plan, step)
            if plan.after is None:
                packed = steps.pack_result(number, rows)
            else:
                step.rows = rows if step.parts else None
                packed = steps.pack_step(step, plan.form)
        except Exception as error:  # whatever it is, the coordinator waits for an answer
            plan.fail(error, number)
            return
        try:
            if plan.after is None:
                plan.control.send(Kind.RESULT, plan.epoch, *packed)
            else:
                plan.after.send(Kind.STEP, plan.epoch, *packed)
        except ClusterError as error:
            plan.fail(error, number, lost=True)

    def _rows_of(self, plan: _Plan, step: Step) -> steps.Rows:
        texts = plan.texts
        for fork in step.forks:
            parent = texts.get(fork.parent)
            if fork.text not in texts and parent is not None:
                texts[fork.text] = parent.fork()
                texts[fork.text].truncate(min(fork.length, parent.length))
        for gone in step.gone:
            texts.pop(gone, None)
        if not step.parts:
            return np.empty((0, self._facts.width), np.float32)
        parts, ends = [], dict[int, int]()
        for part in step.parts:
            if part.text not in texts:
                if len(texts) >= _MOST_TEXTS:
                    raise OutOfMemoryError(f"{_MOST_TEXTS} texts are as many as a stage takes")
                texts[part.text] = self._stage.cache()
            cache = texts[part.text]
            held = ends.get(part.text, cache.length)
            if part.position > held or (part.text in ends and part.position < held):
                raise ClusterError(
                    f"text {part.text} has {held} tokens here, and is to go on at {part.position}"
                )
            if part.position < held and cache.truncate(part.position) != part.position:
                raise ClusterError(f"text {part.text} cannot go back to {part.position} tokens")
            ends[part.text] = part.position + len(part.tokens)
            if ends[part.text] > self._facts.context:
                raise ClusterError(f"text {part.text}: {ends[part.text]} tokens exceed the context")
            parts.append(Part(cache, part.tokens, part.outputs))
        return self._stage.run(parts, step.rows)
