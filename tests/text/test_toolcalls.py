from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.text.toolcalls import Quote, parse_call
from canvaslm.types import ToolCall


def _pieces(text: str) -> list[str | Quote]:
    """`~` stands for the quote marker."""
    parts: list[str | Quote] = []
    for index, part in enumerate(text.split("~")):
        parts += [Quote(), part] if index else [part]
    return parts


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("call:f{}", {}),
        ("call:f{a:1,b:-2.5,c:1e3,d:0}", {"a": 1, "b": -2.5, "c": 1000.0, "d": 0}),
        ("call:f{a:true,b:false,c:null,d:None}", {"a": True, "b": False, "c": None, "d": None}),
        ("call:f{q:~x, {y}: [z]~}", {"q": "x, {y}: [z]"}),
        ('call:f{q:~say "hi" \\n~}', {"q": 'say "hi" \\n'}),
        ("call:f{q:~~}", {"q": ""}),
        ("call:f{~a b~:~c~}", {"a b": "c"}),
        ("call:f{o:{p:{q:[1,[~x~,{}],[]]}}}", {"o": {"p": {"q": [1, ["x", {}], []]}}}),
        (' call:f { a : 1 , "b" : "c\\n" } \n', {"a": 1, "b": "c\n"}),
        ("call:f{a:9007199254740993}", {"a": 9007199254740993}),
        ("call:f{a-b.c_d:1}", {"a-b.c_d": 1}),
    ],
)
def test_arguments(text: str, arguments: dict[str, Any]) -> None:
    assert parse_call(_pieces(text)) == ToolCall("f", arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f{}",
        "call:{}",
        "call:f",
        "call:f{",
        "call:f{a}",
        "call:f{a:}",
        "call:f{a:1,}",
        "call:f{a:1 b:2}",
        "call:f{a:Paris}",
        "call:f{a:~open}",
        "call:f{a:[1,2}",
        "call:f{a:01}",
        "call:f{a:1.}",
        "call:f{a:1e999}",
        "call:f{a:NaN}",
        "call:f{} trailing",
        "call:f{}{}",
        'call:f{a:"x~y~"}',
        "call:a b{}",
        "call:f{a:" + "9" * 5000 + "}",
        "call:f{a:" + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_malformed(text: str) -> None:
    assert parse_call(_pieces(text)) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_-", min_size=1), inner, max_size=3)
    ),
    max_leaves=10,
)


def _written(value: Any) -> list[str | Quote]:
    """The notation, as Gemma's template writes it."""
    if isinstance(value, str):
        return [Quote(), value, Quote()]
    if isinstance(value, dict):
        inner = [[k, ":", *_written(v)] for k, v in value.items()]
        return ["{", *_joined(inner), "}"]
    if isinstance(value, list):
        return ["[", *_joined([_written(v) for v in value]), "]"]
    return [
        {True: "true", False: "false", None: "null"}[value]
        if value is None or value is True or value is False
        else repr(value)
    ]


def _joined(items: list[list[str | Quote]]) -> list[str | Quote]:
    found: list[str | Quote] = []
    for index, item in enumerate(items):
        found += [",", *item] if index else item
    return found


@given(arguments=st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=3))
def test_round_trip(arguments: dict[str, Any]) -> None:
    assert parse_call(["call:some.name", *_written(arguments)]) == ToolCall("some.name", arguments)


@given(text=st.text(st.sampled_from('call:f{}[],"~\\ 1e-.tru'), max_size=40))
def test_nothing_raises(text: str) -> None:
    parse_call(_pieces("call:f{" + text))
