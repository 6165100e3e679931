"""Schemas: whatever a canvas says, the document validates; what cannot be said is refused with its place."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from canvaslm.constrain import answers
from canvaslm.constrain.automaton import TooLarge, compile_expression
from canvaslm.constrain.expression import sequence
from canvaslm.constrain.notation import call_notation, json_notation
from canvaslm.constrain.regular import Regular, regular
from canvaslm.constrain.schema import Unsupported, compile_schema
from canvaslm.errors import UsageError
from canvaslm.text.toolcalls import Quote, parse_call

from .canvases import answer
from .schemas import FORMATS, NODE, PATTERNS, schema
from .words import vocabulary, written

WORDS = vocabulary()
PLACES = 32
FORMAT_CHECKER = jsonschema.FormatChecker(["date", "uuid", "ipv4", "ipv6", "email"])


def document(constraint: Regular, seed: int, canvases: int) -> Any:
    """What one random canvas after the other makes of it, read as JSON."""
    budget = max(canvases * PLACES, constraint.shortest)
    tokens = answer(constraint, np.random.default_rng(seed), PLACES, budget)
    return json.loads(written(tokens, WORDS).decode())


def check(seed: int) -> bool:
    """Whether an automaton says this random schema; that its document validates is asserted."""
    wanted = schema(random.Random(seed))
    try:
        constraint = answers.schema(wanted, WORDS)
    except (Unsupported, TooLarge):
        return False
    found = document(constraint, seed, 1 + seed % 3)
    jsonschema.Draft202012Validator(wanted, format_checker=FORMAT_CHECKER).validate(found)
    return True


@pytest.mark.parametrize("seed", range(100))
def test_any_canvas_becomes_a_document_of_the_schema(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_hundreds_of_schemas() -> None:
    said = sum(check(seed) for seed in range(100, 600))
    assert said >= 450, "the usual schemas are said"


@pytest.mark.parametrize("seed", range(12))
def test_any_object(seed: int) -> None:
    assert isinstance(document(answers.any_json(WORDS), seed, 1 + seed % 3), dict)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_searched_for(pattern: str) -> None:
    wanted = {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 3}
    for seed in range(4):
        jsonschema.validate(document(answers.schema(wanted, WORDS), seed, 3), wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    wanted = {"type": "array", "items": {"type": "string", "format": name}, "minItems": 2}
    for seed in range(4):
        found = document(answers.schema(wanted, WORDS), seed, 3)
        jsonschema.validate(found, wanted, format_checker=FORMAT_CHECKER)


def accepts(wanted: Any, text: str) -> bool:
    return compile_expression(compile_schema(wanted)).accepts(text.encode())


@pytest.mark.parametrize(
    ("wanted", "yes", "no"),
    [
        ({"type": "object", "properties": {"a": {}, "b": {}}}, ['{"b": 1}', "{}", '{ "a":[{}],"b":"x"}'],
         ['{"b": 1, "a": 1}', '{"c": 1}', "[]", '{"a": 1,}', '{"a": 1 "b": 2}']),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["z", "a"]},
         ['{"a": null, "z": {"x": [1]}}'], ['{"a": null}', '{"z": 1}']),
        ({"type": "string"}, ['"\\u00e9é\\n"', '""', '"\\/"'], ['"\\ud800"', '"a', '"\n"', '"\\x"']),
        ({"type": "integer"}, ["0", "-7", "120"], ["01", "1.0", "+1", "--1", ""]),
        ({"type": "number"}, ["1e5", "-0.5E-3"], [".5", "1.", "1e", "NaN"]),
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'],
         ['"2023-02-29"', '"1900-02-29"', '"2024-13-01"']),
        ({"format": "ipv6"}, ['"::1"', '"2001:db8::ff00:42"'], ['"1::2::3"', '"12345::"']),
        ({"enum": [1, "a", True], "type": "string"}, ['"a"'], ["1", "true"]),
        ({"enum": [1, 1.0, True]}, ["1", "true"], ["1.0"]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"],
         ["[]", "[1,2,3]", "[,1]"]),
        ({"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1},
         ["[1]", "[1,2]", "[1,2,3,3]"], ["[]", "[2]", "[1,3]"]),
        ({"items": [{"const": 1}], "additionalItems": False}, ["[]", "[1]"], ["[1,1]"]),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, ['{"v": 1, "next": {"v": 2, "next": null}}'],
         ['{"v": 1}']),
        ({"allOf": [{"minimum": 3}, {"type": "integer", "maximum": 5, "minimum": 1}]}, ["3", "5"],
         ["1", "6"]),
        ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
          "properties": {"a": {}, "b": {}}, "additionalProperties": False}, ['{"a": 1}', '{"b": 1}'], ["{}"]),
        ({"type": ["string", "null"], "maxLength": 1}, ['"é"', "null"], ['"ab"']),
        ({"patternProperties": {"^x-": {"type": "integer"}}}, ['{"x-a": 1}', "{}"],
         ['{"a": 1}', '{"x-a": "1"}']),
        ({"propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "null"}},
         ['{"ab": null}'], ['{"A": null}']),
        (True, ["1", '{"a": [1]}'], ["", "x"]),
        ({"type": "object"}, ['{"a": [{"b": [1]}], "c": {}}', "{}"], ["[]"]),
        ({"x-unknown": 1, "description": "anything"}, ["null"], []),
    ],
)  # fmt: skip
def test_what_a_schema_allows(wanted: Any, yes: list[str], no: list[str]) -> None:
    for text in yes:
        assert accepts(wanted, text), text
        jsonschema.validate(
            json.loads(text), wanted if "$defs" in str(wanted) or "[{" not in str(wanted) else True
        )
    for text in no:
        assert not accepts(wanted, text), text


def chain(length: int) -> dict[str, Any]:
    """Each definition has the next one twice."""
    made: dict[str, Any] = {
        f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**made, f"d{length}": {"type": "string"}}}


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        made = {"type": "array", "items": made}
    return made


@pytest.mark.parametrize(
    ("wanted", "at", "says"),
    [
        ({"properties": {"a": {"$ref": "http://x/y"}}}, "#/properties/a/$ref", "elsewhere"),
        ({"$ref": "#/$defs/none"}, "#/$ref", "names nothing"),
        ({"properties": {"a": {"not": {}}}}, "#/properties/a/not", "not supported"),
        ({"properties": {"a/b": {"type": "strin"}}}, "#/properties/a~1b/type", "must be among"),
        ({"items": {"uniqueItems": True, "type": "array"}}, "#/items/uniqueItems", "not regular"),
        ({"properties": {"a": False}, "required": ["a"]}, "#/properties/a", "no finite document"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "#", "no number is within the bounds"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "#", "no finite document"),
        ({"enum": ["a"], "type": "integer"}, "#", "no value is left"),
        ({"$ref": "#/$defs/a",
          "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}},
         "#", "needs itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "#", "needs itself"),
        ({"type": "array", "minItems": 3, "prefixItems": [{}], "items": False}, "#", "3 items are asked for"),
        ({"minLength": -1}, "#/minLength", "0 or more"), ({"maxItems": 1.5}, "#/maxItems", "whole number"),
        ({"minimum": "1"}, "#/minimum", "a number must"), ({"required": "a"}, "#/required", "a list must"),
        ({"required": [1]}, "#/required", "must be strings"), ({"anyOf": {}}, "#/anyOf", "a list must"),
        ({"properties": []}, "#/properties", "an object must"), ({"items": 1}, "#/items", "an object"),
        ({"pattern": 1}, "#/pattern", "a string must"), ({"pattern": "(?=a)"}, "#/pattern", "lookahead"),
        ({"minLength": 10**9}, "#", "length beyond"), ({"minItems": 10**6}, "#", "items"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "#/oneOf", "may overlap"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf", "may overlap"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "#/oneOf", "may overlap"),
        ({"multipleOf": 0.01}, "#/multipleOf", "whole numbers"), ({"format": "regex"}, "#/format", "regex"),
        ({"type": "object", "minProperties": 1}, "#/minProperties", "names"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "#/allOf/1/pattern", "stands twice"),
        ({"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
         "#/allOf/0", "additionalProperties"),
        ([1], "#", "an object"), ("{", "", "no JSON"), ("[" * 3000, "", "no JSON"),
        ({"const": {1}}, "", "write"),
        ({"enum": ["\ud800"]}, "", "surrogate"), ({"const": float("nan")}, "", "write"),
        (nested(70), "", "nests deeper than 64"), ({"enum": ["x" * 70_000]}, "", "65536 are the most"),
        ({"enum": list(range(30_000))}, "", "more than 20000 values"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_with_its_place(wanted: Any, at: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        answers.schema(wanted, WORDS)
    assert at in str(error.value)
    assert error.value.param == "schema" or says == "surrogate"


@pytest.mark.parametrize(
    "wanted",
    [
        chain(12), chain(16), {"enum": [f"{n * 7919:x}{n:x}" for n in range(4600)]},
        {"maxItems": 1000, "items": {"type": "array", "maxItems": 1000, "items": {"enum": [1]}}},
        {"type": "string", "pattern": "^(a{1000}){1000}$"},
        {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"},
    ],
)  # fmt: skip
def test_hostile_schemas_are_refused(wanted: Any) -> None:
    with pytest.raises((TooLarge, Unsupported)) as error:
        answers.schema(wanted, WORDS)
    assert error.value.param == "schema"


def test_white_space_can_be_left_out() -> None:
    wanted = {"properties": {"a": {"enum": [[1, 2]]}, "b": {}}, "required": ["a"]}
    compact = compile_expression(compile_schema(wanted, json_notation(sequence())))
    assert compact.accepts(b'{"a":[1,2],"b":{"c":1}}')
    assert not compact.accepts(b'{"a": [1,2]}')
    assert answers.schema(wanted, WORDS, space="").shortest < answers.schema(wanted, WORDS).shortest + 1


@pytest.mark.parametrize("seed", range(60))
def test_arguments_of_tool_calls_are_written_in_their_notation(seed: int) -> None:
    """What the constraint lets through is read back by the parser of tool calls, and validates."""
    wanted, quote = schema(random.Random(seed)), WORDS.markers['<|"|>']
    wanted = wanted if wanted["type"] == "object" else {"properties": {"x": wanted}, "$defs": wanted["$defs"]}
    try:
        expression = sequence("call:f", compile_schema(wanted, call_notation(quote), "tools"))
        constraint = regular(expression, WORDS, "tools")
    except (Unsupported, TooLarge):
        return
    tokens = answer(constraint, np.random.default_rng(seed), PLACES, max(96, constraint.shortest))
    call = parse_call(list(pieces(tokens, WORDS.token_bytes.index((quote,)))))
    assert call is not None, written(tokens, WORDS)
    assert call.name == "f"
    jsonschema.Draft202012Validator(wanted).validate(call.arguments)


def pieces(tokens: list[int], quote: int) -> list[str | Quote]:
    found: list[str | Quote] = []
    data = b""
    for token in tokens:
        if token == quote:
            found += [data.decode(), Quote()]
            data = b""
        else:
            data += bytes(WORDS.token_bytes[token])
    return [*found, data.decode()]
