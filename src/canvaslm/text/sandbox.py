"""A Jinja environment for chat templates of strangers: no way out, and no way to take all memory or time.

Jinja's immutable sandbox keeps templates away from Python's internals and from changing their input. It does
not bound what they compute; here every growing operation passes a `Meter` (see `canvaslm.text.limits`). To
that end the syntax tree is rewritten before it is compiled: loops, macros, assignments, comparisons, `~` and
literal containers call back. The dialect is that of transformers' chat templates (same whitespace rules,
`tojson`, `raise_exception`, `strftime_now`, `break`/`continue`, `{% generation %}`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from ..errors import BadTemplate
from .limits import MAX_INT_BITS, Meter
from .pricing import (
    FILTERS,
    check_method,
    format_size,
    repeat_size,
    sum_size,
    ticking_test,
)

MAX_SOURCE = 128 << 10  # characters; Gemma 4's template has 16 k; this many may take 2 s to compile
MAX_RANGE = 100_000
_CALLBACKS = frozenset({"tick", "passing", "weighed", "looped", "tilde"})


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks a model's text for training, renders its body."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Code(CodeGenerator):
    """Calls our own callbacks directly: through the sandbox's `call` they would cost ten times as much."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        target = node.node
        if not isinstance(target, nodes.EnvironmentAttribute) or target.name not in _CALLBACKS:
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{target.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering; compiled code is shared between many (`compile_template`)."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, meter: Meter, filters: Mapping[str, Any] | None = None) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are folded at compile time, before anything is metered
            finalize=_finalize,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.meter = meter
        self.globals = {
            "range": self._range,
            "dict": dict,
            "namespace": Namespace,
            "joiner": Joiner,
            "cycler": Cycler,
        }
        chosen = {name: self.filters[name] for name in FILTERS} | dict(filters or {})
        self.tests = {name: ticking_test(self, test) for name, test in self.tests.items()}
        self.filters = {name: FILTERS[name](self, filter_) for name, filter_ in chosen.items()}

    # -- called from compiled templates ----------------------------------------------------------------------

    def tick(self, cost: int = 0) -> str:
        """At the start of every loop turn and macro; `cost` is the constant text in its body."""
        self.meter.tick(cost)
        return ""

    def passing(self, value: Any) -> Any:
        """Before a comparison or a slice, which may take a while over long text."""
        self.meter.tick(64)
        return value

    def weighed(self, value: Any) -> Any:
        """Around every literal container and every assigned value."""
        self.meter.weigh(value)
        return value

    def looped(self, value: Any) -> Any:
        """Around what a loop runs over. Iterators tick one by one; sized things keep their length."""
        self.meter.tick()
        return self.meter.each(value) if hasattr(value, "__next__") else value

    def tilde(self, *values: Any) -> str:
        """The operator `~`."""
        self.meter.price(sum(self.meter.weigh(v, printable=True) for v in values))
        return "".join(map(str, values))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A namespace holds only what the template put there; without the checks long
        chats render twice as fast."""
        if type(obj) is Namespace and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, priced before it runs."""
        if operator == "%" and isinstance(left, str):
            self.meter.price(format_size(self.meter, left, right))
        elif operator == "*":
            self.meter.price(repeat_size(self.meter, left, right))
        elif operator == "**":
            _check_power(left, right)
        elif operator == "+":
            return self.add(left, right)
        result = super().call_binop(context, operator, left, right)
        self.meter.weigh(result)
        return result

    def add(self, left: Any, right: Any) -> Any:
        """`left + right`, priced."""
        if not isinstance(left, (int, float)):
            self.meter.price(sum_size(self.meter, left, right))
        total = left + right
        self.meter.weigh(total)
        return total

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A function, macro or method; methods of strings and containers are priced or refused."""
        __self.meter.tick()
        args = check_method(__self.meter, __obj, args)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, (str, list, tuple, dict)):
            __self.meter.weigh(result)
        return result

    def _range(self, *args: int) -> range:
        found = range(*args)
        if len(found) > MAX_RANGE:
            raise BadTemplate(f"the chat template counts to {len(found)}; ranges end at {MAX_RANGE}.")
        return found


@jinja2.pass_environment
def _finalize(environment: Sandbox, value: Any) -> Any:
    """Every value on its way to the output."""
    environment.meter.price(environment.meter.weigh(value, printable=True))
    return value


def _check_power(base: Any, exponent: Any) -> None:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * abs(exponent) > MAX_INT_BITS
    ):
        raise BadTemplate(f"the chat template computes a number of more than {MAX_INT_BITS} bits.")


# -- compiling -----------------------------------------------------------------------------------------------


def compile_template(source: str) -> CodeType:
    """Code of a template, to be run with `run_template`. Raises BadTemplate with the line at fault."""
    if len(source) > MAX_SOURCE:
        raise BadTemplate(f"the chat template has {len(source)} characters; {MAX_SOURCE} are allowed.")
    environment = Sandbox(Meter(1, 1, 60.0))
    try:
        tree = environment.parse(source)
        _refuse_files(tree)
        tree = _Metered(environment).visit(tree)
        return environment.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        raise BadTemplate(f"the chat template is broken at line {error.lineno}: {error.message}") from error
    except (
        RecursionError,
        MemoryError,
        SyntaxError,
        ValueError,
        OverflowError,
        jinja2.TemplateError,
    ) as error:
        raise BadTemplate(f"the chat template cannot be compiled: {_short(error)}") from error


def _refuse_files(tree: nodes.Template) -> None:
    """Templates are single files, without inheritance."""
    kinds = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
    for node in tree.find_all(kinds):
        name = type(node).__name__.lower()
        raise BadTemplate(f"the chat template uses {name!r} at line {node.lineno}, which is not supported.")


class _Metered(NodeTransformer):
    """Inserts the callbacks of `Sandbox` into a syntax tree."""

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment

    def _callback(self, name: str, args: list[Any], lineno: int) -> nodes.Call:
        node = nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)
        node.set_lineno(lineno)
        node.set_environment(self._environment)
        return node

    def _with_tick(self, node: Any) -> Any:
        """Starts a body with a tick that pays for the constant text in it."""
        cost = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        call = self._callback("tick", [nodes.Const(cost)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno, environment=self._environment))
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self._with_tick(node)
        node.iter = self._callback("looped", [node.iter], node.lineno)
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = _with_tick

    def _weighed(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return self._callback("weighed", [node], node.lineno)

    visit_List = visit_Dict = _weighed

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        if node.ctx != "load":  # the target of an assignment or a loop
            return node
        return self._weighed(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        self.generic_visit(node)
        node.node = self._callback("weighed", [node.node], node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._callback("passing", [node.expr], node.lineno)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._callback("passing", [node.node], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._callback("tilde", list(node.nodes), node.lineno)


# -- running -------------------------------------------------------------------------------------------------


def run_template(code: CodeType, environment: Sandbox, variables: Mapping[str, Any], limit: int) -> str:
    """Renders compiled code with `environment`'s allowance; the output has at most `limit` characters.

    Raises BadTemplate; other CanvasErrors that the template's functions raise pass through.
    """
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    try:
        return _joined(template.generate(variables), environment.meter, limit)
    except jinja2.TemplateError as error:
        raise BadTemplate(f"the chat template failed: {_short(error)}") from error
    except RecursionError as error:
        raise BadTemplate("the chat template calls itself too deeply.") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise BadTemplate(f"the chat template failed: {type(error).__name__}: {_short(error)}") from error


def _joined(chunks: Iterable[str], meter: Meter, limit: int) -> str:
    parts: list[str] = []
    size = 0
    for chunk in chunks:
        meter.tick()
        size += len(chunk)
        if size > limit:
            raise BadTemplate(f"the chat template writes more than {limit} characters for these messages.")
        parts.append(chunk)
    return "".join(parts)


def _short(error: BaseException) -> str:
    return str(error)[:200]


__all__ = ["MAX_RANGE", "MAX_SOURCE", "GenerationTag", "Sandbox", "compile_template", "run_template"]
