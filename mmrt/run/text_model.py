"""What writes texts, wherever its steps run: on this machine, or on several."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrt.core.arguments import flag, instance, require_ids, token_ids
from mmrt.core.kernels import Pool
from mmrt.core.program import Part
from mmrt.core.state import StateStore
from mmrt.core.streaming import Streaming
from mmrt.errors import ArgumentError
from mmrt.files.tensor_file import TensorFile
from mmrt.memory.report import Memory
from mmrt.run.building import build_tokenizer
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
)
from mmrt.run.prefixes import Earlier
from mmrt.run.rendering import chat_ids, rendered
from mmrt.run.rounds import Rounds
from mmrt.run.saved import Saved
from mmrt.run.sequence import Sequence, closing
from mmrt.text import chat
from mmrt.text.channels import Channels
from mmrt.text.tokenizer import Tokenizer
from mmrt.text.toolcalls import ToolParser, parser_for

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Of the memory that is free, what keys and values of earlier conversations may take: 1 / _KEPT.
_KEPT = 4


class TextModel(ABC):
    """What a Model and a Cluster have in common: prompts in, texts out. They say what a step is,
    and where keys and values are.

    path: by which messages name it. context: the most tokens of a sequence. saved: keys and values
    in files.
    """

    path: str
    context: int
    closed: bool
    exact: bool = False  # whether logits depend, to the bit, on the tokens before them alone
    drafts: Drafts
    saved: Saved | None
    _chat_template: str | None = None  # instead of the file's
    _pre: str | None = None  # how texts are cut into words, likewise
    _tokenizer: Tokenizer | None = None
    _engine: Callable[..., Engine] = Engine
    _earlier: Earlier | None = None  # keys and values that conversations have left

    @abstractmethod
    def close(self) -> None:
        """Gives back what it holds."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raises ArgumentError if it is closed."""

    @abstractmethod
    def described(self) -> TensorFile:
        """The file whose metadata tell the tokenizer and the chat template. Raises ArgumentError
        where there is none."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Logits a token."""

    @property
    @abstractmethod
    def pool(self) -> Pool:
        """The threads that draw tokens."""

    @property
    @abstractmethod
    def store(self) -> StateStore:
        """The memory of its texts."""

    @property
    @abstractmethod
    def spare_bytes(self) -> int:
        """Bytes of keys and values that there is room for."""

    @property
    @abstractmethod
    def memory(self) -> Memory:
        """What it holds now."""

    @property
    @abstractmethod
    def streaming(self) -> Streaming | None:
        """What streaming is set to and has done; None while all weights may stay in memory."""

    @abstractmethod
    def step_tokens(self, wanted: int) -> int:
        """How many of `wanted` tokens the next step takes."""

    @abstractmethod
    def run(self, parts: List[Part], logits: NDArray[np.float32] | None = None) -> None:
        """One step of the parts' sequences: see Program.run()."""

    # ---- tokens ----

    @property
    def tokenizer(self) -> Tokenizer:
        """Built from the file's metadata when first asked for."""
        self._check_open()
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self.described(), self.vocab_size, self._pre)
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
        return Sequence(self, self.store.cache(), goes_back=True)

    def require_room(self, tokens: int) -> None:
        """Raises ArgumentError if a sequence cannot have so many tokens, or the model is closed."""
        self._check_open()
        if tokens > self.context:
            raise ArgumentError(f"{tokens} tokens are more than the context of {self.context}")

    # ---- text ----

    def logits(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Logits after each of `ids`, read as one text: float32 (len(ids), vocabulary)."""
        with Sequence(self, self.store.cache()) as sequence:
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
        self._check_open()
        new = Sequence(self, self.store.cache(), goes_back=self.saved is not None)
        text = new if sequence is None else sequence
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
        which is worth most where weights are streamed from the disk; what prompts begin with alike
        is read once.

        With exact=True the texts are those that generate() writes. Otherwise logits are rounded
        otherwise than in steps of one token, and a text may go on differently: of 64 prompts, 31
        did within 20 tokens."""
        settings = Settings(**options)
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
            raise ArgumentError(f"prompts: expected a list of them, found {prompts!r:.60}")
        texts = [self._ids(prompt, parse_special) for prompt in prompts]
        for ids in texts:
            self.require_room(len(ids))
        with Rounds(self) as engine:
            handles = [engine.begin(ids, settings) for ids in texts]
            return [handle.text() for handle in handles]

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
        return self._engine(self, max_gap=max_gap, kv=kv, keep=keep, waiting=waiting, sight=sight)

    def prompt_ids(self, prompt: str | Iterable[int], parse_special: bool) -> list[int]:
        """The token ids of a prompt that begins a text, as stream() has them."""
        return self._ids(prompt, parse_special)

    def forget_earlier(self) -> bool:
        """Gives back what conversations have left in memory; whether there was something."""
        held = self.store.nbytes
        if self._earlier is not None:
            self._earlier.clear()
        return self.store.nbytes < held

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
            require_ids(ids, self.vocab_size)
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
        metadata = self.described().metadata
        return chat.choose_template(
            metadata, self.path, given=self._chat_template, with_tools=with_tools
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
        text = Sequence(self, cache, goes_back=True)
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
