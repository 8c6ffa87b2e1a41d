"""Runs chat templates, which come from strangers, within an allowance.

jinja2 parses and compiles them; every value that a compiled template makes, looks at or calls goes
through the environment here, which knows what is allowed and counts what it takes. So a template
reads its variables and makes text; it reaches nothing else, and ends.
"""

import functools
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateAssertionError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from jinja2.visitor import NodeTransformer

from mmrt.text.allowance import Allowance, LimitError, length
from mmrt.text.standins import StandIns
from mmrt.text.strings import METHODS, Strings

LONGEST_TEMPLATE = 1 << 20  # characters
MOST_TOKENS = 50_000

_LARGEST = 1 << 64  # of whole numbers that are computed
_LONGEST_DATE = 256
_WIDEST_INDENT = 64

_CONTAINER_METHODS: dict[type, tuple[str, ...]] = {
    dict: ("items", "keys", "values", "get", "copy"),
    list: ("count", "index", "copy"),
    tuple: ("count", "index"),
}

# What jinja2 makes for a template itself.
_OBJECTS = (Namespace, LoopContext, Macro, Cycler, Joiner, Undefined)


class Refusal(Exception):
    """Raised by a template through its function raise_exception."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The surroundings of one rendering; those that Hugging Face's transformers made customary."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, allowance: Allowance, stand_ins: StandIns) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are computed in time, and counted
            finalize=self._finalize,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        self._allowance = allowance
        self._stand_ins = stand_ins
        self._strings = Strings(allowance, stand_ins)
        self.concat = lambda parts: self._strings.join("", parts)  # type: ignore[method-assign]
        self.filters = self._filters()
        self.tests = self._tests()  # type: ignore[assignment]
        self.globals = {
            "range": Function(_range),
            "dict": Function(self._dict),
            "namespace": Function(self._namespace),
            "cycler": Function(Cycler),
            "joiner": Function(Joiner),
            "raise_exception": Function(self._refuse),
            "strftime_now": Function(_strftime_now),
        }

    def render(self, code: Any, variables: Mapping[str, Any]) -> str:
        """What the template compiled to `code` makes of `variables`."""
        template = self.template_class.from_code(self, code, self.make_globals(None))
        context = template.new_context({**variables})
        return self._strings.join("", self._counted(template.root_render_func(context)))

    # ---- from source to code ----

    def _tokenize(self, source: str, *arguments: Any, **named: Any) -> Any:
        if len(source) > LONGEST_TEMPLATE:
            raise LimitError(f"it is longer than the limit of {LONGEST_TEMPLATE} characters")
        stream = super()._tokenize(source, *arguments, **named)
        stream._iter = self._few(stream._iter)
        return stream

    def _few(self, tokens: Iterator[Any]) -> Iterator[Any]:
        for count, token in enumerate(tokens):
            if count >= MOST_TOKENS:
                raise LimitError(f"it is longer than the limit of {MOST_TOKENS} words and signs")
            yield token

    def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
        parsed: nodes.Template = _Rewriter().visit(Parser(self, source, name, filename).parse())
        return parsed

    # ---- values ----

    @pass_context
    def _finalize(self, context: Context, value: Any) -> str:
        # With a context as an argument, jinja2 leaves even constants to be printed in time.
        return self._strings.text(value)

    def _counted(self, items: Any) -> Iterator[Any]:
        """`items` as they come, a step each, and the bytes of text."""
        for item in items:
            self._allowance.step(length(item))
            if isinstance(item, str):
                self._allowance.require(len(item))
            yield item

    def _list(self, items: Any) -> list[Any]:
        """What can be iterated over, as a list."""
        self._allowance.require(64 * len(items) if hasattr(items, "__len__") else 0)
        made: list[Any] = []
        for item in items:
            self._allowance.step()
            made.append(item)
            if len(made) % 4096 == 0:
                self._allowance.take(64 * 4096)
        return made

    def _each(self, items: Any) -> Any:
        """What a loop goes over."""
        if isinstance(items, list | tuple | dict | range | str):
            self._allowance.step(1 + len(items))
            return items
        return self._list(items)

    def _slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        self._allowance.step(length(value))
        part = value[start:stop:step]
        self._allowance.take(8 * length(part))
        return part

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._allowance.step()
        if isinstance(obj, _OBJECTS):
            return super().getattr(obj, attribute)
        kind = type(obj)
        if kind is str:
            if attribute in METHODS:
                return Function(getattr(self._strings, attribute), obj)
            if attribute in ("format", "format_map"):
                return Function(getattr(self, f"_{attribute}"), obj)
        elif attribute in _CONTAINER_METHODS.get(kind, ()):
            return Function(self._container_method, obj, attribute)
        elif kind is dict and attribute in obj:
            return obj[attribute]
        elif attribute in getattr(kind, "_fields", ()):  # of what the filter groupby makes
            return getattr(obj, attribute)
        if attribute.startswith("_") or hasattr(kind, attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._allowance.step()
        if isinstance(obj, dict | list | tuple | str | range):
            if isinstance(argument, tuple):
                self._allowance.measure(argument)
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def _container_method(self, value: Any, name: str, *arguments: Any) -> Any:
        if name in ("count", "index"):
            self._allowance.measure((value, *arguments))
            plain = self._stand_ins.plain_tree
            return getattr(plain(value), name)(*map(plain, arguments))
        result = getattr(value, name)(*arguments)
        if name == "get":
            return result
        self._allowance.take(64 * length(value))
        return result if name == "copy" else list(result)

    # ---- calls ----

    def is_safe_callable(self, obj: Any) -> bool:
        owner = getattr(obj, "__self__", None)
        return isinstance(obj, Function | Macro | LoopContext | Joiner | Undefined) or isinstance(
            owner, LoopContext | Cycler
        )

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._allowance.step(4 + len(args) + len(kwargs))
        if isinstance(__obj, LoopContext):  # a recursive loop
            args = tuple(map(__self._each, args))
        with __self._allowance.deeper():
            return super().call(__context, __obj, *args, **kwargs)

    def _dict(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        self._allowance.measure((pairs, named))
        made: dict[Any, Any] = self._made(dict(*pairs, **named))
        return made

    def _namespace(self, *pairs: Any, **named: Any) -> Namespace:
        return _Namespace(self._dict(*pairs, **named))

    def _refuse(self, reason: Any = "") -> NoReturn:
        raise Refusal(self._strings.text(reason))

    # ---- operators ----

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._allowance.step()
        strings = self._strings
        if isinstance(left, int | float) and isinstance(right, int | float):
            return self._computed(operator, left, right)
        if operator == "*":
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                return strings.times(sequence, count)
        elif operator == "%" and isinstance(left, str):
            return strings.percent(left, right)
        return self._made(self.binop_table[operator](left, right))

    def _added(self, *terms: Any) -> Any:
        if all(isinstance(term, str) for term in terms):
            return self._strings.join("", terms)
        return functools.reduce(functools.partial(self.call_binop, None, "+"), terms)

    def _computed(self, sign: str, left: Any, right: Any) -> Any:
        if sign == "**" and isinstance(left, int) and isinstance(right, int):
            self._require_small(right if abs(left) > 1 else 0, 64)
        result = self.binop_table[sign](left, right)
        self._require_small(result, _LARGEST)
        return result

    def _require_small(self, number: Any, largest: int) -> None:
        if isinstance(number, int) and abs(number) > largest:
            raise LimitError("it computes numbers over the limit of 64 bits")

    def _compare(self, left: Any, *others: Any) -> bool:
        """left < b <= c ...; others: "lt", b, "lteq", c, ..."""
        for sign, right in zip(others[::2], others[1::2], strict=True):
            if not self._holds(left, sign, right):
                return False
            left = right
        return True

    def _holds(self, left: Any, sign: str, right: Any) -> bool:
        if sign == "notin":
            return not self._holds(left, "in", right)
        if sign == "in" and isinstance(right, str):
            return self._strings.contains(right, left)
        if sign == "in" and isinstance(right, dict):
            self._allowance.measure(left)
            return left in right
        for value in (left, right):
            self._allowance.step(self._cost(value))
        plain = self._stand_ins.plain_tree
        if sign == "in" and isinstance(right, range):
            return left in right
        left, right = plain(left), plain(right)
        return bool(left in right if sign == "in" else _COMPARISONS[sign](left, right))

    def _cost(self, value: Any) -> int:
        """Steps that it takes to look at all of `value`."""
        if isinstance(value, list | tuple | dict):
            return 1 + self._allowance.measure(value).bytes // 64
        return length(value)

    def _made(self, value: Any) -> Any:
        """`value`, a new container of what was there already."""
        self._allowance.measure(value)
        self._allowance.take(64 * length(value))
        return value

    def _format(self, form: str, *values: Any, **named: Any) -> str:
        return self._strings.format(form, self._field, values, named)

    def _format_map(self, form: str, named: Any) -> str:
        return self._strings.format(form, self._field, (), named)

    def _field(self, name: str, values: Any, named: Any) -> Any:
        return SandboxedFormatter(self).get_field(name, values, named)[0]

    # ---- filters and tests ----

    def _filters(self) -> dict[str, Callable[..., Any]]:
        strings, text = self._strings, self._strings.text
        # Where a name is no name, it is what an operator was rewritten as.
        own: dict[str, Callable[..., Any]] = {
            "~": strings.concat,
            "+": self._added,
            "==": self._compare,
            "[:]": self._slice,
            "[]": self._made,
            "for": self._each,
            "attr": self.getattr,
            "default": FILTERS["default"],
            "d": FILTERS["default"],
            "length": self._length,
            "count": self._length,
            "list": self._list,
            "string": text,
            "safe": text,
            "trim": lambda value, characters=None: strings.strip(text(value), characters),
            "replace": lambda value, old, new, count=None: strings.replace(
                text(value), text(old), text(new), -1 if count is None else count
            ),
            "format": lambda value, *a, **k: strings.percent(text(value), k or a),
            "center": lambda value, width=80: strings.center(text(value), width),
            "join": self._join,
            "sum": self._sum,
            "round": self._round,
            "indent": self._indent,
            "tojson": self._to_json,
        }
        for name in ("capitalize", "lower", "title", "upper"):
            own[name] = functools.partial(self._of_text, FILTERS[name])
        for name in ("wordcount", "truncate", "wordwrap", "striptags", "urlize", "urlencode"):
            own[name] = self._opaque(FILTERS[name])
        for name in ("e", "escape", "forceescape", "xmlattr", "pprint"):
            own[name] = self._opaque(FILTERS[name])
        plain = self._stand_ins.plain_tree
        for name in ("int", "float"):
            seeing = functools.partial(
                lambda f, value, *a, **k: f(plain(value), *a, **k), FILTERS[name]
            )
            own[name] = self._counting(name, seeing)
        others = {name: self._counting(name, filter) for name, filter in FILTERS.items()}
        return {**others, **own}

    def _counting(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """`filter` with what it reads and makes counted, and a list for what it would yield."""
        compares = name in ("dictsort", "groupby", "max", "min", "sort", "unique")
        pads = name in ("batch", "slice")

        def counted(*values: Any, **named: Any) -> Any:
            for value in (*values, *named.values()):
                cost = length(value)
                self._allowance.step(self._cost(value) * cost.bit_length() if compares else cost)
                if pads and isinstance(value, int):
                    self._allowance.require(64 * value)
            result = filter(*values, **named)
            if isinstance(result, Iterator):
                result = self._list(result)
            self._require_small(result, _LARGEST)
            return self._made(result)

        return functools.update_wrapper(counted, filter)

    def _of_text(self, filter: Callable[[str], str], value: Any) -> str:
        text = self._strings.text(value)
        self._allowance.step(len(text))  # title goes by words
        self._allowance.require(16 * len(text))
        return self._allowance.made(self._strings.recased(filter, text))

    def _opaque(self, filter: Callable[..., Any]) -> Callable[..., Any]:
        """A `filter` of which it is not known what it makes of stand-ins: all that it makes counts
        as a stranger's. Nor is it known how long it takes: as the square of what it reads."""
        surroundings = int(hasattr(filter, "jinja_pass_arg"))

        def marked(*values: Any, **named: Any) -> Any:
            passed, given = values[:surroundings], values[surroundings:]
            size = self._allowance.measure((given, named)).bytes
            self._allowance.step(size * size >> 12)
            self._allowance.require(16 * size)
            for value in (*given, *named.values()):
                self._allowance.require(value if isinstance(value, int) else 0)
            for value in named.values():  # what comes again and again: wrapstring, rel, target
                self._allowance.require(size * length(value))
            plain = self._stand_ins.plain_tree
            result = filter(*passed, *plain(given), **plain(named))
            if isinstance(result, str):
                result = self._stand_ins.mark(str(result))
            return self._allowance.made(result)

        return functools.update_wrapper(marked, filter)

    def _length(self, value: Any) -> int:
        return len(value)

    def _join(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        items = self._each(value)
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        return self._strings.join(self._strings.text(d), map(self._strings.text, items))

    def _sum(self, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        items = self._each(value)
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        return functools.reduce(self._added, items, start)

    def _round(self, value: Any, precision: Any = 0, method: str = "common") -> Any:
        self._require_small(abs(precision), 64)
        return FILTERS["round"](value, precision, method)

    def _indent(self, value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> str:
        text = self._strings.text(value)
        columns = len(width) if isinstance(width, str) else width
        self._allowance.require(4 * (len(self._strings.splitlines(text)) + 1) * columns)
        return str(self._allowance.made(FILTERS["indent"](text, width, first, blank)))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """Plain JSON: jinja2's own filter escapes for HTML, which a model was not trained on."""
        size = self._allowance.measure((value, separators))
        columns = indent if isinstance(indent, int) else len(indent or "")
        if columns > _WIDEST_INDENT:
            raise LimitError(f"it indents JSON by more than the limit of {_WIDEST_INDENT}")
        between = sum(map(len, separators or ())) + 2 + columns * size.depth
        self._allowance.require(6 * size.bytes + between * size.nodes)
        made = json.dumps(
            value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if ensure_ascii:
            made = "".join(
                c if c.isascii() or self._stand_ins.plain(c) != c else json.dumps(c)[1:-1]
                for c in made
            )
        return str(self._allowance.made(made))

    def _tests(self) -> dict[str, Callable[..., Any]]:
        text, computed = self._strings.text, functools.partial(self.call_binop, None)
        own: dict[str, Callable[..., Any]] = {
            "odd": lambda value: computed("%", value, 2) == 1,
            "even": lambda value: computed("%", value, 2) == 0,
            "divisibleby": lambda value, number: computed("%", value, number) == 0,
            "lower": lambda value: text(value).islower(),
            "upper": lambda value: text(value).isupper(),
            "in": lambda value, container: self._holds(value, "in", container),
        }
        for names in _COMPARING_TESTS:
            for name in names:
                own[name] = functools.partial(self._holding, names[-1])
        return {**TESTS, **own}  # type: ignore[dict-item]

    def _holding(self, sign: str, left: Any, right: Any) -> bool:
        return self._holds(left, sign, right)


class Function:
    """What a template may call, and see nothing of but that."""

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._function, self._arguments = function, arguments

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function(*self._arguments, *arguments, **named)


class _Namespace(Namespace):
    """One that does not print what it holds, which may be itself, or without end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Generation(Extension):
    """{% generation %} marks what the assistant has said, for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Rewriter(NodeTransformer):
    """Makes filters of what jinja2 would compile to operators of Python, which nothing counts."""

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int) and node.value > _LARGEST:  # many may have one hash
            raise TemplateAssertionError("a number over the limit of 64 bits", node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "~", node.nodes[0], *node.nodes[1:])

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        # All terms at once: so a text does not grow by copies of itself.
        terms: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            terms.insert(0, self.visit(left.right))
            left = left.left
        return _filtered(node, "+", self.visit(left), *terms)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operands = [n for op in node.ops for n in (nodes.Const(op.op), op.expr)]
        return _filtered(node, "==", node.expr, *operands)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "[]", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "[]", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, "[]", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered(node, "[:]", node.node, *(b or nodes.Const(None) for b in bounds))

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node, "for", node.iter)
        return node

    def _refuse(self, node: nodes.Node) -> NoReturn:
        tag = _REFUSED[type(node)]
        what = f"a chat template stands alone, without {{% {tag} %}}"
        raise TemplateAssertionError(what, node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refuse
    visit_ScopedEvalContextModifier = _refuse


_REFUSED: dict[type[nodes.Node], str] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.ScopedEvalContextModifier: "autoescape",
}


def _filtered(of: nodes.Node, name: str, value: Any, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(arguments), [], None, None, lineno=of.lineno)


# Names of a test, and the sign of its comparison at the end.
_COMPARING_TESTS = (
    ("==", "equalto", "eq"),
    ("!=", "ne"),
    (">", "greaterthan", "gt"),
    (">=", "ge", "gteq"),
    ("<", "lessthan", "lt"),
    ("<=", "le", "lteq"),
)

_COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}


def _range(*bounds: int) -> range:
    if any(abs(bound) > _LARGEST for bound in bounds):
        raise LimitError("it computes numbers over the limit of 64 bits")
    try:
        return safe_range(*bounds)
    except OverflowError as error:
        raise LimitError(str(error)) from None


def _strftime_now(form: str) -> str:
    if len(form) > _LONGEST_DATE:
        raise LimitError(f"it formats a date by more than the limit of {_LONGEST_DATE} characters")
    return datetime.now().strftime(form)
