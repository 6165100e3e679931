"""Grammars and schemas made to hurt: each ends in a message, or compiles; none in a crash or without end.

What they cost is bounded by counted work, so a test here that returns has shown what it must.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from canvaslm.constrain.grammar import SLOWEST, gbnf, json_schema, lark
from canvaslm.constrain.price import HIGHEST
from canvaslm.errors import UsageError

from .random_schemas import answer, check_json, noise, whole
from .words import vocabulary, written

WORDS = vocabulary()


def references(count: int, last: Any = True) -> dict[str, Any]:
    """`$ref`s in a row: 1,700 of them overflow a usual stack."""
    chain = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(count)}
    return {"$ref": "#/$defs/a0", "$defs": {**chain, f"a{count}": last}}


def doubling(levels: int) -> dict[str, Any]:
    """An object of 2 ** levels parts."""
    parts = {
        f"a{i}": {
            "type": "object",
            "properties": {key: {"$ref": f"#/$defs/a{i + 1}"} for key in "xy"},
            "required": ["x", "y"],
            "additionalProperties": False,
        }
        for i in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**parts, f"a{levels}": {"type": "null"}}}


ITSELF = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}
REFUSED_SCHEMAS: dict[str, tuple[Any, str]] = {
    "too many values": ({"enum": list(range(100_000))}, "values|bytes"),
    "a million of a": ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "no document"),
    "exponential": ({"type": "string", "pattern": "^(.*a){20}.*b.{500}$"}, "no document"),
    "doubling": (doubling(16), "no document"),
    "remote": ({"$ref": "http://localhost/schema"}, "not present"),
    "lookaround": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "not": ({"not": {"type": "string"}}, "not"),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
    "unique": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "unsatisfiable": ({"type": "integer", "minimum": 5, "maximum": 2}, "Unsatisfiable"),
    "false": (False, "accepts nothing"),
    "a list": ([], "must be an object"),
    "recursion without an end": ({"$ref": "#/$defs/a", "$defs": {"a": ITSELF}}, "no document"),
    "nothing but itself": ({"$ref": "#"}, "no document"),
    "a billion characters": ({"type": "string", "minLength": 10**9}, "no document"),
    "a billion items": ({"type": "array", "minItems": 10**9, "items": {"type": "null"}}, "no document"),
    "large divisor": ({"type": "integer", "multipleOf": 1_234_567}, "multipleOf"),
    "small divisor": ({"type": "number", "multipleOf": 0.0123457}, "multipleOf"),
    "many properties": ({"type": "object", "properties": {f"p{i}": {} for i in range(1500)}}, "items"),
    "keys that count twice": ({"type": "object", "minProperties": 2}, "minProperties"),
    "a type that is none": ({"type": "strin"}, "strin"),
    "nested": ({"a": [[[[{}] * 2] * 2] * 2] * 2, "not": {}}, "not"),
    "told to be lenient": ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
}  # fmt: skip
REFUSED_LARK = {
    "a million of a": (r"start: /(a{1000}){1000}/", "no document"),
    "a million rules": ('start: x{1000}\nx: y{1000}\ny: "a"', "no document"),
    "no end": ('start: "a" start', "no document"),
    "empty set": ("start: A\nA: /a+/ & /b+/", "no document"),
    "a control token that is none": ('start: "a" <|nothing|>', "nothing"),
    "an end within": ('start: "a" <[2]> "b"', "no document"),
    "undefined": ("start: x", "unknown name"),
    "no start": ('x: "a"', "no start"),
    "unclosed": ("start: (", "Expected"),
    "no JSON": ("start: %json {'a': 1}", "no JSON"),
    "a schema's divisor": ('start: %json {"type": "integer", "m\\u0075ltipleOf": 1234567}', "multipleOf"),
    "a deep schema": ("start: %json " + '{"not":' * 65 + "{}" + "}" * 65, "nested"),
    "brackets": ("start: " + "(" * 30_000, "nested"),
    "wide": ("start: " + " | ".join(f'"a{i}"' for i in range(3000)), "no document"),
    "lexer": ("start: /" + "[a-z]{1,30}" * 2000 + "/", "no document"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_SCHEMAS)
def test_schemas_that_are_refused(name: str) -> None:
    schema, words = REFUSED_SCHEMAS[name]
    with pytest.raises(UsageError, match=words) as caught:
        json_schema(schema, WORDS)
    assert caught.value.param == "schema"
    assert "schema" in str(caught.value) and len(str(caught.value)) < 450


@pytest.mark.parametrize("name", REFUSED_LARK)
def test_lark_that_is_refused(name: str) -> None:
    text, words = REFUSED_LARK[name]
    with pytest.raises(UsageError, match=words) as caught:
        lark(text, WORDS)
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "text", ['root ::= "a"{1000000000}', "root ::= root", 'root ::= "x" root', 'root ::= ("a"{1000}){1000}']
)
def test_gbnf_that_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        gbnf(text, WORDS)


@pytest.mark.parametrize(
    "schema",
    [
        references(300, {"type": "array", "minItems": 3, "items": {"enum": ["a", 1]}}),
        doubling(6),
        {"enum": [f"value {i}" for i in range(3000)]},
        {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"},
        {"type": "string", "pattern": "^(" + "|".join(f"a{i}b*" for i in range(3000)) + ")$"},
        {"type": "string", "minLength": 2000},
        {"type": "string", "format": "email"},
        {"anyOf": [{"properties": {f"p{i}": {"type": "null"}}, "required": [f"p{i}"]} for i in range(200)]},
    ],
    ids=[
        "to a list",
        "doubling",
        "values",
        "30 back",
        "alternatives",
        "long",
        "email",
        "any of",
    ],
)
def test_large_ones_that_work(schema: Any) -> None:
    """Compiled, and answered with noise."""
    compiled = json_schema(schema, WORDS)
    tokens = answer(compiled, 1, WORDS, 32, compiled.shortest + 30)
    check_json(written(tokens, WORDS), schema)


TOO_AMBIGUOUS = {
    "itself twice": 'start: s\ns: s s | "a" | "b"',
    "three times": 'start: s\ns: s s s | s s | "a" | "b"',
    "letters": "start: s\ns: s s | /[a-z]/",
    "a tree": "start: a0\n" + "\n".join(f"a{i}: a{i + 1}? a{i + 1}?" for i in range(30)) + '\na30: "a"',
}


@pytest.mark.parametrize("name", TOO_AMBIGUOUS)
def test_what_is_too_ambiguous_to_follow_is_refused(name: str) -> None:
    """By what llguidance counts, whatever the clock says."""
    with pytest.raises(UsageError, match="the grammar cannot be used: it is too ambiguous"):
        lark(TOO_AMBIGUOUS[name], WORDS)


def optional(count: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer"} for i in range(count)},
        "additionalProperties": False,
    }


ARITHMETIC = 'start: e\ne: e "+" e | e "-" e | e "*" e | "(" e ")" | /[a-z0-9]{1,3}/'


def test_prices() -> None:
    """Most pay 1; what is ambiguous, but bears reading, more."""
    prices = [json_schema(schema, WORDS).price for schema in (whole(3), optional(50), optional(100))]
    assert prices[0] == 1 < prices[1] < prices[2] < lark(ARITHMETIC, WORDS).price == HIGHEST


def test_a_price_is_the_same_again_and_for_another_vocabulary() -> None:
    prices = [json_schema(optional(50), words).price for words in (WORDS, WORDS, vocabulary(["a", "bc"]))]
    assert len(set(prices)) == 1


def test_what_has_a_high_price_is_read_to_the_end() -> None:
    compiled = lark(ARITHMETIC, WORDS)
    found = compiled.project(compiled.start(), noise(0, 128, WORDS.size, 400))
    assert len(found.tokens) > 40


SLOW = "start: r*\nr: " + " | ".join(f"/[a-z]{{1,{i}}}/" for i in range(1, 60))  # and not refused


def test_the_clock_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is slower by far, but not so slow that the request fails."""
    compiled = lark(SLOW, WORDS)
    before = [compiled.project(compiled.start(), noise(seed, 64, WORDS.size, 200)) for seed in range(3)]
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(ticks) * SLOWEST / 50_000)
    assert [
        compiled.project(compiled.start(), noise(seed, 64, WORDS.size, 200)) for seed in range(3)
    ] == before
    assert next(ticks) > 30, "it was asked"


def test_what_takes_too_long_after_all_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a canvas; the error names the parameter."""
    compiled = json_schema(whole(3), WORDS)
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(ticks) * SLOWEST / 20)
    with pytest.raises(UsageError, match="the schema is too slow to follow") as caught:
        compiled.project(compiled.start(), noise(0, 64, WORDS.size, 200))
    assert caught.value.param == "schema"


def test_more_references_than_a_usual_stack_holds() -> None:
    """More than jsonschema holds, too."""
    assert json_schema(references(1700), WORDS).shortest == 2
    assert lark("start: %json " + json.dumps(references(1700)), WORDS).shortest == 2


def test_thousands_of_rules_in_a_row() -> None:
    rules = "\n".join(f"a{i}: a{i + 1}" for i in range(4500))
    assert lark(f'start: a0\n{rules}\na4500: "x"', WORDS).shortest == 2
