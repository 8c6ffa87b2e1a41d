"""Chat templates: what they render, and how they fail."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import pytest

from mmrt.errors import ArgumentError, FormatError, UnsupportedError
from mmrt.text.chat import choose_template, render, template_names

HELLO = [{"role": "user", "content": "Hello"}]

NESTED: list[Any] = []
NESTED.append(NESTED)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rendered(template: str | None, messages: Any = HELLO, tools: Any = None, **given: Any) -> str:
    """The prompt; given: variables."""
    options = {"bos_token": "<s>", "eos_token": "</s>", "source": "some.gguf"}
    return render(template, messages, tools=tools, **options, **given)


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


@pytest.mark.slow
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
        ([{"role": "user", "content": [3]}], r"messages\[0\]: 'content', part 0, .* found 3"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 0, must have a 'text'"),
        ([{"role": "user", "content": [{"text": "a"}]}], "part 0, must be a dict with a 'type'"),
        ([{**HELLO[0], "x": [{"y": {1j}}]}], r"messages\[0\]\['x'\]\[0\]\['y'\]: .* found set"),
        (
            [{**HELLO[0], "content": "ab\udcff"}],
            r"messages\[0\]\['content'\] is not UTF-8: byte 0xff at character 2",
        ),
        ([{**HELLO[0], "x": NESTED}], r"messages.*: nested deeper than 64"),
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
        ("{% include 'other' %}", "the chat template"),
    ],
)
def test_broken_or_hostile_templates(template: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=rf"some\.gguf: .*{complaint}"):
        rendered(template)


PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
EITHER = "{% set c = messages[0].content %}{{ c if c is string else c|map(attribute='text')|join }}"
TWO_PARTS = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("Hello", "you")]}]


def test_contents_take_the_shape_that_the_template_reads() -> None:
    assert rendered(PARTS, TWO_PARTS) == rendered(EITHER, TWO_PARTS) == "Helloyou"
    assert rendered(CHATML, TWO_PARTS).startswith("<|im_start|>user\nHello\nyou<|im_end|>")
    assert rendered(PARTS) == rendered(EITHER) == "Hello"
    assert rendered("{{ messages[0].content[0] }}", TWO_PARTS) == str(TWO_PARTS[0]["content"][0])


def test_pictures_are_for_templates_that_take_them() -> None:
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    template = (
        "{% for p in messages[0].content %}{{ p.text if p.type == 'text' else '#' }}{% endfor %}"
    )
    assert rendered(template, picture) == "#a"
    with pytest.raises(UnsupportedError, match="takes text only, not a 'image'"):
        rendered(CHATML, picture)


def test_calls_of_tools() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None]}}}
    messages: list[dict[str, Any]] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "abc"},
    ]
    template = (
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}"
        "{{ c.function.arguments|tojson }}{% endfor %}{{ m.tool_call_id }}"
        "{{ m.content is none }}{{ m.content is defined }};{% endfor %}"
        "{{ tools|map(attribute='n')|join }}"
    )
    called = 'f{"x": [1, null]}'
    assert rendered(template, messages, tools=[{"n": "f"}]) == (
        f"FalseTrue;{called}TrueTrue;{called}FalseFalse;abcFalseTrue;f"
    )
    assert messages[1]["tool_calls"] == [call]


def test_variables_are_passed_on() -> None:
    template = "{{ enable_thinking }}{{ documents[0].title }}{{ nothing is defined }}"
    documents = [{"title": "T"}]
    assert rendered(template, enable_thinking=False, documents=documents) == "FalseTFalse"
    with pytest.raises(ArgumentError, match=r"note: expected text.* found object"):
        rendered(template, note=object())


def test_the_template_is_chosen_among_several() -> None:
    fields = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "t"}
    named = {f"tokenizer.chat_template.{name}": name for name in ("default", "tool_use", "rag")}
    for metadata, plain, tools in (
        (fields, "a", "t"),
        (named, "default", "tool_use"),
        ({}, None, None),
    ):
        assert choose_template(metadata, "x", with_tools=False) == plain
        assert choose_template(metadata, "x", with_tools=True) == tools
    assert choose_template({"tokenizer.chat_template": "a"}, "x", with_tools=True) == "a"
    with pytest.raises(FormatError, match=r"x: tokenizer\.chat_template: expected text, found 3"):
        choose_template({"tokenizer.chat_template": 3}, "x", with_tools=False)


def test_a_template_may_be_chosen_by_its_name() -> None:
    fields: dict[str, Any] = {
        "tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "t",
        "tokenizer.chat_template.rag": 3, "tokenizer.chat_templates": ["tool_use", "rag"],
    }  # fmt: skip
    assert template_names(fields) == ["default", "rag", "tool_use"]
    assert template_names({"tokenizer.chat_template.default": "d"}) == ["default"]
    assert template_names({"tokenizer.ggml.pre": "x"}) == []
    for with_tools in (False, True):
        for name, template in ("default", "a"), ("tool_use", "t"), ("{{ x }}", "{{ x }}"):
            found = choose_template(fields, "f", given=name, with_tools=with_tools)
            assert found == template
    with pytest.raises(ArgumentError, match=r"f: no .* called 'rug': the file has default, rag, t"):
        choose_template(fields, "f", given="rug", with_tools=False)
    with pytest.raises(ArgumentError, match="called '': the file has none"):
        choose_template({}, "f", given="", with_tools=True)
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template\.rag: expected text, found 3"):
        choose_template(fields, "f", given="rag", with_tools=False)


def test_a_refusal_is_one_printable_line() -> None:
    with pytest.raises(ArgumentError) as error:
        rendered("{{ raise_exception('no\x1b[2J\n\x1b]0;owned\x07\u202e' ~ 'x' * 100000) }}")
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    with pytest.raises(FormatError) as failed:
        rendered("{{ 1 + '\x1b[2J'.x.y }}{{ messages['\x9b'].z }}")
    assert str(failed.value).isprintable()


def test_importing_does_not_import_jinja2() -> None:
    check = "import sys, mmrt.text.chat; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=command.HOME).returncode == 0
