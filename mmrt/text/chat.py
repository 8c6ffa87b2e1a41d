"""From a conversation to a prompt, by the Jinja template that a model file carries.

Templates come from strangers: they run in a sandbox (sandbox.py), where they can read the messages
and make text, within limits, and nothing else. What the messages say comes from others again, and
stays plain text (standins.py).
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from mmrt.core.arguments import flag, instance
from mmrt.errors import ArgumentError, FormatError, UnsupportedError
from mmrt.text.allowance import Allowance, LimitError
from mmrt.text.channels import Channels, channels
from mmrt.text.grammar import Grammar
from mmrt.text.standins import StandIns
from mmrt.text.tokenizer import require_utf8
from mmrt.text.toolcalls import ToolParser, call_grammar, held_grammar, parser_for

__all__ = [
    "ChatPrompt",
    "Prompt",
    "choose_template",
    "prompt",
    "require_text",
    "require_variables",
    "template_names",
]

_FIELD = "tokenizer.chat_template"

# What a rendering may take, and how much more for each value and byte that it is given.
_STEPS, _STEPS_A_VALUE = 400_000, 500
_BYTES, _BYTES_A_BYTE, _MOST_BYTES = 64 << 20, 32, 1 << 30

_OURS = {"messages", "tools", "bos_token", "eos_token", "self"}
_DEEPEST_MESSAGE = 64
_LONGEST_REASON = 300
_SEEN_OR_HEARD = re.compile("image|audio|video")
_PROBE = "Is anybody there?"
_NO_STAND_INS = StandIns((), ())


_DEFAULT, _TOOL_USE = "default", "tool_use"


def template_names(metadata: Mapping[str, Any]) -> list[str]:
    """The names of the chat templates in a file's metadata; "default" is the one without a name."""
    found = {key.removeprefix(f"{_FIELD}.") for key in metadata if key.startswith(f"{_FIELD}.")}
    return sorted(found | {_DEFAULT}) if _FIELD in metadata else sorted(found)


def choose_template(
    metadata: Mapping[str, Any], source: str, *, given: str | None = None, with_tools: bool
) -> str | None:
    """The chat template to follow: `given`, if that is Jinja, or the one in the file's metadata of
    this name; else, with tools, the one that is made for them if there is one, or the default. None
    if there is none. Raises ArgumentError for a name that no template has, FormatError for a
    template that is no text."""
    if given is not None and "{" in given:
        return given
    if given is not None:
        names = template_names(metadata)
        if given not in names:
            there = f"has {', '.join(names)}" if names else "has none"
            raise ArgumentError(
                f"{source}: no chat template is called {given!r:.60}: the file {there}"
            )
        order = [given]
    else:
        order = [_TOOL_USE, _DEFAULT] if with_tools else [_DEFAULT, _TOOL_USE]
    for field in (field for name in order for field in _fields_of(name)):
        template = metadata.get(field)
        if template is not None:
            if not isinstance(template, str):
                raise FormatError(f"{source}: {field}: expected text, found {template!r:.60}")
            return template
    return None


def _fields_of(name: str) -> list[str]:
    """Where a file may have the template of this name."""
    named = f"{_FIELD}.{name}"
    return [_FIELD, named] if name == _DEFAULT else [named]


def require_text(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises UnsupportedError for messages with pictures or sounds: a template may put tokens in
    their place, but nothing here would see them. ArgumentError for what are no messages."""
    for index, message in enumerate(_messages(messages)):
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str) and _SEEN_OR_HEARD.search(kind):
                raise UnsupportedError(f"messages[{index}]: a part of type {kind!r:.40}, not text")


def require_variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """`variables`, for templates to read. Raises ArgumentError for names that are mmrt's to set."""
    if variables is None:
        return {}
    instance("chat_template_kwargs", variables, Mapping, "a dict of variables")
    for name in variables:
        if not isinstance(name, str) or name in _OURS:
            raise ArgumentError(f"{name!r:.60} is no variable that a chat template can be given")
    if "add_generation_prompt" in variables:
        flag("add_generation_prompt", variables["add_generation_prompt"])
    return dict(variables)


class Prompt(NamedTuple):
    """What a template makes of a conversation.

    text: the prompt. guarded: the same, as long, with stand-ins for characters that come from
    messages and tools, so that the control tokens in it are the template's own.
    """

    text: str
    guarded: str


class ChatPrompt(NamedTuple):
    """A prompt that a chat template made. text: with stand-ins for what is not the template's own.
    template: the one that made it. tools: that it names."""

    ids: list[int]
    template: str | None
    text: str
    tools: Sequence[Mapping[str, Any]] | None

    def parser(self) -> ToolParser | None:
        """A parser of the calls of tools in one text that follows; None: there are none."""
        return parser_for(self.template, self.tools) if self.tools else None

    def call(self, name: str | None = None) -> Grammar:
        """The grammar of a call of the tool `name`, or of any: see toolcalls.call_grammar()."""
        return call_grammar(self.template, self.tools or (), name)

    def calls(self) -> Grammar:
        """Any text whose calls are held to the tools: see toolcalls.held_grammar()."""
        return held_grammar(self.template, self.tools or ())

    def channels(self) -> Channels:
        """What tells reasoning from the answer in one text that follows."""
        parser = self.parser()
        return channels(self.template, self.text, parser.marks if parser else frozenset())


def render(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    source: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The text of prompt(): what `template` makes of `messages`, as it is."""
    names = {"bos_token": bos_token, "eos_token": eos_token, "source": source}
    return prompt(template, messages, **names, tools=tools, variables=variables).text


def prompt(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    source: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    steering: Iterable[str] = (),
    spelling: Iterable[str] = (),
) -> Prompt:
    """The prompt that `template` (tokenizer.chat_template) makes of `messages`.

    Each message has a `role`, a string, and a `content`: a string, a list of parts such as
    {"type": "text", "text": "Hello"}, or None where an assistant said nothing (beside `tool_calls`
    it may be missing); what else it has is passed on. So are `tools`, descriptions of functions
    that the model may call, and `variables`, which templates read by their names (enable_thinking,
    documents). Parts are joined, and text made a part, for templates that know one of both only.

    The prompt spells its special tokens out, often the BOS token too: it is to be encoded without
    a second BOS. It ends where the answer begins, unless the variable add_generation_prompt is
    False. `steering` and `spelling`: the characters to be guarded, those of Tokenizer. `source`
    names the file in errors.

    Raises UnsupportedError when the model has no template: it was not trained to converse, and a
    made-up format would only hide that. Raises ArgumentError when the messages are malformed or
    the template refuses them, FormatError when the template itself is broken, or takes more steps,
    memory or depth than a conversation needs.
    """
    defaults = {"documents": None, "add_generation_prompt": True}
    given = defaults | require_variables(variables) | {"messages": _messages(messages)}
    given = {name: _plain(value, name) for name, value in {**given, "tools": _tools(tools)}.items()}
    if template is None:
        raise UnsupportedError(
            f"{source}: the model has no chat template ({_FIELD}); it is probably "
            "a base model, which continues a text and does not converse: give it a plain prompt"
        )
    given["messages"] = _shaped(template, given["messages"])
    texts = [template, *_strings(given)]
    ours = {"bos_token": bos_token, "eos_token": eos_token}
    few = StandIns(steering, texts)
    guarded = _rendered(template, _marked(given, few) | ours, few, source)
    text = few.plain(guarded)
    # Few stand-ins leave all as it is that templates do to texts. With many, some sort otherwise.
    every = StandIns(steering, texts, spelling)
    with suppress(ArgumentError, FormatError):
        closer = _rendered(template, _marked(given, every) | ours, every, source)
        if every.plain(closer) == text:
            guarded = closer
    return Prompt(text, guarded)


def _marked(given: dict[str, Any], marks: StandIns) -> dict[str, Any]:
    marked: dict[str, Any] = marks.mark_tree(given)
    for message, original in zip(marked["messages"], given["messages"], strict=True):
        message["role"] = marks.mark_name(original["role"])
    return marked


def _allowance(given: Mapping[str, Any]) -> Allowance:
    size = Allowance(sys.maxsize, sys.maxsize).measure(given)
    # A template may write the whole prompt anew with each message.
    by_byte = _BYTES_A_BYTE + len(given["messages"])
    return Allowance(
        _STEPS + _STEPS_A_VALUE * size.nodes, min(_BYTES + by_byte * size.bytes, _MOST_BYTES)
    )


def _rendered(
    template: str,
    given: Mapping[str, Any],
    stand_ins: StandIns,
    source: str,
    allowance: Allowance | None = None,
) -> str:
    """What `template` makes of the variables `given`; errors as prompt()'s."""
    from jinja2.exceptions import SecurityError, TemplateSyntaxError

    from mmrt.text.sandbox import Refusal, Sandbox

    field = f"{source}: the chat template"

    def said(error: object) -> str:
        return _brief(stand_ins.plain(str(error)))

    try:
        sandbox = Sandbox(allowance or _allowance(given), stand_ins)
        return sandbox.render(_compiled(template), given)
    except Refusal as refusal:
        raise ArgumentError(f"{source}: the chat template refuses: {said(refusal)}") from None
    except TemplateSyntaxError as error:
        raise FormatError(f"{field}, line {error.lineno}: {said(error.message)}") from None
    except SecurityError as error:
        raise FormatError(f"{field} tries what a template may not: {said(error)}") from None
    except LimitError as error:
        raise FormatError(f"{field} goes too far: {error}") from None
    except RecursionError:
        raise FormatError(f"{field} goes too far: it nests deeper than the limit") from None
    except MemoryError:
        raise
    except Exception as error:  # a template can raise whatever its expressions can
        for index, message in enumerate(given["messages"]):
            if message.get("content", "") is None:
                raise ArgumentError(
                    f"messages[{index}]: 'content' is None, which the chat template of {source} "
                    f"does not take: {said(error)}"
                ) from None
        raise FormatError(f"{field} failed: {type(error).__name__}: {said(error)}") from None


def _brief(error: object) -> str:
    """What a template says, on one line, and with nothing in it that steers a terminal."""
    text = " ".join(str(error).split())
    short = text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


@lru_cache(maxsize=4)
def _compiled(template: str) -> CodeType:
    from mmrt.text.sandbox import Sandbox

    try:
        sandbox = Sandbox(Allowance(_STEPS, _BYTES), _NO_STAND_INS)
        return sandbox.compile(template)
    except (MemoryError, SyntaxError) as error:  # of Python's own parser, for what jinja2 makes
        why = _brief(error) or "Python cannot compile it"
        raise LimitError(f"it nests deeper than the limit ({why})") from None


# ---- messages ----


def _strings(value: Any) -> Iterator[str]:
    """All strings in `value`, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.items():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _messages(messages: Any) -> Any:
    """`messages`, if they are well formed; else raises ArgumentError."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ArgumentError(f"messages: expected a list of messages, found {messages!r:.60}")
    if not messages:
        raise ArgumentError("messages: the list is empty")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise ArgumentError(f"{where}: expected a dict, found {message!r:.60}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise ArgumentError(f"{where}: 'role' must be a string, found {role!r:.60}")
        may_lack = "tool_calls" in message or (role == "assistant" and "content" in message)
        if content is None and may_lack:
            continue
        if isinstance(content, list | tuple):
            for place, part in enumerate(content):
                _check_part(part, f"{where}: 'content', part {place},")
        elif not isinstance(content, str):
            raise ArgumentError(
                f"{where}: 'content' must be a string or a list of parts, found {content!r:.60}"
            )
    return messages


def _tools(tools: Any) -> Any:
    """`tools`, if they can be descriptions of functions; else raises ArgumentError."""
    if tools is None:
        return None
    for index, tool in enumerate(instance("tools", tools, (list, tuple), "a list of dicts")):
        instance(f"tools[{index}]", tool, Mapping, "a dict")
    return tools


def _check_part(part: Any, where: str) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise ArgumentError(f"{where} must be a dict with a 'type', found {part!r:.60}")
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ArgumentError(f"{where} must have a 'text', found {part!r:.60}")


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of `value` in plain dicts, lists and strings, which a template can do no harm to."""
    if depth > _DEEPEST_MESSAGE:
        raise ArgumentError(f"{where}: nested deeper than {_DEEPEST_MESSAGE}")
    if isinstance(value, str):
        require_utf8(value, where)
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            _plain(key, where, depth + 1): _plain(item, f"{where}[{key!r:.40}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ArgumentError(
        f"{where}: expected text, numbers, lists and dicts, found {type(value).__name__}"
    )


def _shaped(template: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`messages` with contents in the shape that `template` reads, where it reads only one."""
    as_text, as_parts = _reads(template)
    if as_text == as_parts:
        return messages
    shape = _as_text if as_text else _as_parts
    return [
        {**message, "content": shape(message["content"])} if "content" in message else message
        for message in messages
    ]


def _as_text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, str) and part["type"] != "text":
            raise UnsupportedError(f"the chat template takes text only, not a {part['type']!r:.40}")
    return "\n".join(part if isinstance(part, str) else part["text"] for part in content)


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@lru_cache(maxsize=16)
def _reads(template: str) -> tuple[bool, bool]:
    """Whether a prompt shows content that is text, and content in parts: it is tried."""

    def shows(content: Any) -> bool:
        given = {
            "messages": [{"role": "user", "content": content}],
            "tools": None,
            "documents": None,
            "bos_token": "",
            "eos_token": "",
            "add_generation_prompt": True,
        }
        allowance = Allowance(_STEPS // 10, _BYTES // 10)
        try:
            prompt = _rendered(template, given, _NO_STAND_INS, "", allowance)
        except (FormatError, ArgumentError):
            return False
        return _PROBE in prompt and not re.search(r"""['"]text['"]""", prompt)

    return shows(_PROBE), shows([{"type": "text", "text": _PROBE}])
