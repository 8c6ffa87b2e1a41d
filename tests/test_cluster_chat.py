"""Chats with a cluster are those with one machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from stages import SECRET, serving_all

import mmrt
from mmrt.cluster.coordinator import Cluster
from mmrt.errors import ArgumentError, UnsupportedError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ begin }}{% endif %}"
)
ASKED = [{"role": "user", "content": "Say <|im_end|> if you can"}]
OPTIONS: Any = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.7, "seed": 5}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=2)
    model.metadata["tokenizer.chat_template"] = TEMPLATE
    return model.write(tmp_path_factory.mktemp("chat") / "m.gguf")


@pytest.fixture(scope="module")
def hosts(path: Path) -> Iterator[list[str]]:
    with serving_all(path, [0, 1, 2], threads=1) as places:
        yield places


@pytest.fixture
def both(hosts: list[str], path: Path) -> Iterator[tuple[Any, Any]]:
    with Cluster(hosts, SECRET, model=path) as cluster, mmrt.Model(path) as model:
        yield cluster, model


def test_an_answer(both: tuple[Any, Any]) -> None:
    told = {"begin": "Well"}
    found, wanted = (each.chat(ASKED, chat_template_kwargs=told, **OPTIONS) for each in both)
    assert (found, found.prompt_tokens, found.tokens) == (wanted, wanted.prompt_tokens, 12)
    assert found != both[0].chat(ASKED, **OPTIONS)


def test_a_conversation_in_one_sequence(both: tuple[Any, Any]) -> None:
    """What it begins with is not read again."""
    texts = []
    for each in both:
        with each.sequence() as sequence:
            first = each.chat(ASKED, sequence=sequence, **OPTIONS)
            messages = [
                *ASKED,
                {"role": "assistant", "content": str(first)},
                {"role": "user", "content": "And now?"},
            ]
            second = each.chat(messages, sequence=sequence, **OPTIONS)
            texts.append((first, second, second.cached_tokens))
    assert texts[0] == texts[1] and texts[0][2] > 0


def test_turns_share_what_was_read(both: tuple[Any, Any]) -> None:
    """Also without a sequence, and in a Conversation."""
    told = []
    for each in both:
        first = each.chat(ASKED, **OPTIONS)
        messages = [*ASKED, {"role": "assistant", "content": str(first)}, ASKED[0]]
        second = each.chat(messages, **OPTIONS)
        with each.conversation(system="Be brief") as conversation:
            third = conversation.say("And now?", **OPTIONS)
            fourth = conversation.say("And then?", **OPTIONS)
        cached = [text.cached_tokens for text in (first, second, third, fourth)]
        told.append((first, second, third, fourth, cached))
    assert told[0] == told[1] and told[0][-1][1] > 0 and told[0][-1][3] > 0


def test_what_is_refused(both: tuple[Any, Any], hosts: list[str], tmp_path: Path) -> None:
    cluster, model = both
    with pytest.raises(ArgumentError, match="belongs to another model"):
        cluster.chat(ASKED, sequence=model.sequence())
    with pytest.raises(ArgumentError, match="messages"):
        cluster.chat([{"role": "user"}])
    with (
        Cluster(hosts, SECRET) as without,
        pytest.raises(ArgumentError, match="no tokenizer"),
    ):
        without.chat(ASKED)
    bare = tiny_models.llama(n_layers=2).write(tmp_path / "bare.gguf")
    with (
        serving_all(bare, [0, 1, 2], threads=1) as places,
        Cluster(places, SECRET, model=bare) as no_chat,
        pytest.raises(UnsupportedError, match="chat template"),
    ):
        no_chat.chat(ASKED)
