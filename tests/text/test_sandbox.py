from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from canvaslm.errors import BadTemplate, CanvasError, UsageError
from canvaslm.text.chat import ChatTemplate
from canvaslm.text.limits import Meter
from canvaslm.text.sandbox import Sandbox, compile_template, run_template

from ..work import peak_bytes_of

X = "{% set x = 'x' * 1000000 %}"
LAUGHS = (
    "{% set ns = namespace(a=['lol'], b=['lol']) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)

BOMBS = {
    "times": "{{ 'x' * 10000000000 }}",
    "times list": "{{ [0] * 10000000000 }}",
    "times times": "{{ 'x' * 100000 * 100000 }}",
    "reversed times": "{{ 9999999999 * 'x' }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "negative power": "{{ 10 ** -99999999999 }}",
    "squares": (
        "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "sum of longs": (
        "{% set ns = namespace(x=3) %}{% for i in range(99999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
    ),
    "width": "{{ '%10000000000d' % 1 }}",
    "precision": "{{ '%.1000000000f' % 1 }}",
    "star width": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000s'|format(1) }}",
    "format method": "{{ '{:>1000000000}'.format(1) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "center": "{{ 'x'|center(10000000000) }}",
    "center method": "{{ 'x'.center(10000000000) }}",
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "zfill": "{{ '1'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "encode": "{{ 'x'.encode() }}",
    "translate": "{{ 'x'.translate({120: 'yyyy'}) }}",
    "indent": "{{ 'x\ny'|indent(10000000000) }}",
    "indent lines": "{{ ('\n' * 1000000)|indent(1000) }}",
    "tojson indent": "{{ [1]|tojson(indent=10000000000) }}",
    "tojson separators": "{{ [1, 2]|tojson(separators=('x' * 1000000, ':')) }}",
    "replace": X + "{{ x|replace('x', x) }}",
    "replace nothing": X + "{{ x|replace('', x) }}",
    "replace method": X + "{{ x.replace('x', x) }}",
    "join": X + "{{ range(100000)|join(x) }}",
    "join method": X + "{{ x.join(['a'] * 100000) }}",
    "tilde": (
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    ),
    "plus": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "plus lists": (
        "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    ),
    "sum of lists": "{{ ([[1] * 10000] * 100000)|sum(start=[]) }}",
    "set block": X + "{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}",
    "literal in loop": "{% set y %}{% for i in range(99999) %}{% for j in range(9999) %}"
    + "x" * 9999
    + "{% endfor %}{% endfor %}{% endset %}",
    "macro output": X
    + (
        "{% macro m(n) %}{{ x }}{{ x }}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
        "{{ m(40) }}"
    ),
    "literal macro": "{% macro m(n) %}"
    + "x" * 999
    + "{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{% set y = m(40) %}",
    "output": X + "{% for i in range(99999) %}{{ x }}{% endfor %}",
    "laughs printed": LAUGHS + "{{ ns.a }}",
    "laughs compared": LAUGHS + "{{ ns.a == ns.b }}",
    "laughs as json": LAUGHS + "{{ ns.a|tojson }}",
    "laughs hashed": (
        "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}"
        "{% endfor %}{{ {ns.a: 1} }}"
    ),
    "range": "{{ range(10000000000)|list }}",
    "nested ranges": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "filtered loop": (
        "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}"
    ),
    "recursive loop": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "fibonacci": (
        "{% macro f(n) %}{% if n > 1 %}{{ f(n - 1) }}{{ f(n - 2) }}{% endif %}{% endmacro %}{{ f(90) }}"
    ),
    "call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 60
    + "x"
    + "{% endcall %}" * 60,
    "slice": "{{ [1]|slice(10000000000)|list }}",
    "batch": "{{ [1]|batch(10000000000, 'x')|list }}",
    "round": "{{ 5|round(-10000000000) }}",
    "round floor": "{{ 5|round(10000000000, 'floor') }}",
    "select in": (
        "{% set l = range(50000)|list %}{% for i in range(999) %}"
        "{{ range(99999)|select('in', l)|list|length }}{% endfor %}"
    ),
    "compare long": "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}{{ a[1:] == a[:-1] }}{% endfor %}",
    "search backwards": "{% set a = 'a' * 4000000 %}{{ a.rfind('b' + a[2000000:]) }}",
    "split": "{{ ('a ' * 4000000).split() }}",
    "many lists": "{% for i in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "strftime": "{{ strftime_now('%1000000000Y') }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "cycle": X + "{% for i in range(99999) %}{% set ns = [x] * 10 %}{{ loop.cycle(*ns) }}{% endfor %}",
}

ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr": "{{ (''|attr('__class__')).mro() }}",
    "item": "{{ ''['__class__'] }}{{ ''['__class__']['__base__'] }}",
    "globals": "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['os'] }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "namespace": "{{ namespace.__init__.__globals__['sys'] }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "environment": "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.environment.meter }}",
    "mutate": "{{ messages.append(1) }}",
    "mutate dict": "{{ messages[0].update({'role': 'x'}) }}",
    "mutate clear": "{{ messages.clear() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "from": "{% from 'x' import y %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "map attribute": (
        "{{ ['']|map(attribute='__class__')|list|first|attr('mro') }}"
        "{{ [''|attr('__class__')]|list|first.mro() }}"
    ),
    "printed object": "{{ loop }}{{ range }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on by a millisecond whenever it is read, so that only the work counts."""
    readings = itertools.count()
    monkeypatch.setattr("canvaslm.text.limits.time", SimpleNamespace(monotonic=lambda: next(readings) / 1000))
    with pytest.raises(BadTemplate):
        ChatTemplate(BOMBS[name], seconds=0.5).render("hi")
    assert next(readings) <= 510  # 501 is the first too late; leaving the template looks again


def test_bombs_take_little_memory() -> None:
    """All bombs in a process of its own; peak resident memory beyond the start, in MiB."""
    code = """
        import resource
        from canvaslm.errors import CanvasError
        from canvaslm.text.chat import ChatTemplate
        from tests.text.test_sandbox import BOMBS
        ChatTemplate().render("hi")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for source in BOMBS.values():
            try:
                ChatTemplate(source, seconds=0.2).render("hi")
            except CanvasError:
                pass
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 400


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_fail(name: str) -> None:
    with pytest.raises(BadTemplate):
        ChatTemplate(ESCAPES[name]).render("hi")


def test_bombs_stop_in_any_thread() -> None:
    caught: list[CanvasError] = []

    def render() -> None:
        try:
            ChatTemplate(BOMBS["nested ranges"], seconds=0.3).render("hi")
        except CanvasError as error:
            caught.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(20)
    assert [type(e) for e in caught] == [BadTemplate]


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ x",
        "{% macro %}",
        "{{ 'a'|nofilter }}",
        "{{ 1 is notest }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 50000 + "1 }}",
        "{{ " + "1+" * 20000 + "1 }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "{{ " + "9" * 10000 + " }}",
        "x" * (300 << 10),
    ],
)
def test_broken_templates_are_refused_when_loaded(source: str) -> None:
    with pytest.raises(BadTemplate):
        ChatTemplate(source).render("hi")


def test_syntax_errors_name_the_line() -> None:
    with pytest.raises(BadTemplate, match="line 3"):
        ChatTemplate("a\nb\n{% endfor %}")


@pytest.mark.parametrize("source", ["{{ a.b.c }}", "{{ 1 / 0 }}", "{{ [1][{}] + 1 }}", "{{ messages() }}"])
def test_failing_templates(source: str) -> None:
    with pytest.raises(BadTemplate):
        ChatTemplate(source).render("hi")


def test_raise_exception_is_the_user_s_error() -> None:
    with pytest.raises(UsageError, match="roles must alternate <x>"):
        ChatTemplate("{{ raise_exception('roles must alternate ' + messages[0].content) }}").render("<x>")


# -- what harmless templates use works as in plain Jinja -----------------------------------------------------

HARMLESS = [
    (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m.role }}{% if not loop.last %}"
        ",{% endif %}{% endfor %}"
    ),
    "{% for m in messages if m.role == 'user' %}{{ m.content|trim }}{% else %}none{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0]|dictsort }}",
    (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}"
        "{% endfor %}"
    ),
    (
        "{% for i in [[1, [2]], [3]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}"
        "{% endif %}{% endfor %}"
    ),
    (
        "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.s = ns.s ~ m.role ~ ns.n %}{% endfor %}{{ ns.s }}"
    ),
    (
        "{{ messages|map(attribute='role')|join(', ') }} "
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
    ),
    (
        "{{ [3, 1, 2]|sort|join }}{{ [3, 1]|sum }}{{ [[1], [2]]|sum(start=[]) }}{{ 'a,b'.split(',')[-1] }}"
        "{{ 'x'.join(['a', 'b']) }}"
    ),
    (
        "{{ messages|tojson }}\n{{ messages[0]|tojson(indent=2) }}"
        "{{ {'a': 1, 'b': None}|tojson(separators=(',', ':')) }}"
    ),
    (
        "{{ 'a%sb%03d' % ('x', 7) }}{{ '%s-%s'|format(1, 2) }}{{ 'ab' * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}"
        "{{ 2 ** 10 }}{{ 1.5 + 2 }}"
    ),
    (
        "{% macro m(a, b=2) %}[{{ a }}{{ b }}{{ caller() if caller else '' }}]{% endmacro %}{{ m(1) }}"
        "{% call m(3, b=4) %}c{% endcall %}"
    ),
    (
        "{% set x %}  set {{ messages[0].role }} {% endset %}{{ x|upper|trim }}{% filter upper %}"
        "abc{% endfilter %}"
    ),
    (
        "{{ messages[1:]|length }}{{ messages[::-1][0].role }}{{ 'abc'[1:] }}{{ messages|last }}"
        "{{ missing|default('d') }}"
    ),
    (
        "{{ 'a' if messages else 'b' }}{{ messages[0].content is string }}{{ 1 in [1, 2] }}"
        "{{ 'x' not in 'abc' }}{{ 1 < 2 <= 2 }}"
    ),
    (
        "{{ 'x < y & \"z\"'|e }}{{ 'a b/c'|urlencode }}{{ 'abc'|replace('b', 'xx') }}{{ 'a\nb'|indent(2) }}"
        "{{ 'ab'|center(6) }}|"
    ),
    (
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ dict(a=1) }}{{ (1, 2) }}"
        "{{ {'k': [1]} }}{{ none }}{{ true }}"
    ),
    (
        "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% for a, b in [[1, 2]] %}{{ a + b }}{% endfor %}"
        "{{ range(3)|list }}{{ range(5, 0, -2)|join }}"
    ),
    "{%- if tools -%} tools {%- endif %}\n  {% if true %}\n    x\n  {% endif %}\ny {#- comment -#} z",
    (
        "{{ [1, 2, 3, 4]|batch(2)|list }}{{ [1, 2, 3]|slice(2)|list }}"
        "{{ messages|groupby('role')|map('first')|list }}{{ [1, 1]|unique|list }}"
    ),
    (
        "{{ '\u1e9e'|lower }}{{ 'a b'|title }}{{ 3.14159|round(2) }}{{ '7'|int + 1 }}{{ 'abc'|first }}"
        "{{ [1, none]|reject('none')|list }}"
    ),
    (
        "{{ {'a': 1}.keys()|join }}{{ {'b': 2}.values()|list }}{{ messages[0].content.startswith('h') }}"
        "{{ ' x '.strip() }}{{ 'aXbX'.rsplit('X', 1) }}{{ 'a\nb'.splitlines() }}{{ 'abc'.find('c') }}"
    ),
]


@pytest.mark.parametrize("source", HARMLESS)
def test_harmless_templates_render_as_in_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "hello <b> | there"},
        {"role": "assistant", "content": "  hi "},
        {"role": "user", "content": "é漢😀"},
    ]
    plain = utils._compile_jinja_template(source).render(messages=messages, tools=None)
    assert "".join(ChatTemplate(source).render(messages)) == plain


def test_constants_are_not_folded_when_compiling() -> None:
    source = "{{ 'x'|center(2000000000) }}{{ 'x' * 2000000000 }}{% set y = 'x'|center(2000000000) %}"
    assert peak_bytes_of(lambda: compile_template(source)) < 10_000_000


def test_the_environment_is_jinja_s_immutable_sandbox() -> None:
    environment = Sandbox(Meter(1000, 10_000, 1.0))
    assert isinstance(environment, jinja2.sandbox.ImmutableSandboxedEnvironment)
    assert run_template(compile_template("{{ 1 + 1 }}"), environment, {}, 10) == "2"
    with pytest.raises(BadTemplate, match="more than 10 characters"):
        run_template(compile_template("{{ 'x' * 11 }}"), environment, {}, 10)
