"""Prompts with tools, as the package transformers renders them."""

from pathlib import Path
from typing import Any

import pytest

import mmrt
from mmrt.text.chat import render

# What templates for tools are made of, in small.
TEMPLATE = """\
{%- macro described(name, kind) %}{{ name }}: {{ kind.type | default('any') }};{% endmacro %}
{%- set said = namespace(system=false) %}
{%- if tools %}
    [tools]
    {%- for tool in tools %}
{{ loop.index }}. {{ tool.function | tojson(indent=2) }}
{{ tool | tojson }}
        {%- for name, kind in tool.function.parameters.properties | dictsort %}
 - {{ described(name, kind) }}
        {%- endfor %}
    {%- endfor %}
    [/tools]
{% endif %}
{%- for message in messages %}
    {%- if message.role == "system" and loop.first %}
        {%- set said.system = true %}
    {%- endif %}
    {%- if message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
[results]
        {%- endif %}
= {{ message.content | trim }}
        {%- if loop.last or loop.nextitem.role != "tool" %}

[/results]
        {%- endif %}
    {%- elif message.tool_calls %}
{{ '<' ~ message.role ~ '>' }}
        {%- for call in message.tool_calls %}
            {%- set call = call.function %}
call {{ call.name }} {{ call.arguments | tojson }}
        {%- endfor %}
    {%- else %}
{{ "<" + message["role"] + ">" }}{% generation %}{{ message.content }}{% endgeneration %}</s>
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{{ "" if said.system else "?" }}{% endif %}
"""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city: “now” & <later>",
        "parameters": {
            "properties": {"days": {"type": "integer", "default": 1}, "City": {"title": "it's"}}
        },
    },
}
CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"City": "Zürich", "days": 2.0, "x": None}},
}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'In "Zürich"\n & Bern?'},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": " 3 \n"},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "3 degrees."},
]

RENDERED = """\
    [tools]1. {
  "name": "weather",
  "description": "Of a city: “now” & <later>",
  "parameters": {
    "properties": {
      "days": {
        "type": "integer",
        "default": 1
      },
      "City": {
        "title": "it's"
      }
    }
  }
}
{"type": "function", "function": {"name": "weather", "description": "Of a city: “now” & \
<later>", "parameters": {"properties": {"days": {"type": "integer", "default": 1}, "City": \
{"title": "it's"}}}}} - City: any; - days: integer;    [/tools]
<system>Be brief.</s><user>In "Zürich"
 & Bern?</s><assistant>call weather {"City": "Zürich", "days": 2.0, "x": null}call weather \
{"City": "Zürich", "days": 2.0, "x": null}[results]= 3= rain
[/results]<assistant>3 degrees.</s><assistant>"""


def rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    names = {"bos_token": "<s>", "eos_token": "</s>", "source": "some.gguf"}
    return render(TEMPLATE, messages, tools=tools, **names)


def test_a_conversation_with_tools() -> None:
    """The text is what transformers 5.24 renders."""
    assert rendered(TALK, [TOOL]) == RENDERED


ASKED: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [
    (TALK, [TOOL]),
    (TALK[:4], [TOOL, TOOL]),
    (TALK[1:3], [TOOL]),
    (TALK[:2], None),
    (TALK[1:2], []),
]


def by_transformers(
    template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, _ = utils.render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=True
    )
    return str(texts[0])


@pytest.mark.parametrize("asked", range(len(ASKED)))
def test_it_is_what_transformers_renders(asked: int) -> None:
    messages, tools = ASKED[asked]
    assert rendered(messages, tools) == by_transformers(TEMPLATE, messages, tools)


@pytest.mark.parametrize("asked", range(len(ASKED)))
def test_a_coders_template_for_tools(coder_path: Path, asked: int) -> None:
    messages, tools = ASKED[asked]
    with mmrt.Model(coder_path) as model:
        template = model.chat_template
        assert template is not None and "<tool_call>" in template
        ours = model.render_chat(messages, tools=tools)
    assert ours == by_transformers(template, messages, tools)
