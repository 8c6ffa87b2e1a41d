"""Fuzzes chat templates: made by a grammar, with attempts to leave the sandbox and to take all time
and memory, and real ones, changed.

A template gives a prompt of bounded length in bounded time and memory, or is refused. It learns no
secret, starts nothing, writes nothing, and leaves the messages as they are.
"""

import copy
import os
import sys
from functools import cache
from typing import Any

import fuzzing
from fuzzing import Choices

import mmrt
from mmrt.text import chat

SECRET = "a secret that no template may tell"
LONGEST = 128 << 20  # characters of a prompt

OWN = [
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{%- set ns = namespace(system='') -%}{%- for m in messages if m.role == "
    "'system' -%}{% set ns.system = ns.system ~ m.content %}{%- endfor -%}{{ ns.system }}"
    "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'user') | int %}"
    "{{ raise_exception('roles alternate') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "{% macro part(m, depth=1) %}{{ m | tojson }}{% if depth > 0 %}{{ part(m, depth - 1) }}"
    "{% endif %}{% endmacro %}{% for m in messages %}{{ part(m) }}{% break %}{% endfor %}",
]
NAMES = ["messages", "message", "bos_token", "x", "ns", "loop", "tools", "self", "range", "dict"]
NAMES += ["namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now", "caller"]
FIELDS = ["role", "content", "index0", "append", "update", "pop", "format", "items", "join", "x"]
FIELDS += ["__class__", "__globals__", "__init__", "__mro__", "__subclasses__", "__builtins__"]
FIELDS += ["__import__", "_module", "gi_frame", "f_globals", "mro", "func_globals", "environment"]
FIELDS += ["format_map", "startswith", "replace", "split", "strip", "encode", "ljust", "center"]
FILTERS = ["trim", "tojson", "join", "list", "length", "upper", "attr('__class__')", "map('upper')"]
FILTERS += ["map(attribute='__class__')", "selectattr('role')", "groupby('role')", "sort", "string"]
FILTERS += ["format(messages)", "indent(1000000)", "center(100000000)", "batch(3)", "first", "last"]
FILTERS += ["replace('a', 'aaaaaaaaaa')", "int", "abs", "xmlattr", "urlize", "pprint", "safe"]
FILTERS += [
    "default(x)",
    "reverse",
    "unique",
    "sum",
    "round(100)",
    "wordwrap(1)",
    "random",
    "dictsort",
]
BOMBS = [
    "'a' * 1000000000",
    "[0] * 1000000000",
    "range(1000000000)",
    "10 ** 10 ** 10",
    "9 ** 99999",
]
BOMBS += [
    "'%999999999d' % 1",
    "'{:>999999999}'.format(1)",
    "range(99999999) | list",
    "1 << 99999999",
]
BOMBS += ["'a' | center(999999999)", "lipsum(n=100000)", "'{0.__class__}'.format(messages)"]
BOMBS += [
    "cycler.__init__.__globals__.os.environ",
    "self._TemplateReference__context",
    "''|attr('_'~'_class_'~'_')",
]
BOMBS += ["messages.__class__.__mro__[1].__subclasses__()", "raise_exception.__globals__"]
BOMBS += [
    "'%(__class__)s' % messages[0]",
    "(1,) * 99999999",
    "'a'.join(range(9999999)|map('string'))",
]
BOMBS += ["strftime_now('%Y' * 99999)", "messages[0].update({'role': 'x'})", "messages.append(1)"]
TESTS = ["defined", "string", "mapping", "iterable", "none", "sameas x", "in messages", "odd"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "and", "or", "in", "not in"]


def expression(c: Choices, depth: int = 4) -> str:
    kind = c.below(13 if depth else 4)
    if kind == 0:
        return c.pick(NAMES)
    if kind == 1:
        return repr(c.text())
    if kind == 2:
        return str(c.pick([0, 1, 2, 10, 1000, c.number()]))
    if kind == 3:
        return c.pick(BOMBS) if c.chance(3) else c.pick(NAMES)
    inner = expression(c, depth - 1)
    other = expression(c, depth - 1) if kind > 7 else ""
    return [
        f"{inner}.{c.pick(FIELDS)}", f"{inner}['{c.pick(FIELDS)}']",
        f"({inner}) | {c.pick(FILTERS)}", f"({inner}) is {c.pick(TESTS)}",
        f"({inner}) {c.pick(OPERATORS)} ({other})",
        f"{inner}({other})", f"[{inner}, {other}]", f"{{'x': {inner}, 'role': {other}}}",
        f"({inner})[{c.pick(['0', '-1', '1:', '::-1', other])}]",
    ][kind - 4]  # fmt: skip


def statement(c: Choices, depth: int = 3) -> str:
    kind = c.below(10 if depth else 3)
    inner = "".join(statement(c, depth - 1) for _ in range(c.below(4))) if kind > 3 else ""
    value = expression(c)
    return [
        c.text().replace("{", ""), f"{{{{ {value} }}}}", f"{{% set x = {value} %}}",
        c.pick(["{% break %}", "{% continue %}", "{%- if x -%}", "{% endfor %}", "{#"]),
        f"{{% for message in {value} %}}{inner}{{% endfor %}}",
        f"{{% for x in range({c.pick(['3', '1000', '99999999'])}) %}}{inner}{{% endfor %}}",
        f"{{% if {value} %}}{inner}{{% else %}}{inner}{{% endif %}}",
        f"{{% macro f(x) %}}{inner}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
        f"{{% set ns = namespace(x={value}) %}}{inner}{{% set ns.x = ns.x ~ ns.x %}}",
        f"{{% set x %}}{inner}{{% endset %}}{{% filter upper %}}{inner}{{% endfilter %}}",
    ][kind]  # fmt: skip


@cache
def real_templates() -> list[str]:
    """Those of the real models that there are, and some of ours."""
    import fetch_models  # found by way of fuzzing

    found = []
    for variable, cached in fetch_models.cached().items():
        path = os.environ.get(variable, cached)
        if path:
            with mmrt.open(path) as file:
                found.append(file.metadata.get("tokenizer.chat_template"))
    return OWN + [template for template in found if template]


def template(c: Choices) -> str:
    if c.chance(2):
        return "".join(statement(c) for _ in range(c.between(1, 6)))
    real = c.pick(real_templates())
    at = c.below(len(real))
    match c.below(4):
        case 0:
            return real
        case 1:
            return real[:at] + statement(c) + real[at:]
        case 2:
            return real[:at] + f"{{{{ {expression(c)} }}}}" + real[at + c.below(40) :]
        case _:
            return c.mutated(real.encode()).decode(errors="replace")


def messages(c: Choices) -> list[dict[str, Any]]:
    made = []
    for i in range(c.between(1, 4)):
        message = {"role": ["user", "assistant", "system", "tool"][i % 4], "content": c.text()}
        if c.chance(8):
            message[c.text()] = c.value()
        made.append(message)
    return made


_watching = False
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser.")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or (event.startswith(_FORBIDDEN) and event not in ("os.listdir", "os.scandir")):
        raise AssertionError(f"a template brought about {event} {arguments!r:.200}")


def one(c: Choices) -> None:
    global _watching
    given = messages(c)
    before = copy.deepcopy(given)
    source = template(c)
    _watching = True
    try:
        made = chat.prompt(
            source,
            given,
            bos_token="<s>",
            eos_token="</s>",
            source="a file",
            variables={"add_generation_prompt": c.chance(2)},
        ).text
    finally:
        _watching = False
        assert repr(given) == repr(before), source
    assert isinstance(made, str) and len(made) <= LONGEST, source
    assert SECRET not in made, source


os.environ["MMRT_FUZZ"] = SECRET
FUZZER = fuzzing.Fuzzer("templates", one)

if __name__ == "__main__":
    real_templates()
    sys.addaudithook(_watch)
    FUZZER.main()
