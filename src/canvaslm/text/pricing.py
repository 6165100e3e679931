"""What the filters, methods and operators of a chat template may cost, told before they run.

Only what is listed here can be used: Jinja's other filters and Python's other methods are refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, MappingView
from typing import Any, Protocol, cast

from jinja2 import Environment
from jinja2.filters import make_attrgetter
from markupsafe import Markup

from ..errors import BadTemplate
from .limits import MAX_INT_BITS, SLOT, Meter

_CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+)?)?")
_ESCAPED = 6  # one character may become `&#39;`

Size = Callable[..., int]


class Pricing(Protocol):
    """What filters and tests need of the environment that they run in: the meter, and an
    addition that is priced."""

    meter: Meter

    def add(self, left: Any, right: Any) -> Any:
        """`left + right`, priced."""


def _times(value: Any) -> int:
    return _ESCAPED if isinstance(value, Markup) else 1


def _text_size(meter: Meter, value: Any) -> int:
    return meter.weigh(value, printable=True)


# -- operators -----------------------------------------------------------------------------------------------


def sum_size(meter: Meter, left: Any, right: Any) -> int:
    """`left + right` of strings or lists."""
    return (meter.weigh(left) + meter.weigh(right)) * max(_times(left), _times(right))


def repeat_size(meter: Meter, left: Any, right: Any) -> int:
    """`left * right`. Raises BadTemplate on numbers that grow too long."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_INT_BITS:
            raise BadTemplate(f"the chat template computes a number of more than {MAX_INT_BITS} bits.")
        return 0
    if isinstance(left, int):
        left, right = right, left
    return meter.weigh(left) * max(0, right) if isinstance(right, int) else 0


def format_size(meter: Meter, text: Any, values: Any) -> int:
    """`text % values`: the widths and precisions asked for, and each value once per
    conversion that could use it."""
    text = str(text)
    conversions = list(_CONVERSION.finditer(text))
    asked = [group for match in conversions for group in match.groups() if group]
    if "*" in asked:
        raise BadTemplate("the chat template formats with a width of '*', which is not supported.")
    uses = len(conversions) if isinstance(values, dict) else 1
    size = len(text) + sum(map(int, asked)) + 400 * len(conversions)
    return (size + uses * meter.weigh(values, printable=True)) * _ESCAPED


# -- filters -------------------------------------------------------------------------------------------------


def _nothing(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    return 0


def _linear(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    return 3 * meter.weigh(value) + meter.weigh(args) + meter.weigh(kwargs)


def _printed(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _text_size(meter, value)


def _escaped(meter: Meter, value: Any) -> int:
    return 9 * _text_size(meter, value)


def _join(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> int:
    return _text_size(meter, value) + (len(value) + 1) * _text_size(meter, d)


def _replace(meter: Meter, value: Any, old: Any, new: Any, count: Any = None) -> int:
    value = value if isinstance(value, str) else " " * _text_size(meter, value)
    return replaced_size(value, str(old), str(new)) * _times(value)


def _center(meter: Meter, value: Any, width: int = 80) -> int:
    return _text_size(meter, value) + _count(width)


def _indent(meter: Meter, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    lines = str(s).count("\n") + 2 if isinstance(s, str) else _text_size(meter, s)
    return _text_size(meter, s) + lines * (len(width) if isinstance(width, str) else _count(width))


def _batch(meter: Meter, value: Any, count: int, fill_with: Any = None) -> int:
    return meter.weigh(value) + (len(value) + _count(count)) * SLOT + _count(count) * meter.weigh(fill_with)


def _round(meter: Meter, value: Any, precision: int = 0, method: str = "common") -> int:
    if abs(precision) > 64:
        raise BadTemplate("the chat template rounds to more than 64 digits.")
    return 0


def _formatted(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> int:
    return format_size(meter, value, kwargs or args)


def _count(number: Any) -> int:
    return max(0, number) if isinstance(number, int) else 0


def _filter(size: Size) -> Callable[[Pricing, Any], Any]:
    """A wrapper for one of Jinja's filters: iterators are listed, the result is
    priced, then the filter runs."""

    def make(environment: Pricing, function: Any) -> Any:
        lead = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or the environment comes first
        meter = environment.meter

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[lead], args[lead + 1 :]
            if hasattr(value, "__next__") or isinstance(value, MappingView):
                value = meter.listed(value)
            meter.price(size(meter, value, *rest, **kwargs) if size is not _nothing else 0)
            result = function(*args[:lead], value, *rest, **kwargs)
            if hasattr(result, "__next__"):
                return iter(meter.listed(result))
            if size is not _nothing:
                meter.weigh(result)
            return result

        return run

    return make


def _sum_filter(environment: Pricing, function: Any) -> Any:
    """`sum`, one priced addition at a time: it adds up lists as well."""

    def run(value: Any, attribute: Any = None, start: Any = 0) -> Any:
        get: Any = (
            (lambda item: item)
            if attribute is None
            else make_attrgetter(cast(Environment, environment), attribute)
        )
        total = start
        for item in environment.meter.each(value):
            total = environment.add(total, get(item))
        return total

    return run


def ticking_test(environment: Pricing, function: Any) -> Any:
    """A test (`is ...`) that looks at the clock: `in` may search long text, and
    `select` runs tests many times."""
    meter = environment.meter

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter.tick(64)
        return function(*args, **kwargs)

    return run


def _named(names: str, size: Size) -> dict[str, Any]:
    return dict.fromkeys(names.split(), _filter(size))


FILTERS: dict[str, Callable[[Pricing, Any], Any]] = {
    **_named("abs attr count d default first last length safe", _nothing),
    **_named("dictsort float groupby int items list map max min reject rejectattr reverse", _linear),
    **_named("select selectattr sort truncate unique", _linear),
    **_named("capitalize lower string title tojson trim upper wordcount", _printed),
    **_named("e escape forceescape urlencode", _escaped),
    **_named("batch slice", _batch),
    "center": _filter(_center),
    "format": _filter(_formatted),
    "indent": _filter(_indent),
    "join": _filter(_join),
    "replace": _filter(_replace),
    "round": _filter(_round),
    "sum": _sum_filter,
}


# -- methods -------------------------------------------------------------------------------------------------


def replaced_size(text: str, old: str, new: str) -> int:
    """The length of `text.replace(old, new)`, or more."""
    found = text.count(old) if old else len(text) + 1
    return len(text) + found * len(new)


def _same_size(meter: Meter, text: str, *args: Any) -> int:
    return 3 * len(text)


def _backwards(meter: Meter, text: str, part: Any = " ", *args: Any) -> int:
    """Python searches backwards in time proportional to both lengths; forwards it is cleverer."""
    meter.tick(len(text) * len(part) // 16 if isinstance(part, str) else 0)
    return 3 * len(text)


def _split(meter: Meter, text: str, sep: Any = None, *args: Any) -> int:
    pieces = text.count(sep) if isinstance(sep, str) and sep else len(text.split(None, 1)) and len(text) // 2
    return len(text) + SLOT * (pieces + 1)


def _rsplit(meter: Meter, text: str, sep: Any = None, *args: Any) -> int:
    return _backwards(meter, text, sep if isinstance(sep, str) else " ") + _split(meter, text, sep)


def _lines(meter: Meter, text: str, *args: Any) -> int:
    return len(text) + SLOT * (len(text) // 8 + text.count("\n") + 1)


def _method_replace(meter: Meter, text: str, old: Any = "", new: Any = "", *args: Any) -> int:
    return replaced_size(text, str(old), str(new)) * _times(text)


def _method_join(meter: Meter, text: str, values: Any = ()) -> int:
    return (meter.weigh(values) + len(values) * len(text)) * _times(text)


def _padded(meter: Meter, text: str, width: Any = 0, *args: Any) -> int:
    return len(text) + _count(width)


def _methods(names: str, size: Size) -> dict[str, Size]:
    return dict.fromkeys(names.split(), size)


_STRING_METHODS: dict[str, Size] = {
    **_methods("capitalize casefold count endswith find index isalnum isalpha isascii isdecimal", _same_size),
    **_methods("isdigit isidentifier islower isnumeric isspace istitle isupper lower lstrip", _same_size),
    **_methods(
        "partition removeprefix removesuffix rstrip startswith strip swapcase title upper", _same_size
    ),
    **_methods("rfind rindex rpartition", _backwards),
    **_methods("center ljust rjust zfill", _padded),
    "join": _method_join,
    "replace": _method_replace,
    "rsplit": _rsplit,
    "split": _split,
    "splitlines": _lines,
}
_OTHER_METHODS = frozenset(("get", "items", "keys", "values", "index", "count", "is_integer", "bit_length"))


def check_method(meter: Meter, function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Prices a method of a plain value or refuses it; anything else passes. Returns
    the arguments to call with.

    Raises BadTemplate. (`str.format` comes wrapped by Jinja's sandbox, hence `__wrapped__`.)
    """
    bound = getattr(function, "__wrapped__", function)
    owner = getattr(bound, "__self__", None)
    name = str(getattr(bound, "__name__", ""))
    if isinstance(owner, str):
        if name not in _STRING_METHODS:
            raise BadTemplate(f"the chat template calls str.{name}, which is not supported.")
        args = tuple(meter.listed(a) if hasattr(a, "__next__") else a for a in args)
        meter.price(_STRING_METHODS[name](meter, owner, *args))
    elif (
        isinstance(owner, (int, float, bytes, list, tuple, dict, range, type)) and name not in _OTHER_METHODS
    ):
        raise BadTemplate(f"the chat template calls {type(owner).__name__}.{name}, which is not supported.")
    return args


__all__ = [
    "FILTERS",
    "Pricing",
    "check_method",
    "format_size",
    "repeat_size",
    "replaced_size",
    "sum_size",
    "ticking_test",
]
