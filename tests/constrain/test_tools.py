"""Tool calls by construction: for any weights, seed and budget they are of a tool there is, and validate."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from canvaslm.constrain.answers import Thought
from canvaslm.constrain.automaton import TooLarge
from canvaslm.constrain.schema import Unsupported
from canvaslm.constrain.tools import CallableTool, CallMarks, CallRules, ToolCalls, calling, read_rules
from canvaslm.errors import UsageError
from canvaslm.text.toolcalls import QUOTE, Quote, parse_call
from canvaslm.types import ToolCall

from .canvases import answer
from .words import vocabulary, written

WORDS = vocabulary()
MARKS = CallMarks("<|tool_call>", "<tool_call|>", QUOTE)
THOUGHT = Thought("<|channel>", "<channel|>", "thought")
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "units": {"enum": ["C", "F"]},
        "places": {"type": "array", "items": {"type": "object", "properties": {"at": {"type": "number"}}}},
    },
    "required": ["city", "days"],
}
NOW = "<|tool_call>call:now{}<tool_call|>"
NOT_REGULAR = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}


def tool(name: str, schema: Any = None, *, strict: bool = False) -> dict[str, Any]:
    return {"name": name, "schema": schema or {}, "strict": strict}


def tools_of(tools: list[dict[str, Any]]) -> tuple[CallableTool, ...]:
    return read_rules(json.dumps({"tools": tools})).tools


TOOLS = tools_of(
    [tool("weather", WEATHER), tool("now"), tool("log", {"properties": {"text": {"type": "string"}}})]
)
SCHEMAS: dict[str, Any] = {found.name: {"type": "object", **found.schema} for found in TOOLS}


def made(thought: Thought | None = None, **rules: Any) -> ToolCalls:
    return calling(CallRules(**{"tools": TOOLS, **rules}), WORDS, MARKS, thought=thought)


def said(constraint: ToolCalls, seed: int, more: int = 60) -> tuple[str, list[ToolCall]]:
    """The text around the calls of a random model's answer, and the calls, which are whole."""
    budget = constraint.shortest + more
    tokens = answer(constraint, np.random.default_rng(seed), places=24, budget=budget)
    text, found = written(tokens, WORDS).decode(), []
    for match in re.finditer(r"<\|tool_call>(.*?)<tool_call\|>", text, re.DOTALL):
        pieces = [piece for part in match[1].split(QUOTE) for piece in (Quote(), part)][1:]
        call = parse_call(pieces)
        assert call is not None, text
        found.append(call)
    return re.sub(r"<\|tool_call>.*?<tool_call\|>", "", text, flags=re.DOTALL), found


@pytest.mark.parametrize("seed", range(40))
def test_a_required_call_is_there_and_validates(seed: int) -> None:
    around, calls = said(made(required=True), seed, more=seed * 3)
    assert calls
    assert "<|" not in around
    for call in calls:
        jsonschema.validate(call.arguments, SCHEMAS[call.name])
        assert not call.healed


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["weather", "now"])
def test_a_named_tool_is_called_once(seed: int, name: str) -> None:
    _, calls = said(made(named=name), seed)
    assert [call.name for call in calls] == [name]
    jsonschema.validate(calls[0].arguments, SCHEMAS[name])


@pytest.mark.parametrize("seed", range(20))
def test_calls_that_are_not_parallel_are_one_at_most(seed: int) -> None:
    assert len(said(made(required=True, parallel=False), seed)[1]) == 1
    assert len(said(made(parallel=False), seed)[1]) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_called_where_nothing_is_required_validates(seed: int) -> None:
    _, calls = said(made(), seed)
    for call in calls:
        jsonschema.validate(call.arguments, SCHEMAS[call.name])


def test_some_answers_that_need_no_call_have_none() -> None:
    assert {bool(said(made(), seed)[1]) for seed in range(60)} == {True, False}


@pytest.mark.parametrize(("rules", "calls"), [({}, 3), ({"parallel": False}, 1), ({"named": "now"}, 1)])
def test_so_many_calls_may_follow_each_other(rules: dict[str, Any], calls: int) -> None:
    constraint = made(**rules)
    whole = constraint.after(constraint.start(), tuple(_tokens("So:" + calls * NOW)))
    assert constraint.steps.automaton.ends[whole]
    more = constraint.after(whole, tuple(_tokens(NOW)))
    assert (more < constraint.steps.automaton.states) == (calls == 3)


@pytest.mark.parametrize("seed", range(10))
def test_a_thought_may_stand_before_the_call(seed: int) -> None:
    around, calls = said(made(THOUGHT, required=True), seed, more=100)
    assert len(calls) >= 1
    assert re.fullmatch(r"(<\|channel>thought\n.*<channel\|>)?[^<]*.*", around, re.DOTALL)


def test_an_answer_that_says_what_it_may_is_left_alone() -> None:
    """A canvas whose draft is valid is committed as it is: text and calls, and in auto text alone."""
    constraint = made(required=True)
    state = constraint.start()
    for text, whole in (("Let me see.", False), ("<|tool_call>call:now{}<tool_call|>", True)):
        tokens = tuple(_tokens(text))
        state = constraint.after(state, tokens)
        assert state < constraint.steps.automaton.states
        assert bool(constraint.steps.automaton.ends[state]) == whole
    free = made()
    assert free.steps.automaton.ends[free.after(free.start(), tuple(_tokens("Just é text.")))]


def _tokens(text: str) -> list[int]:
    known = {name.decode(): token for token, name in enumerate(WORDS.names) if token in WORDS.controls}
    parts = re.split(f"({'|'.join(map(re.escape, known))})", text)
    return [
        token
        for part in parts
        for token in ([known[part]] if part in known else [int(WORDS.byte_ids[b]) for b in part.encode()])
    ]


def test_a_schema_beyond_the_automaton_is_refused_where_arguments_must_follow_it() -> None:
    tools = tools_of([tool("now"), tool("odd", NOT_REGULAR)])
    for rules in ({"required": True}, {"named": "odd"}):
        with pytest.raises(Unsupported, match="'not' is not supported"):
            made(tools=tools, **rules)
    with pytest.raises(Unsupported):
        made(tools=tools_of([tool("odd", NOT_REGULAR, strict=True)]))
    assert made(tools=tools, named="now").free == ()
    loose = made(tools=tools)
    assert loose.free == ("odd",)
    for seed in range(10):
        assert {call.name for call in said(loose, seed)[1]} <= {"now", "odd"}


def test_schemas_that_are_too_much_together_leave_arguments_free_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, 60, np.uint8)).decode() for _ in range(1000)]
    tools = [tool(f"t{i}", {"properties": {"a": {"enum": words[i::3]}}}) for i in range(3)]
    with pytest.raises(TooLarge):
        made(tools=tools_of(tools), required=True)
    assert made(tools=tools_of(tools)).free == ("t0", "t1", "t2")


@pytest.mark.parametrize(
    ("tools", "rules", "param"),
    [
        ([], {"required": True}, "tool_choice"),
        ([tool("now")], {"named": "then"}, "tool_choice"),
        ([tool("a b")], {"required": True}, "tools.0"),
        ([tool("now"), tool("list", {"type": "array"})], {"required": True}, "tools.1"),
    ],
)
def test_what_cannot_be_called_is_refused(tools: list[Any], rules: dict[str, Any], param: str) -> None:
    with pytest.raises(UsageError) as error:
        made(tools=tools_of(tools), **rules)
    assert error.value.param == param


def test_a_vocabulary_without_markers_of_calls_is_refused() -> None:
    with pytest.raises(UsageError, match="no control token"):
        calling(CallRules(TOOLS), WORDS, CallMarks("<call>", "</call>", QUOTE))
