"""Limits of size and depth, checked before any parser recurses."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from canvaslm.constrain.limits import (
    GRAMMAR_BYTES,
    GRAMMAR_NESTING,
    SCHEMA_BYTES,
    SCHEMA_DEPTH,
    check_document,
    check_nesting,
    check_text,
    on_a_deep_stack,
)
from canvaslm.errors import UsageError


def nested(levels: int, kind: str = "object") -> Any:
    document: Any = {}
    for _ in range(levels):
        document = {"not": document} if kind == "object" else [document]
    return document


def test_a_schema_within_the_limits_comes_back_as_text() -> None:
    document = {"type": "object", "title": "ключ", "enum": [1, 2.5, None, True]}
    assert json.loads(check_document(document, "schema")) == document
    check_document(nested(SCHEMA_DEPTH - 1), "schema")


@pytest.mark.parametrize("kind", ["object", "array"])
@pytest.mark.parametrize("levels", [SCHEMA_DEPTH + 1, 2000, 100_000])
def test_depth_is_counted_without_recursion(kind: str, levels: int) -> None:
    with pytest.raises(UsageError, match="deep") as caught:
        check_document(nested(levels, kind), "schema")
    assert caught.value.param == "schema"


def test_what_contains_itself_is_too_deep() -> None:
    circle: dict[str, Any] = {}
    circle["not"] = circle
    with pytest.raises(UsageError, match="deep"):
        check_document(circle, "schema")
    many: list[Any] = []
    many += [many] * 100  # would be 100 ** 64 values
    with pytest.raises(UsageError, match="values"):
        check_document(many, "schema")


@pytest.mark.parametrize(
    "document",
    [{"a": "x" * SCHEMA_BYTES}, {"enum": list(range(SCHEMA_BYTES))}, {"a": "é" * (SCHEMA_BYTES // 2)}],
)
def test_size_is_limited(document: Any) -> None:
    with pytest.raises(UsageError, match="65,536"):
        check_document(document, "schema")


@pytest.mark.parametrize(
    "document",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {1: "a"},
        {"a": {2}},
        {"a": b"x"},
        {"a": "\ud800"},
        {"\udfff": 1},
    ],
)
def test_what_is_no_json_is_refused(document: Any) -> None:
    with pytest.raises(UsageError, match="not JSON"):
        check_document(document, "schema")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (7, "must be a text"),
        (b"root", "must be a text"),
        ("x" * (GRAMMAR_BYTES + 1), "65,537 bytes"),
        ("\ud800", "surrogate"),
        ("a\0", "NUL"),
    ],
)
def test_texts_are_checked(text: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_text(text, "grammar")
    assert caught.value.param == "grammar"


def test_a_text_within_the_limits_is_itself() -> None:
    assert check_text('root ::= "ü"', "grammar") == 'root ::= "ü"'


@pytest.mark.parametrize("pair", ["()", "[]", "{}"])
def test_brackets_nest_so_deep_and_no_deeper(pair: str) -> None:
    check_nesting((pair[0] * GRAMMAR_NESTING + pair[1] * GRAMMAR_NESTING) * 3, "grammar")
    with pytest.raises(UsageError, match="nested"):
        check_nesting(pair[0] * (GRAMMAR_NESTING + 1), "grammar")


def test_work_on_a_deep_stack() -> None:
    """Returns, raises, and leaves the setting for other threads as it was."""
    before = threading.stack_size()
    assert on_a_deep_stack(lambda: threading.current_thread()) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        on_a_deep_stack(lambda: 1 // 0)
    assert threading.stack_size() == before
