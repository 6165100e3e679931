"""Ends of documents: found within counted work, and short."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from canvaslm.constrain.completion import Effort, completion
from canvaslm.constrain.matchers import Matcher, Matchers, takes

from .random_schemas import check_json
from .test_matchers import grammar
from .words import vocabulary

WORDS = vocabulary()
MATCHERS = Matchers.of(WORDS)


def matcher_of(schema: Any) -> Matcher:
    return MATCHERS.matcher(grammar(f"start: %json {json.dumps(schema)}"))


def end_of(matcher: Matcher, steps: int = 10_000) -> bytes | None:
    found = completion(MATCHERS, matcher, Effort(steps))
    return None if found is None else b"".join(WORDS.names[token] for token in found)


NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
    "required": ["v", "next"],
}
THREE = {"type": "array", "minItems": 3, "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "before", "most"),
    [
        ({}, b"", 1),
        ({}, b'{"a": [[[', 8),
        ({}, b'"abc', 1),
        (THREE, b"", 12),
        (THREE, b'["a"', 12),
        ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, b"", 24),
        ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, b'{"v":1,"next":{"v":2', 20),
        ({"type": "string", "minLength": 20}, b"", 22),
        ({"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}, b'"12', 8),
        ({"type": "string", "format": "date-time"}, b"", 24),
    ],
)
def test_ends_are_found_and_short(schema: Any, before: bytes, most: int) -> None:
    """In bytes; a wide bound for what has only one."""
    matcher = matcher_of(schema)
    assert takes(matcher, MATCHERS.symbols_of(MATCHERS.split(before)))
    end = end_of(matcher)
    assert end is not None and len(end) <= most
    check_json(before + end, schema)


def test_a_search_leaves_its_matcher_alone_and_finds_the_same_again() -> None:
    matcher = matcher_of(THREE)
    assert end_of(matcher) == end_of(matcher)
    assert takes(matcher, list(b"["))


def test_work_is_counted() -> None:
    """A search without an end takes what it was given and no more; a clock stops one that has more."""
    endless = MATCHERS.matcher(grammar('start: "a" start'))
    effort = Effort(500)
    assert completion(MATCHERS, endless, effort) is None
    assert effort.steps == -1
    asked = itertools.count()
    effort = Effort(10**9, stopped=lambda: next(asked) >= 50)
    assert completion(MATCHERS, endless, effort) is None
    assert 50 < next(asked) < 100


def test_llguidances_words_are_kept_where_it_gave_up() -> None:
    effort = Effort(10**6)
    wide = MATCHERS.matcher(grammar("start: " + " | ".join(f'"a{i}"' for i in range(3000))))
    assert completion(MATCHERS, wide, effort) is None
    assert "items" in effort.said
