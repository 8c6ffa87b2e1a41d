"""Stages on several machines as one model: who tells them what to do, and gets the logits."""

import json
import os
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as List
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mmrt import errors
from mmrt.cluster import facts as facts_of
from mmrt.cluster import steps, wire
from mmrt.cluster.facts import Facts, check_chain
from mmrt.cluster.hosts import places
from mmrt.cluster.stage import STEP_TOKENS
from mmrt.cluster.steps import Step, TextPart
from mmrt.cluster.texts import Text, TextStore, Told
from mmrt.cluster.wire import Frame, Kind
from mmrt.core.arguments import choice, instance, number
from mmrt.core.kernels import Pool
from mmrt.core.program import Part
from mmrt.errors import ArgumentError, ClusterError, MmrtError, UnsupportedError
from mmrt.files import formats
from mmrt.files.tensor_file import TensorFile
from mmrt.memory.budget import divide_step
from mmrt.memory.report import Memory
from mmrt.run.drafting import Drafts
from mmrt.run.pipelined import Pipelined
from mmrt.run.prefixes import Earlier
from mmrt.run.text_model import TextModel
from mmrt.text.tokenizer import require_pre

T = TypeVar("T")

# Seconds between looks at stages that have nothing to say, and to attempts to find lost ones again.
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 0.2

# Steps under way at once: the pieces of a prompt follow one another from stage to stage.
_MOST_UNDER_WAY = 16

# What a stage may say that a step has failed with.
_ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, MmrtError)
}


class _LostError(Exception):
    """A stage is not reached, or does not answer: it may come back."""


@dataclass(eq=False)
class _Sent:
    """A step that is under way. texts: with their lengths before it. awaited: somebody is to ask
    for its answer, and is told what it has failed with."""

    number: int
    epoch: int
    told: Told
    texts: dict[Text, int]
    awaited: bool
    given_up: bool = False  # its failure is of no interest any more
    answer: steps.Rows | Exception | None = None
    failure: Exception | None = None  # of one before it, which is its own too
    over: bool = False  # and so are those before it


class _Link:
    """A stage, and the thread that listens to it."""

    def __init__(self, place: str, secret: bytes, epoch: int) -> None:
        self.place = place
        self._epoch = epoch
        self.connection = wire.connect(wire.parse_address(place), secret)
        self.heard = time.monotonic()
        try:
            self.connection.send(Kind.ASK, epoch)
            frame = self.connection.receive(wire.FRAME_SECONDS)
            if frame is None or frame.kind != Kind.FACTS:
                raise self.connection.broken("it does not say what it is")
            self.facts = Facts.from_json(frame.payload)
        except BaseException:
            self.connection.close()
            raise

    def listen(self, inbox: "queue.SimpleQueue[tuple[_Link, Frame | ClusterError]]") -> None:
        def work() -> None:
            try:
                while (frame := self.connection.receive(None)) is not None:
                    self.heard = time.monotonic()
                    if frame.kind != Kind.PONG and frame.epoch == self._epoch:
                        inbox.put((self, frame))
            except ClusterError as error:
                inbox.put((self, error))

        threading.Thread(target=work, daemon=True).start()


def _without_spares(links: List[_Link]) -> list[_Link]:
    """In the order of their layers; of those with the same ones, the first that was named."""
    chosen: list[_Link] = []
    for link in sorted(links, key=lambda link: (link.facts.first, link.facts.end)):
        last = chosen[-1].facts if chosen else None
        if not last or (last.first, last.end) != (link.facts.first, link.facts.end):
            chosen.append(link)
    return chosen


class Cluster(TextModel):
    """The model whose stages listen at `hosts`; a context manager.

    hosts: addresses ("10.0.0.1:7600") in any order; or a file that has one at the beginning of each
    line, and comments after `#`; or a function that returns a list of them, and is asked again when
    a stage is lost. Together the stages have every layer of one model once. secret:
    theirs, 16 bytes or more. model: a GGUF file of that model, or of some of its layers, whose
    tokenizer is used; None: all that is read and written is token ids. chat_template, pre: as
    Model's.

    rows: what stages give each other, "f32", which keeps logits those of one machine to the bit, or
    "f16", half as long, and rounded. timeout: seconds after which a stage that does not answer
    counts as lost; patience: seconds for which texts wait until lost ones are back, before others
    take their layers over, if they can. What stages have forgotten is then read again. Whoever
    starts stages again is no part of this. A host with the layers of another one is a spare.

    Steps that no logits are wanted of, as those of a long prompt but for its last, follow one
    another without waiting, so that all stages work at once. Any number of threads may use it:
    their steps queue.

    Raises ClusterError for stages that are not reached or do not know the secret; ArgumentError for
    those that are no whole model; and for a step whatever a stage raises, with its address.
    """

    _engine = Pipelined

    def __init__(
        self,
        hosts: Iterable[str] | str | os.PathLike[str] | Callable[[], Iterable[str]],
        secret: bytes,
        *,
        model: str | os.PathLike[str] | None = None,
        rows: str = "f32",
        timeout: float = 30.0,
        patience: float = 60.0,
        chat_template: str | None = None,
        pre: str | None = None,
    ) -> None:
        self._form = choice("rows", rows, steps.FORMS)
        self._timeout = number("timeout", timeout, 0, 86400, above=True)
        self._patience = number("patience", patience, 0, 86400)
        if chat_template is not None:
            instance("chat_template", chat_template, str, "a str")
        self._chat_template, self._pre = chat_template, require_pre(pre)
        self._secret = wire.check_secret(secret)
        self._find = hosts if callable(hosts) else None
        self._replaced = False  # stages, by others that only we know of, and have not connected to
        self.hosts = places(hosts() if callable(hosts) else hosts)
        self._lock = threading.RLock()  # of all that follows: one step at a time
        self._store = TextStore()
        self._ledger = self._store.ledger
        self._links: list[_Link] = []  # in the order of their layers; empty: none is connected
        self._inbox: queue.SimpleQueue[tuple[_Link, Frame | ClusterError]] = queue.SimpleQueue()
        self._epoch = self._number = 0
        self._under_way: deque[_Sent] = deque()
        self.closed = False
        self.drafts = Drafts("off")
        self.saved = None
        self._pool = Pool(1)
        self._earlier = Earlier(self._store)
        self._file = None if model is None else formats.open(model)
        self.path = f"the cluster at {self.hosts[0]}" if self._file is None else self._file.path
        try:
            self._connect()
            if self._file is not None and facts_of.digest(self._file) != self._facts.model:
                raise ArgumentError(f"{self.hosts[0]}: has another model than {self._file.path}")
        except _LostError as lost:
            self.close()
            raise ClusterError(str(lost)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The stages are free for another coordinator."""
        self.closed = True
        self._disconnect()
        assert self._earlier is not None
        self._earlier.clear()
        if self._file is not None:
            self._file.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ArgumentError("the cluster is closed")

    def described(self) -> TensorFile:
        if self._file is None:
            raise ArgumentError("the cluster has no tokenizer: pass it `model`, or token ids")
        return self._file

    def __enter__(self) -> "Cluster":
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cluster of {len(self.hosts)} stages{', closed' * self.closed}>"

    # ---- the model ----

    @property
    def stages(self) -> list[tuple[str, range]]:
        """The address and the layers of each stage, in the order of the layers; those that were
        connected last."""
        return self._stages

    @property
    def vocab_size(self) -> int:
        """Logits a token."""
        return self._facts.width

    @property
    def pool(self) -> Pool:
        """A single thread: here tokens are drawn, and no more."""
        return self._pool

    @property
    def store(self) -> TextStore:
        """What its texts hold on the stages."""
        return self._store

    @property
    def spare_bytes(self) -> int:
        """Bytes of keys and values on all stages, as many tokens as the tightest has room for."""
        return self._spare

    @property
    def memory(self) -> Memory:
        """Of all stages: weights and scratch as when each began, keys and values now."""
        facts, sharing = [link.facts for link in self._links], self._store.sharing
        return Memory(
            weights=sum(each.weights for each in facts),
            kept=sum(each.kept for each in facts),
            kv=sharing.held,
            kv_logical=sharing.logical,
            kv_page=self._store.page_bytes,
            scratch=sum(each.scratch for each in facts),
        )

    @property
    def streaming(self) -> None:
        """What stages stream is theirs."""
        return None

    @property
    def depth(self) -> int:
        """Steps that keep all stages at work."""
        return len(self._stages)

    def step_tokens(self, wanted: int) -> int:
        """How many of `wanted` tokens the next step takes."""
        self._check_open()
        return divide_step(wanted, min(STEP_TOKENS, self._most_tokens))

    # ---- steps ----

    def run(self, parts: List[Part], logits: NDArray[np.float32] | None = None) -> None:
        """One step of the parts' sequences: see Program.run(). Where a stage is lost, waits until
        it is back, and tells so by a warning. A step that no logits are wanted of is not waited
        for: what it fails with, the next one of its texts raises."""
        with self._lock:
            if logits is not None:
                self._end(self._persist(partial(self._begin, parts, True)), parts, logits)
                return
            self._persist(partial(self._begin, parts, False))
            self._read(parts)

    def begin(self, parts: List[Part], logits: NDArray[np.float32]) -> Callable[[], None]:
        """Begins a step, beside those that are under way, of other texts. What is returned waits
        until it has ended, and raises what it has failed with."""
        with self._lock:
            sent = self._persist(partial(self._begin, parts, True))
            return partial(self._end, sent, parts, logits)

    def _persist(self, work: Callable[[], T]) -> T:
        until = None
        while True:
            self._check_open()
            try:
                self._connect()
                return work()
            except _LostError as lost:
                self._disconnect()
                self._check_open()  # it may be close() that has ended the connection
                now = time.monotonic()
                if until is None:
                    until = now + self._patience
                    warnings.warn(f"{lost}; texts wait for it", stacklevel=3)
                if now >= until:
                    taken = self._take_over()
                    if not taken:
                        raise ClusterError(str(lost)) from None
                    warnings.warn(f"{lost}; {taken}", stacklevel=3)
                    continue
                time.sleep(_RETRY_SECONDS)

    def _begin(self, parts: List[Part], awaited: bool) -> _Sent:
        while len(self._under_way) >= _MOST_UNDER_WAY:
            self._settle(self._under_way[0])
        before: dict[Text, int] = {}
        ends: dict[Text, int] = {}
        told = []
        for part in parts:
            text = part.cache
            assert isinstance(text, Text)
            if part.exact:
                raise UnsupportedError("steps of a cluster cannot be exact one by one")
            if text not in before:
                self._require_sound(text)
                self._read_again(text)
                before[text] = ends[text] = text.length
            told.append(TextPart(text.number, ends[text], part.tokens, part.outputs))
            ends[text] += len(part.tokens)
        sent = self._send(told, before, awaited)
        for text, end in ends.items():
            text.reserve(end)
        return sent

    def _end(self, sent: _Sent, parts: List[Part], logits: NDArray[np.float32]) -> None:
        with self._lock:
            answer = self._persist(partial(self._answer_to, sent, parts, logits.shape))
            if isinstance(answer, Exception):  # a new one: its frames would keep the texts
                raise type(answer)(*answer.args)
            logits[:] = answer
            self._read(parts)

    def _answer_to(
        self, sent: _Sent, parts: List[Part], shape: tuple[int, ...]
    ) -> steps.Rows | Exception:
        if not sent.over and (sent.epoch != self._epoch or not self._links):
            sent = self._begin(parts, True)  # it went with a plan that is over
        try:
            self._settle(sent)
        except BaseException:
            sent.given_up = True  # its texts are as they were before
            raise
        answer = sent.failure or sent.answer
        assert answer is not None
        if not isinstance(answer, Exception) and answer.shape != shape:
            raise _LostError(f"logits of shape {answer.shape}, not {shape}")
        return answer

    @staticmethod
    def _read(parts: List[Part]) -> None:
        for part in parts:
            assert isinstance(part.cache, Text)
            part.cache.read(part.tokens.tolist())

    @staticmethod
    def _require_sound(text: Text) -> None:
        """Raises what a step of the text has failed with while nobody waited for it."""
        failure, text.failure = text.failure, None
        if failure is not None:
            raise type(failure)(*failure.args)

    def _read_again(self, text: Text) -> None:
        """What stages have forgotten of a text."""
        if text.number in self._ledger.known:
            return
        done = 0
        while done < text.length:
            tokens = np.array(text.tokens[done:][: self.step_tokens(text.length - done)], np.int32)
            # Known only with the last of them: else the others would be taken for read.
            sent = self._send([TextPart(text.number, done, tokens, 0)], {}, True, known=False)
            self._settle(sent)
            if isinstance(sent.answer, Exception):
                raise type(sent.answer)(*sent.answer.args)
            done += len(tokens)
        self._ledger.known.add(text.number)

    def _send(
        self, parts: List[TextPart], before: dict[Text, int], awaited: bool, known: bool = True
    ) -> _Sent:
        """Begins a step. known: the stages then have these texts."""
        try:
            told = self._ledger.take(steps.MOST_COMMANDS)
            self._number += 1
            sent = _Sent(self._number, self._epoch, told, before, awaited)
            self._under_way.append(sent)
            packed = steps.pack_step(Step(self._number, *told, parts), self._form)
            self._links[0].connection.send(Kind.STEP, self._epoch, *packed)
            if known:
                self._ledger.known.update(part.text for part in parts)
            return sent
        except ClusterError as error:
            raise _LostError(str(error)) from None
        except BaseException:  # the stages may have half of it: they begin anew
            self._disconnect()
            raise

    def _settle(self, sent: _Sent) -> None:
        """Waits until it is over, and in turn those before it."""
        while not sent.over:
            front = self._under_way[0]
            if front.answer is None:
                self._note(*self._next(time.monotonic()))
                continue
            if isinstance(front.answer, Exception):
                self._take_back(front, front.answer)
            front.over = True  # in this order, as an interrupt may come between
            self._under_way.popleft()

    def _note(self, link: _Link, frame: Frame) -> None:
        """What has become of a step; those of several stages come in any order."""
        answer: steps.Rows | Exception
        if frame.kind == Kind.FAILED:
            number, answer = self._failure(link, frame)
        elif frame.kind == Kind.RESULT and link is self._links[-1]:
            try:
                number, answer = steps.unpack_result(
                    frame.payload, self._most_tokens, self.vocab_size
                )
            except ClusterError as error:
                raise _LostError(f"{link.place}: {error}") from None
        else:
            raise _LostError(f"{link.place}: a frame {frame.kind.name} out of turn")
        sent = next((sent for sent in self._under_way if sent.number == number), None)
        if sent is None or sent.answer is not None:
            raise _LostError(f"{link.place}: an answer to no step: {answer!s:.200}")
        sent.answer = answer

    def _take_back(self, sent: _Sent, failure: Exception) -> None:
        """The oldest step has failed, and with it those that go on where it has not been. Who
        waits for one of them is told; else its texts are to tell."""
        self._ledger.restore(sent.told)
        # A later step may have told stages that a fork's parent is gone before they heard of it.
        forks = {fork.text for fork in sent.told.forks}
        self._ledger.known.difference_update(forks)
        if sent.given_up:
            return
        is_told, lengths = sent.awaited, dict(sent.texts)
        for later in list(self._under_way)[1:]:
            if any(text in lengths or text.number in forks for text in later.texts):
                later.given_up = True
                later.failure = failure
                is_told = is_told or later.awaited
                lengths = later.texts | lengths
        for text, length in lengths.items():
            text.truncate(min(length, text.length))
            text.failure = None if is_told else failure

    def _next(self, begun: float) -> tuple[_Link, Frame]:
        """What comes next of any stage. _LostError if one is gone, or has said nothing for too
        long, of the time since `begun`."""
        while True:
            try:
                link, frame = self._inbox.get(timeout=min(_LOOK_SECONDS, self._timeout / 3))
            except queue.Empty:
                for link in self._links:
                    if time.monotonic() - max(link.heard, begun) > self._timeout:
                        lost = f"{link.place}: no answer for {self._timeout:g} s"
                        raise _LostError(lost) from None
                    try:
                        link.connection.send(Kind.PING, self._epoch)
                    except ClusterError as error:
                        raise _LostError(str(error)) from None
                continue
            if isinstance(frame, ClusterError):
                raise _LostError(str(frame))
            return link, frame

    @staticmethod
    def _failure(link: _Link, frame: Frame) -> tuple[int, Exception]:
        try:
            told = json.loads(frame.payload)
            number, kind = int(told["step"]), _ERRORS[told["kind"]]
            message, lost = f"{link.place}: {told['message']}", told["lost"] is True
        except (ValueError, TypeError, LookupError, RecursionError):
            raise _LostError(f"{link.place}: it does not say what has failed") from None
        if lost:
            raise _LostError(message)
        return number, kind(message)

    # ---- connections ----

    def _connect(self) -> None:
        """To all stages, unless they are connected. _LostError for one that is not reached."""
        if self._links:
            return
        epoch = max(time.time_ns(), self._epoch + 1)
        links: list[_Link] = []
        try:
            if self._find is not None and self._epoch and not self._replaced:
                self.hosts = places(self._find())
            for place in self.hosts:
                links.append(_Link(place, self._secret, epoch))
            links, all_links = _without_spares(links), links
            for link in all_links:
                if link not in links:
                    link.connection.close()
            self._check(links)
            for i in reversed(range(len(links))):
                after = links[i + 1].place if i + 1 < len(links) else None
                plan = json.dumps({"form": self._form, "next": after}).encode()
                links[i].connection.send(Kind.PLAN, epoch, plan)
                frame = links[i].connection.receive(wire.FRAME_SECONDS)
                if frame is not None and frame.kind == Kind.FAILED:
                    raise self._failure(links[i], frame)[1]
                if frame is None or frame.kind != Kind.PLANNED:
                    raise links[i].connection.broken("it does not take the plan")
        except ClusterError as error:
            for link in links:
                link.connection.close()
            raise _LostError(str(error)) from None
        except BaseException:
            for link in links:
                link.connection.close()
            raise
        self._links, self._epoch, self._inbox = links, epoch, queue.SimpleQueue()
        self._replaced = False
        self._under_way.clear()
        self._store.begin_anew(sum(link.facts.page_bytes for link in links))
        most = steps.largest_result(self._most_tokens, self.vocab_size)
        links[-1].connection.largest = most
        for link in links:
            link.listen(self._inbox)

    def _take_over(self) -> str:
        """Has stages that are there take the layers of those that are not, for good; what it says
        is who does. Empty, if all are there, or nobody can."""
        epoch, links = max(time.time_ns(), self._epoch + 1), []
        for place in self.hosts:
            with suppress(ClusterError):
                links.append(_Link(place, self._secret, epoch))
        try:
            if len(links) in (0, len(self.hosts)):
                return ""
            chain, at, told, hosts = _without_spares(links), 0, [], [link.place for link in links]
            for first in [*(link.facts.first for link in chain), links[0].facts.n_layers]:
                if first > at:
                    hosts.append(self._taken(links, at, first, epoch))
                    told.append(f"layers {at}:{first} are at {hosts[-1]} now")
                at = next((link.facts.end for link in chain if link.facts.first == first), first)
            self.hosts, self._replaced = hosts, True
            return ", ".join(told) or "a spare takes its place"
        except _LostError:
            return ""
        finally:
            for link in links:
                link.connection.close()

    @staticmethod
    def _taken(links: List[_Link], first: int, end: int, epoch: int) -> str:
        """The address of layers that the stage with most room has begun beside its own. _LostError
        if none can."""
        for link in sorted(links, key=lambda link: link.facts.spare, reverse=True):
            with suppress(ClusterError, ValueError):
                link.connection.send(Kind.TAKE, epoch, json.dumps([first, end]).encode())
                frame = link.connection.receive(wire.FRAME_SECONDS)
                if frame is not None and frame.kind == Kind.TAKEN:
                    return f"{link.place.rpartition(':')[0]}:{int(frame.payload)}"
        raise _LostError(f"layers {first}:{end} are on none of the stages")

    def _check(self, links: List[_Link]) -> None:
        check_chain([(link.place, link.facts) for link in links])
        self._stages = [(link.place, range(link.facts.first, link.facts.end)) for link in links]
        self._facts = links[-1].facts
        self.context = min(link.facts.context for link in links)
        self._most_tokens = min(link.facts.max_tokens for link in links)
        pages = min(link.facts.spare // max(link.facts.page_bytes, 1) for link in links)
        self._spare = pages * sum(link.facts.page_bytes for link in links)

    def _disconnect(self) -> None:
        for link in self._links:
            link.connection.close()
        self._links = []
