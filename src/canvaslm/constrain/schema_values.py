"""Strings and numbers of a JSON schema: their keywords, read and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from ..errors import UsageError
from .expression import Expression, never
from .notation import Notation
from .schema_document import SchemaDocument, step
from .schema_numbers import FRACTION, MAX_DIGITS, integers, numbers
from .schema_strings import FORMATS, MAX_LENGTH, OTHER_FORMATS, of_format, of_length, of_pattern

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_LARGEST = 10**9  # of an open bound: beyond, six decimals may round onto it


class SchemaContext(Protocol):
    """What reads a keyword's value and says that nothing can be written."""

    document: SchemaDocument
    notation: Notation

    def count(self, schema: Mapping[str, Any], key: str, pointer: str, default: int) -> int:
        """A keyword that is a whole number, 0 or more."""

    def nothing(self, pointer: str, why: str) -> Expression:
        """NEVER, with its reason kept."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


CHECKS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and value == int(value),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list | tuple),
}


def string_of(context: SchemaContext, schema: Mapping[str, Any], pointer: str) -> Expression:
    """The strings that `minLength`, `maxLength`, `pattern` and `format` allow."""
    least, most = (
        context.count(schema, "minLength", pointer, 0),
        context.count(schema, "maxLength", pointer, -1),
    )
    named = schema.get("format") if schema.get("format") in {*FORMATS, *OTHER_FORMATS} else None
    if "pattern" in schema or named is not None:
        if least > 1 or most >= 0 or ("pattern" in schema and (least or named is not None)):
            raise context.document.unsupported(pointer, "a pattern or a format beside other conditions")
        if "pattern" in schema:
            return _pattern(context, schema["pattern"], step(pointer, "pattern"))
        if named in OTHER_FORMATS:
            raise context.document.unsupported(step(pointer, "format"), f"format {named!r} is not supported")
        return context.notation.string(of_format(str(named)))
    if most >= 0 and least > most:
        return context.nothing(pointer, "minLength is above maxLength")
    if least == 0 and most < 0:
        return context.notation.any_string
    if max(least, most) > MAX_LENGTH:
        raise context.document.unsupported(pointer, f"a length beyond {MAX_LENGTH} characters")
    return context.notation.string(of_length(least, None if most < 0 else most))


def _pattern(context: SchemaContext, pattern: Any, pointer: str) -> Expression:
    if not isinstance(pattern, str):
        raise context.document.error(pointer, "a string must stand here")
    try:
        return context.notation.string(of_pattern(pattern, context.document.param))
    except UsageError as error:
        raise context.document.unsupported(pointer, str(error)) from None


def number_of(context: SchemaContext, schema: Mapping[str, Any], pointer: str, *, whole: bool) -> Expression:
    """The numbers that `minimum` and its like allow."""
    if "multipleOf" in schema and not (whole and schema["multipleOf"] == 1):
        raise context.document.unsupported(step(pointer, "multipleOf"), "only 1 is, for whole numbers")
    bounds = {key: _decimal(context, schema[key], step(pointer, key)) for key in _BOUNDS if key in schema}
    low, low_open = _stricter(bounds.get("minimum"), bounds.get("exclusiveMinimum"), max)
    high, high_open = _stricter(bounds.get("maximum"), bounds.get("exclusiveMaximum"), min)
    if low is not None and high is not None and low > high:
        return context.nothing(pointer, "no number is within the bounds")
    if whole:
        first = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
        last = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
        if (first or 0) >= 10**MAX_DIGITS or (last or 0) <= -(10**MAX_DIGITS):
            raise context.document.unsupported(pointer, f"whole numbers beyond {MAX_DIGITS} digits")
        found = integers(first, last)
    else:
        for bound in (low, high):
            if bound is not None and (abs(bound) > _LARGEST or bound != round(bound, FRACTION)):
                raise context.document.unsupported(
                    pointer, f"a bound beyond {_LARGEST} or with more than {FRACTION} decimals"
                )
        found = numbers(low, high, low_open, high_open)
    return found if not never(found) else context.nothing(pointer, "no number is within the bounds")


def _decimal(context: SchemaContext, value: Any, pointer: str) -> Decimal:
    if not _is_number(value):
        raise context.document.error(pointer, "a number must stand here")
    return Decimal(str(value))


def _stricter(
    closed: Decimal | None, open_: Decimal | None, choose: Callable[[Decimal, Decimal], Decimal]
) -> tuple[Decimal | None, bool]:
    """The one that says more, and whether it is open: does not belong to the range."""
    if closed is None or open_ is None:
        return (open_, True) if closed is None else (closed, False)
    return choose(closed, open_), choose(closed, open_) == open_


__all__ = ["CHECKS", "SchemaContext", "number_of", "string_of"]
