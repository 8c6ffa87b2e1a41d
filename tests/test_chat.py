"""Chat templates: what they render, and how they fail."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmrt.chat import render
from mmrt.errors import ArgumentError, FormatError, UnsupportedError

HELLO = [{"role": "user", "content": "Hello"}]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rendered(template: str | None, messages: Any = HELLO, **options: bool) -> str:
    return render(
        template, messages, bos_token="<s>", eos_token="</s>", source="some.gguf", **options
    )


def test_a_conversation() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "x<y"}]
    expected = (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
        "<|im_start|>user\nx<y<|im_end|>\n"
    )
    assert rendered(CHATML, messages, add_generation_prompt=False) == expected
    assert rendered(CHATML, messages) == expected + "<|im_start|>assistant\n"


def test_special_tokens_and_customary_functions() -> None:
    assert rendered("{{ bos_token }}|{{ eos_token }}") == "<s>|</s>"
    assert rendered("{{ {'k': 'é<&'} | tojson }}") == '{"k": "é<&"}'
    assert rendered("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert re.fullmatch(r"\d{4}", rendered("{{ strftime_now('%Y') }}"))
    assert rendered("{% if tools is none and not documents %}none{% endif %}") == "none"
    assert rendered("{{ messages[0].name }}", [{**HELLO[0], "name": "Ann"}]) == "Ann"


def test_blocks_leave_no_white_space() -> None:
    template = "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}"
    assert rendered(template) == "user\n"


def test_loop_controls() -> None:
    template = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert rendered(template) == "01"


def test_smollm2_template(smollm2_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    template = gguf.GGUFReader(smollm2_path).fields["tokenizer.chat_template"].contents()
    assert rendered(template) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_no_template_is_said_in_plain_words() -> None:
    with pytest.raises(UnsupportedError, match=r"some\.gguf: the model has no chat template"):
        rendered(None)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("Hello", "expected a list"),
        ([], "empty"),
        (["Hello"], r"messages\[0\]: expected a dict"),
        ([*HELLO, {"content": "x"}], r"messages\[1\]: 'role' must be a string, found None"),
        ([{"role": "user"}], r"messages\[0\]: 'content'"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: 'content' must be .* found 3"),
    ],
)
def test_malformed_messages(messages: Any, complaint: str) -> None:
    with pytest.raises(ArgumentError, match=complaint):
        rendered(CHATML, messages)


def test_a_template_can_refuse_messages() -> None:
    with pytest.raises(ArgumentError, match=r"some\.gguf: .*refuses: roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("a\n{% for %}", "line 2"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ no_such_thing.x }}", "no_such_thing"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ range(10**9) | list }}", "Range too big"),
        ("{{ messages.append(1) }}", "may not"),
        ("{{ ''.__class__.__mro__ }}", "may not"),
        ("{{ raise_exception.__globals__['json'] }}", "may not"),
        ("{% include 'other' %}", "tokenizer.chat_template"),
    ],
)
def test_broken_or_hostile_templates(template: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=rf"some\.gguf: .*{complaint}"):
        rendered(template)


def test_importing_does_not_import_jinja2() -> None:
    check = "import sys, mmrt.chat; sys.exit('jinja2' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[1]).returncode == 0
    )
