"""Reasoning and answers, told apart in what chat models write."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from command import await_text, call, start
from tiny_models import speaker
from vocabularies import CONTROL

import mmrt
from mmrt.text.channels import Channels, Run, channels

THINK = "{{ messages[0].content }}{% if no %}<think>\n\n</think>\n\n{% endif %}"
HARMONY = "{# <|channel|><|message|> #}{{ messages[0].content }}<|start|>assistant"


def joined(runs: list[Run]) -> list[Run]:
    """Neighbours of one channel as one, and nothing that is empty or not shown."""
    out: list[Run] = []
    for text, where in runs:
        if not text or where is None:
            continue
        if out and out[-1][1] == where:
            text = (out.pop()[0] or "") + text
        out.append((text, where))
    return out


def sort(parts: Channels, text: str, pieces: int) -> list[Run]:
    """What becomes of `text`, cut at so many random places; <|...|> are control tokens."""
    runs: list[Run] = []
    for stretch in re.split(r"(<\|\w+\|>)", text):
        if stretch.startswith("<|"):
            runs += parts.feed("", stretch)
            continue
        cuts = sorted(random.Random(pieces).choices(range(len(stretch) + 1), k=pieces))
        for first, end in zip([0, *cuts], [*cuts, len(stretch)], strict=True):
            runs += parts.feed(stretch[first:end])
    return joined([*runs, *parts.finish()])


FINAL, REASONING = "final", "reasoning"
TAGGED: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "both": (
        "",
        "<think>\nLet me see.\n</think>\n\n42 is it.",
        [("Let me see.", REASONING), ("42 is it.", FINAL)],
    ),
    "white space before": ("", "\n <think>a</think>b", [("a", REASONING), ("b", FINAL)]),
    "none": ("", "Hello, <think> is a tag.", [("Hello, <think> is a tag.", FINAL)]),
    "empty": ("", "<think>\n\n</think>\n\nYes", [("Yes", FINAL)]),
    "in the prompt": ("<think>\n", "Hm.\n</think>\n\nYes.", [("Hm.", REASONING), ("Yes.", FINAL)]),
    "closed in the prompt": ("<think>\n\n</think>\n\n", "Yes.", [("Yes.", FINAL)]),
    "cut": ("<think>", "Hm, so </thi", [("Hm, so </thi", REASONING)]),
    "spaces kept": (
        "",
        "<think>a  b\n\nc</think>d\n\n e",
        [("a  b\n\nc", REASONING), ("d\n\n e", FINAL)],
    ),
    "an angle": ("", "<", [("<", FINAL)]),
    "a later tag": ("", "<think>a</think>b</think>c", [("a", REASONING), ("b</think>c", FINAL)]),
}


@pytest.mark.parametrize("pieces", [0, 3, 40])
@pytest.mark.parametrize("name", TAGGED)
def test_tags(name: str, pieces: int) -> None:
    prompt, text, expected = TAGGED[name]
    assert sort(channels(THINK, f"question{prompt}"), text, pieces) == expected


CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
HEADED: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "both": (
        "",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        [("Hm.", REASONING), ("Yes.", FINAL)],
    ),
    "a preamble": ("", "<|channel|>commentary<|message|>I look.<|end|>", [("I look.", FINAL)]),
    "a call": (
        "",
        f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{CALL}{{}}<|call|>",
        [("Hm.", REASONING), (CALL + "{}", FINAL)],
    ),
    "begun by the prompt": ("<|channel|>analysis<|message|>", "Hm.", [("Hm.", REASONING)]),
    "answered by the prompt": ("<|channel|>final<|message|>", "Yes.", [("Yes.", FINAL)]),
    "cut in a header": (
        "",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assi",
        [("Hm.", REASONING)],
    ),
    "no header": ("", "Yes." + " y" * 200, [("Yes." + " y" * 200, FINAL)]),
}


@pytest.mark.parametrize("pieces", [0, 3, 40])
@pytest.mark.parametrize("name", HEADED)
def test_headers(name: str, pieces: int) -> None:
    prompt, text, expected = HEADED[name]
    parts = channels(HARMONY, f"<|start|>user<|message|>Q<|end|><|start|>assistant{prompt}")
    assert sort(parts, text, pieces) == expected


def test_other_pairs_of_tags() -> None:
    for opening, closing in ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"):
        parts = channels(f"x{opening}y", "question")
        assert sort(parts, f"{opening}a{closing}b", 3) == [("a", REASONING), ("b", FINAL)]
    assert sort(channels("plain", "<think>"), "<think>a</think>b", 3) == [
        ("<think>a</think>b", FINAL)
    ]


def thinker(tmp_path: Path, *says: str, template: str = THINK) -> Path:
    """A model that says this; what looks like a control token of gpt-oss is one."""
    model = speaker(*(word.encode() for word in says))
    model.metadata["tokenizer.chat_template"] = template
    texts, kinds = (model.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    for i, text in enumerate(texts):
        if text.startswith("<|"):
            kinds[i] = CONTROL
    return model.write(tmp_path / "model.gguf")


WORDS = ("<th", "ink>\n", "So", " it", "\n</think>", "\n\nIs", " 42")
ASK: list[dict[str, Any]] = [{"role": "user", "content": "a"}]


def test_a_chat_has_reasoning_beside_its_answer(tmp_path: Path) -> None:
    with mmrt.Model(thinker(tmp_path, *WORDS)) as model:
        answer = model.chat(ASK)
        assert (answer, answer.reasoning, answer.finish) == ("Is 42", "So it", "stop")
        assert answer.tokens == len(WORDS) + 1
        pieces = list(model.stream_chat(ASK))
        assert [(p.text, p.channel) for p in pieces if p.text] == [
            *(("So", "reasoning"), (" it", "reasoning"), ("Is", "final"), (" 42", "final")),
        ]
        assert sum(piece.token is not None for piece in pieces) == answer.tokens
        cut = model.chat(ASK, max_tokens=3)
        assert (cut, cut.reasoning, cut.finish) == ("", "So", "length")
        stopped = model.chat(ASK, stop=["</think>"])
        assert (stopped, stopped.reasoning, stopped.finish) == ("", "So it", "stop")
        # What is no chat is as it is written.
        assert model.generate("a") == "".join(WORDS) and model.generate("a").reasoning == ""


def test_a_conversation_keeps_the_answer_alone(tmp_path: Path) -> None:
    with mmrt.Model(thinker(tmp_path, *WORDS)) as model, model.conversation() as talk:
        assert talk.say("a").reasoning == "So it"
        assert talk.messages[-1] == {"role": "assistant", "content": "Is 42"}


def test_channels_of_gpt_oss(tmp_path: Path) -> None:
    says = ("<|channel|>", "analysis", "<|message|>", "Hm", "<|end|>", "<|start|>", "assistant")
    with mmrt.Model(thinker(tmp_path, *says, template=HARMONY)) as model:
        answer = model.chat(ASK)
        assert (answer, answer.reasoning) == ("", "Hm")


def test_a_terminal_shows_reasoning_dim(tmp_path: Path, terminal: tuple[int, int]) -> None:
    path, (ours, theirs) = thinker(tmp_path, *WORDS), terminal
    for options, expected in (
        ((), "\x1b[2mSo\x1b[0m\x1b[2m it\x1b[0m\n\nIs 42\n"),
        (("--hide-reasoning",), "Is 42\n"),
    ):
        process = start("run", path, "a", "--temp", 0, *options, stdout=theirs)
        written = await_text(ours, b"42\r\n").decode().replace("\r\n", "\n")
        assert (written, process.wait(60)) == (expected, 0)


def test_the_command_shows_the_answer(tmp_path: Path) -> None:
    path = thinker(tmp_path, *WORDS)
    for command in ("run", path, "a"), ("run", path, "a", "--hide-reasoning"):
        ended = call(*command, "--temp", 0)
        assert (ended.status, ended.out) == (0, "Is 42\n")
