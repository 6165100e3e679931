"""How large a schema or a grammar may be, checked before any parser sees it, and what parsing it may cost.

Texts come from strangers. Parsers recurse: what is nested too deeply overflows a stack, and that ends the
process, not the request. So depth and size are counted here first, without recursion.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from ..errors import UsageError

SCHEMA_BYTES = 64 * 1024
GRAMMAR_BYTES = 64 * 1024
SCHEMA_DEPTH = 64  # objects and arrays within each other
GRAMMAR_RULES = 1000  # llguidance's GBNF reader takes time quadratic in them
GRAMMAR_NESTING = 64  # brackets within each other

# Keywords of llguidance's limits (`LLParserLimits`): items are those of its Earley parser.
# Errors that are not verbose do not repeat the grammar, which may be private.
PARSER: dict[str, Any] = {
    "max_items_in_row": 500,
    "step_max_items": 20_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

# `multipleOf` is a table of remainders: so many take half a second, and llguidance's limits count none.
MULTIPLES = 100_000

# llguidance recurses about 10 kB deep for each `$ref` that leads to another, and 64 KiB hold 1,800 of them;
# a thread's usual stack of 8 MiB ends at 800. The pages are only taken when they are used.
STACK_BYTES = 256 * 1024 * 1024

T = TypeVar("T")
_stack_size = threading.Lock()  # `threading.stack_size` is one setting for the process


def check_document(document: Any, field: str) -> str:
    """The JSON text of a schema or another document from outside, once its depth and size are known to be
    within the limits.

    Raises UsageError, with `field`, where it is too deep or too large or is no JSON.
    """
    _check_depth(document, field)
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        size = len(text.encode("utf-8"))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{field} is not JSON: {error}", field) from None
    if size > SCHEMA_BYTES:
        raise UsageError(f"{field} has {size:,} bytes, at most {SCHEMA_BYTES:,} are taken", field)
    return text


def check_multiples(document: Any, field: str) -> None:
    """Raises UsageError where the divisors of `multipleOf` are too large together, powers of ten aside.
    The document is within the limits of `check_document`."""
    total, rest = 0, [document]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest += value.values()
            divisor = value.get("multipleOf")
            if isinstance(divisor, int | float):
                total += int("".join(map(str, Decimal(str(divisor)).normalize().as_tuple().digits)))
        elif isinstance(value, list | tuple):
            rest += value
    if total > MULTIPLES:
        raise UsageError(
            f"{field} has multipleOf with divisors of {total:,} together, at most {MULTIPLES:,}", field
        )


def _check_depth(document: Any, field: str) -> None:
    """Raises UsageError for what is nested too deeply, contains itself, or holds what JSON does not."""
    level, depth = [document], 0
    seen = 0
    while level:
        if depth > SCHEMA_DEPTH:
            raise UsageError(f"{field} is nested more than {SCHEMA_DEPTH} levels deep", field)
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if not all(isinstance(key, str) for key in value):
                    raise UsageError(f"{field} is not JSON: keys must be strings", field)
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{field} is not JSON: {value} is no number there", field)
        seen += len(inner)
        if seen > SCHEMA_BYTES:  # each takes a byte of text at least
            raise UsageError(f"{field} has more than {SCHEMA_BYTES:,} values", field)
        level, depth = inner, depth + 1


def check_text(text: Any, field: str) -> str:
    """A grammar's text, if it is one within the limits. Raises UsageError, with `field`, otherwise."""
    if not isinstance(text, str):
        raise UsageError(f"{field} must be a text, not {type(text).__name__}", field)
    if not text.strip():
        raise UsageError(f"{field} is empty", field)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"{field} has half of a surrogate pair, which no UTF-8 can hold", field) from None
    if size > GRAMMAR_BYTES:
        raise UsageError(f"{field} has {size:,} bytes, at most {GRAMMAR_BYTES:,} are taken", field)
    if "\0" in text:
        raise UsageError(f"{field} has a NUL character", field)
    return text


def check_nesting(text: str, field: str) -> None:
    """Raises UsageError where brackets stand too deeply within each other.

    Those within strings and sets of characters count too, so that no way of quoting hides one: a grammar may
    well have single ones there, but not 64 more that open than close.
    """
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            if depth > GRAMMAR_NESTING:
                raise UsageError(
                    f"{field} has brackets nested more than {GRAMMAR_NESTING} deep: give parts a name", field
                )
        elif character in ")]}":
            depth = max(0, depth - 1)


def on_a_deep_stack(work: Callable[[], T]) -> T:
    """What `work` returns or raises, run on a thread whose stack nothing within the limits overflows."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="canvaslm-grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


__all__ = [
    "GRAMMAR_BYTES",
    "GRAMMAR_NESTING",
    "GRAMMAR_RULES",
    "MULTIPLES",
    "PARSER",
    "SCHEMA_BYTES",
    "SCHEMA_DEPTH",
    "STACK_BYTES",
    "check_document",
    "check_multiples",
    "check_nesting",
    "check_text",
    "on_a_deep_stack",
]
