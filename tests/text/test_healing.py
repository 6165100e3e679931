"""Damaged tool calls: what they evidently say comes out, and what is unclear stays damaged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from canvaslm.text.healing import heal_call
from canvaslm.text.toolcalls import Quote, parse_call
from canvaslm.types import ToolCall
from tests.text.test_toolcalls import _pieces, _written


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("call:f{a:1", {"a": 1}),
        ("call:f{a:[1,{b:~x~", {"a": [1, {"b": "x"}]}),
        ("call:f{a:[1,2}", {"a": [1, 2]}),
        ("call:f{a:{b:[1},c:2}", {"a": {"b": [1]}, "c": 2}),
        ("call:f{a:1}}", {"a": 1}),
        ("call:f{a:1}]} ", {"a": 1}),
        ("call:f{a:1,}", {"a": 1}),
        ("call:f{a:[1,],b:2}", {"a": [1], "b": 2}),
        ("call:f{a:Paris}", {"a": "Paris"}),
        ("call:f{a: New York , b:2}", {"a": "New York", "b": 2}),
        ("call:f{a:12:30,b:http://x.y/z?q=1}", {"a": "12:30", "b": "http://x.y/z?q=1"}),
        ("call:f{a:[red,green],b:true,c:null}", {"a": ["red", "green"], "b": True, "c": None}),
        ("call:f{a:~open", {"a": "open"}),
        ("call:f{a:~x}", {"a": "x"}),
        ("call:f{a:[~x]}", {"a": ["x"]}),
        ("call:f{a:~x} y}", {"a": "x} y"}),
        ('call:f{a:~x",b:1}', {"a": "x", "b": 1}),
        ('call:f{a:"x~}', {"a": "x"}),
        ('call:f{a:"say \\"hi\\"",b:}', None),
        ('call:f{a:"say \\"hi\\"\\n",b:c}', {"a": 'say "hi"\n', "b": "c"}),
        ("f{a:1}", {"a": 1}),
        (" f {a:1}", {"a": 1}),
        ("call:f{a:01,b:1.,c:1e999,d:NaN}", {"a": "01", "b": "1.", "c": "1e999", "d": "NaN"}),
        ("call:f{ New York : 1", {"New York": 1}),
        ("call:f{a:{} b:1}", {"a": {}, "b": 1}),
        ("call:f{", {}),
    ],
)
def test_small_damage(text: str, arguments: dict[str, Any] | None) -> None:
    wanted = None if arguments is None else ToolCall("f", arguments, healed=True)
    assert heal_call(_pieces(text), closed=True) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "call:f",
        "call:{a:1}",
        "a b{}",
        "call:a b{}",
        "call:f{a}",
        "call:f{a:}",
        "call:f{a:,b:1}",
        "call:f{,a:1}",
        "call:f{a:1]",
        "call:f{a:1 b:2}",
        "call:f{a:Paris, France}",
        "call:f{a:say ~hi~}",
        "call:f{a:~x~y~}",
        "call:f{a:~x~ b:2}",
        "call:f{a:1,a:2",
        "call:f{a:1} trailing",
        "call:f{}{}",
        "call:f{a:" + "[" * 5000,
    ],
)
def test_what_is_unclear_stays_as_it_is(text: str) -> None:
    assert heal_call(_pieces(text), closed=True) is None


def test_an_open_brace_alone_is_a_call_only_before_its_marker() -> None:
    assert heal_call(["call:f{"], closed=False) is None
    assert heal_call(["call:f{a:1"], closed=False) == ToolCall("f", {"a": 1}, healed=True)


# Texts that hold nothing of the notation, so that what was meant is beyond doubt.
WORDS = st.text("abcxyz é😀-", min_size=1, max_size=8).filter(lambda text: text == text.strip())
KEYS = st.text("abc", min_size=1, max_size=3)
MEANT = st.recursive(
    WORDS | st.integers(-999, 999) | st.booleans(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3) | st.dictionaries(KEYS, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)
CALLS = st.dictionaries(KEYS, MEANT, min_size=1, max_size=4)


@given(arguments=CALLS, count=st.integers(1, 6))
def test_closers_that_are_missing_at_the_end_change_nothing(arguments: dict[str, Any], count: int) -> None:
    pieces: list[str | Quote] = ["call:f", *_written(arguments)]
    while count and pieces and not isinstance(pieces[-1], Quote) and pieces[-1] in ("}", "]"):
        pieces.pop()
        count -= 1
    assert heal_call(pieces, closed=True) == ToolCall("f", arguments, healed=True)


@given(arguments=CALLS)
def test_quotes_that_are_missing_change_nothing(arguments: dict[str, Any]) -> None:
    pieces = [piece for piece in ("call:f", *_written(arguments)) if not isinstance(piece, Quote)]
    assume("true" not in "".join(pieces))
    assert heal_call(pieces, closed=True) == ToolCall("f", arguments, healed=True)


@given(arguments=CALLS)
def test_a_whole_call_is_read_as_it_is(arguments: dict[str, Any]) -> None:
    pieces: list[str | Quote] = ["call:f", *_written(arguments)]
    assert parse_call(pieces) == ToolCall("f", arguments)
    assert heal_call(pieces, closed=True) == ToolCall("f", arguments, healed=True)


@given(text=st.text(st.sampled_from('call:f{}[],"~\\ 1e-.tru'), max_size=60), closed=st.booleans())
def test_nothing_raises(text: str, closed: bool) -> None:
    heal_call(_pieces("call:f{" + text), closed=closed)
