"""From the messages of a chat to the token ids of its prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmrt.errors import ArgumentError
from mmrt.text import chat
from mmrt.text.tokenizer import Tokenizer


def rendered(
    tokenizer: Tokenizer,
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    path: str,
) -> chat.Prompt:
    """What the template makes of `messages`; path: the model's, for errors."""
    chat.require_text(messages)

    def text_of(token: int | None) -> str:
        return "" if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace")

    return chat.prompt(
        template,
        messages,
        bos_token=text_of(tokenizer.bos_id),
        eos_token=text_of(tokenizer.eos_id),
        source=path,
        tools=tools,
        variables=variables,
        steering=tokenizer.steering_characters,
        spelling=tokenizer.spelling_characters,
    )


def chat_ids(tokenizer: Tokenizer, prompt: chat.Prompt, path: str) -> list[int]:
    """Its token ids, with one beginning-of-text token at most."""
    if not prompt.text.strip():
        raise ArgumentError(f"{path}: the chat template gives no text for these messages")
    ids = tokenizer.encode(prompt.text, add_bos=False, guarded=prompt.guarded)
    bos = tokenizer.bos_id
    if tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
        ids.insert(0, bos)
    return ids
