"""What chat templates may do, and where it ends."""

# ruff: noqa: E501 (templates of one line)

import os

import pytest
from test_chat import HELLO, rendered

from mmrt.errors import FormatError
from mmrt.text.allowance import DEEPEST_VALUE

# ---- what templates are used to ----


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 'a,b,,c'.split(',')|join('+') }}", "a+b++c"),
        ("{{ 'a b  c'.split() }}", "['a', 'b', 'c']"),
        ("{{ 'a<b<c'.rsplit('<', 1) }}", "['a<b', 'c']"),
        ("{{ ' x '.strip() ~ 'xxaxx'.strip('x') ~ 'ab'.removeprefix('a') }}", "xab"),
        ("{{ 'abc'.startswith('ab') and 'abc'.endswith(('bc', 'x')) }}", "True"),
        ("{{ 'Hello'.upper() + 'Hello'.lower() + 'hello you'.title() }}", "HELLOhelloHello You"),
        ("{{ 'a-b'.replace('-', '+') ~ 'aaa'|replace('a', 'b', 2) }}", "a+bbba"),
        ("{{ 'abc'.find('c') ~ 'abcb'.rfind('b') ~ 'abcb'.count('b') }}", "232"),
        ("{{ 'a=b'.partition('=')|list }}", "['a', '=', 'b']"),
        ("{{ '%s is %d' % ('x', 3) }}|{{ '%05.1f'|format(2.25) }}", "x is 3|002.2"),
        ("{{ '{} {b:>3}'.format('xy', b=1) }}", "xy   1"),
        ("{{ '{a[0]}'.format_map({'a': 'xy'}) }}", "x"),
        ("{{ 'x'.center(3) ~ '|' ~ '7'.zfill(3) ~ 'x'.ljust(2, '.') }}", " x |007x."),
        ("{{ [1, 2, 3][1:] + [4] }}{{ 'abc'[::-1] }}{{ [0] * 2 }}", "[2, 3, 4]cba[0, 0]"),
        ("{{ 'a' + 'b' + 'c' }}{{ 1 + 2 + 3 - 4 + 5 }}{{ [1] + [2] + [3] }}", "abc7[1, 2, 3]"),
        ("{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ -3 + 1 }}{{ 1 / 2 }}", "3332-20.5"),
        ("{{ 1 < 2 <= 2 }}{{ 1 < 2 > 3 }}{{ 'a' in 'abc' }}{{ 3 not in [1, 2] }}", "TrueFalseTrueTrue"),
        ("{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.items() }}{{ {'items': 5}['items'] }}", "2[('a', 1)]5"),
        ("{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        ("{% for k, v in {'b': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "b1"),
        ("{% for x in 'abc' %}{{ loop.index }}{{ x }}{{ loop.last }}{% endfor %}", "1aFalse2bFalse3cTrue"),
        ("{% for x in [3, 1]|sort %}{{ x }}{{ loop.length }}{% endfor %}", "1232"),
        ("{% for x in [1, 2, 3] if x is odd %}{{ x }}{% else %}no{% endfor %}", "13"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        ("{% set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro m(a, b='-') %}{{ a ~ b ~ caller() }}{% endmacro %}{% call m(1) %}x{% endcall %}", "1-x"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}{% filter trim %}  y {% endfilter %}", "A1y"),
        ("{{ ['b', 'a']|sort|first }}{{ [1, 2]|last }}{{ [1, 2]|sum }}{{ [1, 5]|max }}", "a235"),
        ("{{ [1, 2, 2]|unique|list }}{{ [1, 2, 3]|batch(2)|list }}", "[1, 2][[1, 2], [3]]"),
        ("{{ [{'a': 1}, {'a': 2}]|selectattr('a', 'equalto', 2)|map(attribute='a')|list }}", "[2]"),
        ("{{ messages|groupby('role')|map(attribute='grouper')|list }}", "['user']"),
        ("{% for g in messages|groupby('role') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}", "user1"),
        ("{{ ['a', 'b']|map('upper')|join(', ') }}{{ [0, 1]|select|list }}", "A, B[1]"),
        ("{{ 'a\nb'|indent(2) }}|{{ 'a'|indent('> ', true) }}", "a\n  b|> a"),
        ("{{ none|default('x', true) }}{{ nope|default('y') }}{{ nope is defined }}", "xyFalse"),
        ("{{ '12'|int + 1 }}{{ 'x'|int }}{{ 2.567|round(1) }}{{ 3|float }}{{ -2|abs }}", "1302.63.02"),
        ("{{ 'a < b'|escape }}{{ '<i>'|safe ~ '</i>' }}", "a &lt; b<i></i>"),
        ("{{ 'some words here'|truncate(8) }}{{ 'a b'|wordcount }}", "some...2"),
        ("{{ 'aaa bbb'|wordwrap(3) }}{{ '<b>x</b>'|striptags }}{{ 'a b'|urlencode }}", "aaa\nbbbxa%20b"),
        ("{{ messages[0] is mapping }}{{ 'x' is string }}{{ [] is iterable }}{{ strftime_now is defined }}", "TrueTrueTrueTrue"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('-') %}{{ j() }}{{ j() }}", "ab-"),
        ("{{ dict(a=1) }}{{ dict([('b', 2)]).b }}{{ range(3)|list }}{{ range(1, 3)|sum }}", "{'a': 1}2[0, 1, 2]3"),
        ("{{ messages[0].missing }}{{ messages[0]['missing'] is defined }}{{ messages[-1].role }}", "Falseuser"),
        ("{{ 'a' if nope else 'b' }}{{ 'x' if false }}", "b"),
        ("{{ messages }}", "[{'role': 'user', 'content': 'Hello'}]"),
    ],
)  # fmt: skip
def test_templates_in_use(template: str, expected: str) -> None:
    assert rendered(template) == expected


def test_a_block_of_generation_changes_nothing() -> None:
    template = (
        "{% for m in messages %}{% generation %}\n{{ m.content }}{% if loop.last %}!{% endif %}"
        "{% if true %}{% break %}{% endif %}{% endgeneration %}{% endfor %}"
    )
    assert rendered(template, HELLO * 2) == "Hello"


def test_json_as_transformers_makes_it() -> None:
    value = "{'b': 'é<&', 'a': [1, none, true]}"
    assert rendered(f"{{{{ {value}|tojson }}}}") == '{"b": "é<&", "a": [1, null, true]}'
    assert rendered(f"{{{{ {value}|tojson(true) }}}}").startswith('{"b": "\\u00e9<&"')
    compact = "tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=false)"
    assert rendered(f"{{{{ {value}|{compact} }}}}") == '{"a":[1,null,true],"b":"é<&"}'
    assert rendered("{{ [1]|tojson(indent=2) }}") == "[\n  1\n]"


@pytest.mark.slow
def test_long_conversations_are_no_bombs() -> None:
    template = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + '<' + m.role + '>' + m.content|trim + '\n' %}"
        "{% if messages[loop.index:]|selectattr('role', 'equalto', 'x')|list %}?{% endif %}"
        "{% endfor %}{{ ns.text }}"
    )
    messages = [{"role": "user", "content": f" {'word ' * 300}{i} "} for i in range(400)]
    assert rendered(template, messages) == "".join(
        f"<user>{message['content'].strip()}\n" for message in messages
    )
    assert rendered("{{ messages[0].content }}", [{"role": "user", "content": "é" * 10**7}])


# ---- what ends ----

BOMBS = {
    "bytes": [
        "{{ 'x' * 2000000000 }}",
        "{{ 2000000000 * 'x' }}",
        "{{ [0] * 200000000 }}",
        "{{ 'x'|center(2000000000) }}",
        "{{ 'x'.ljust(2000000000) }}",
        "{{ 'x'.zfill(2000000000) }}",
        "{{ 'a\n'|indent(2000000000) }}",
        "{{ ('a\n' * 100000)|indent('x' * 100000) }}",
        "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000)|replace('', 'b' * 100000) }}",
        "{{ range(100000)|join('x' * 100000) }}",
        "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
        "{{ ('{0}' * 100000).format('x' * 100000) }}",
        "{{ [1]|batch(2000000000, 0) }}",
        "{{ [1]|slice(2000000000) }}",
        "{{ ('a' * 60000000)|list }}",
        "{{ ('a ' * 10000000).split() }}",
        "{{ ('a' * 3000000).split('a') }}",
        "{{ (['x' * 1000] * 50000)|sum(start='') }}",
        "{{ ([1] * 100000)|tojson(separators=('x' * 100000, ':')) }}",
        "{{ dict(a='x' * 200000000) }}",
        "{% set x %}{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}{% endset %}",
        "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(s='x') %}"
        "{% for i in range(60) %}{% set n.s = m(n.s) %}{% endfor %}",
    ],
    "steps": [
        "{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% set x = range(100000)|map('string')|list %}{% endfor %}",
        "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [[1]] recursive %}{{ loop([x, x]) if loop.depth < 80 }}{% endfor %}",
        "{% set a = 'a' * 10000000 %}{% for i in range(100000) %}{{ 'b' in a }}{% endfor %}",
        "{% set a = 'a' * 9000000 %}{% set b = 'a' * 9000000 %}{% for i in range(100000) %}{{ a == b }}{% endfor %}",
        "{% set a = 'a' * 10000000 %}{% for i in range(100000) %}{% set x = a[1:] %}{% endfor %}",
        "{{ ('a' * 3000000).rfind('b' ~ 'a' * 1500000) }}",
        "{{ ('a' * 3000000).strip('b' * 3000000 ~ 'a') }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}",
        "{% set n = namespace(l=(1,)) %}{% for i in range(60) %}{% set n.l = (n.l, n.l) %}{% endfor %}",
        "{% set n = namespace(l={}) %}{% for i in range(60) %}{% set n.l = {'a': n.l, 'b': n.l} %}{% endfor %}",
        "{{ (range(100000)|list * 7)|sort }}",
        "{{ range(100000)|select('in', range(100000)|list)|list }}",
        "{{ ([[1]] * 50000)|sum(start=[]) }}",
        "{{ ('http://a.b ' * 300000)|urlize }}",
        "{{ ('x ' * 1000000)|wordwrap(1) }}",
        "{{ ('x ' * 1000000)|truncate(1000000) }}",
        "{{ ('<!--' * 1000000)|striptags }}",
    ],
    "999": [
        "{{ '%2000000000d' % 1 }}",
        "{{ '%*d' % (2000000000, 1) }}",
        "{{ '%.2000000000f' % 1.0 }}",
        "{{ '%2000000000d'|format(1) }}",
        "{{ '%2000000000d' is even }}",
        "{{ '%2000000000d' is divisibleby(3) }}",
        "{{ '{:2000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 2000000000) }}",
        "{{ '{a:2000000000}'.format_map({'a': 1}) }}",
    ],
    "64 bits": [
        "{{ 10 ** 10 ** 8 }}",
        "{{ ('9' * 4000)|int }}",
        "{{ ('f' * 1000000)|int(0, 16) }}",
        "{{ 5|round(-2000000000) }}",
        "{% set n = namespace(i=3) %}{% for i in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}",
        "{{ 99999999999999999999999 }}",
        "{{ range(0, 230584300921369395100000, 2305843009213693951)|unique|list }}",
    ],
    "deep": [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% set n = namespace(l=1) %}{% for i in range(9999) %}{% set n.l = [n.l] %}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 150 + "]" * 150 + " }}",
        "{{ 1" + " - 1" * 3000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500,
        "{% for a in [1] %}" * 60 + "x" + "{% endfor %}" * 60,
    ],
    "longer": ["x" * 2000000, "{{ a }}" * 30000],
    "64": ["{{ [1]|tojson(indent=1000000000) }}", "{{ [1]|tojson(indent='x' * 100) }}"],
    "256": ["{{ strftime_now('%c' * 1000) }}"],
    "100000": ["{{ range(10 ** 12)|list }}"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "template"), [(limit, bomb) for limit, bombs in BOMBS.items() for bomb in bombs]
)
def test_bombs_meet_a_limit(limit: str, template: str) -> None:
    with pytest.raises(FormatError, match=r"some\.gguf: the chat template") as error:
        rendered(template)
    assert limit in str(error.value)
    assert "limit" in str(error.value) or "Range too big" in str(error.value)
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_constants_are_not_computed_before_they_are_asked_for() -> None:
    assert rendered("{% if false %}{{ 10 ** 10 ** 8 }}{{ 'x'|center(10 ** 10) }}{% endif %}") == ""


def test_values_print_what_they_hold_once() -> None:
    template = "{% set n = namespace() %}{% set n.n = n %}{% set n.l = [n, n] %}{{ n }}{{ [n] }}"
    assert rendered(template) == "<Namespace>[<Namespace>]"
    deepest = DEEPEST_VALUE - 2
    nested = "{% set n = namespace(l=[]) %}{% for i in range(N) %}{% set n.l = [n.l] %}{% endfor %}"
    assert len(rendered(nested.replace("N", str(deepest)) + "{{ n.l }}")) == 2 * (deepest + 1)


# ---- what is out of reach ----


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__",
        "''|attr('__class__')|attr('__mro__')",
        "''['__class__'].x",
        "'{0.__class__.__mro__}'.format(1)",
        "('{0.__init__.__globals__[os]}'|attr('format'))(namespace)",
        "'{a.__class__.x}'.format_map({'a': 1})",
        "(['{0.__class__.x}']|map('attr', 'format')|first)(1)",
        "cycler.__init__.__globals__",
        "namespace.__init__.x",
        "raise_exception.__globals__['json']",
        "strftime_now._function.x",
        "''.upper._function.x",
        "messages.append(1)",
        "messages[0].update(role='x')",
        "messages[0].clear()",
        "messages.pop()",
        "''.encode().x",
        "''.translate({})",
        "(1).to_bytes(1000000000, 'big')",
        "(messages|map('upper')).gi_frame.f_globals",
        "self._TemplateReference__context.x",
        "self.__init__.__globals__",
        "lipsum.__globals__",
        "loop.x",
    ],
)
def test_nothing_else_is_in_reach(expression: str) -> None:
    messages = [dict(HELLO[0])]
    with pytest.raises(FormatError, match=r"some\.gguf: the chat template"):
        rendered(f"{{{{ {expression} }}}}", messages)
    assert messages == HELLO


@pytest.mark.parametrize("tag", ["include", "import", "extends", "block", "autoescape"])
def test_tags_that_reach_for_other_templates_are_refused(tag: str) -> None:
    rest = {"include": "'x'", "import": "'x' as y", "extends": "'x'", "block": "x"}
    with pytest.raises(FormatError, match=rf"line 2: .*without {{% {tag} %}}"):
        end = f"{{% end{tag} %}}" if tag in ("block", "autoescape") else ""
        rendered(f"\n{{% {tag} {rest.get(tag, 'true')} %}}{end}")


def test_the_environment_of_the_process_is_not_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MMRT_SECRET", "hunter2")
    template = (
        "{{ ('{0.__init__.__globals__[t].sys.modules[os].environ[MMRT_SECRET]}'"
        "|attr('format'))(namespace) }}"
    )
    with pytest.raises(FormatError) as error:
        rendered(template)
    assert "hunter2" not in str(error.value)
