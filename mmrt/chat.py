"""From a conversation to a prompt, by the Jinja template that a model file carries.

Templates come from strangers: they run in jinja2's immutable sandbox, where they can read the
messages and make text, and nothing else. (They can still loop for a long time.)
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from mmrt.errors import ArgumentError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render"]


def render(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    source: str,
) -> str:
    """The prompt that `template` (tokenizer.chat_template) makes of `messages`.

    Each message has a `role` and a `content`, both strings; what else it has is passed on. The
    prompt spells its special tokens out, often the BOS token too: encode it with
    `parse_special=True`, and without a second BOS. With `add_generation_prompt` it ends where the
    answer begins. `source` names the file in error messages.

    Raises UnsupportedError when the model has no template: it was not trained to converse, and a
    made-up format would only hide that. Raises ArgumentError when the messages are malformed or
    the template refuses them, FormatError when the template itself is broken.
    """
    _check_messages(messages)
    if template is None:
        raise UnsupportedError(
            f"{source}: the model has no chat template (tokenizer.chat_template); it is probably "
            "a base model, which continues a text and does not converse: give it a plain prompt"
        )
    from jinja2.exceptions import SecurityError, TemplateSyntaxError

    try:
        return _compiled(template).render(
            messages=messages,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
        )
    except _Refusal as refusal:
        raise ArgumentError(f"{source}: the chat template refuses: {refusal}") from None
    except TemplateSyntaxError as error:
        raise FormatError(
            f"{source}: tokenizer.chat_template, line {error.lineno}: {error.message}"
        ) from error
    except SecurityError as error:
        raise FormatError(
            f"{source}: tokenizer.chat_template tries what a template may not: {error}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a template can raise whatever its expressions can
        raise FormatError(
            f"{source}: tokenizer.chat_template failed: {type(error).__name__}: {error}"
        ) from error


class _Refusal(Exception):
    """Raised by a template through its function raise_exception."""


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ArgumentError(f"messages: expected a list of messages, found {messages!r:.60}")
    if not messages:
        raise ArgumentError("messages: the list is empty")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ArgumentError(f"messages[{index}]: expected a dict, found {message!r:.60}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ArgumentError(
                    f"messages[{index}]: {key!r} must be a string, found {message.get(key)!r:.60}"
                )


@lru_cache(maxsize=4)
def _compiled(template: str) -> "Template":
    """`template` in the surroundings that Hugging Face's transformers made customary."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _refuse(reason: str) -> NoReturn:
    raise _Refusal(reason)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML, which a model was not trained on."""
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)
