"""What callers say of tool calls, as the structure that answers then have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from canvaslm.errors import UsageError
from canvaslm.text.tool_choice import calls_of, forbids_calls, must_call

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def tool(name: str, schema: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


TOOLS = [tool("add", SCHEMA), tool("now")]
NAMED = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("choice", "parallel", "rules"),
    [
        ("required", None, (True, None, True)),
        ("required", False, (True, None, False)),
        (NAMED, None, (False, "now", True)),
        ({"type": "function", "name": "now"}, None, (False, "now", True)),
        (None, False, (False, None, False)),
        ("auto", False, (False, None, False)),
    ],
)
def test_rules(choice: Any, parallel: bool | None, rules: tuple[bool, str | None, bool]) -> None:
    structure = calls_of(TOOLS, choice, parallel)
    assert structure is not None
    found = json.loads(structure.source)
    assert (found["required"], found["named"], found["parallel"]) == rules
    assert found["tools"][0] == {"name": "add", "schema": SCHEMA, "strict": False}
    assert must_call(structure) == (rules[0] or rules[1] is not None)


def test_where_nothing_is_wished_for_calls_are_free() -> None:
    for choice, parallel in ((None, None), ("auto", True), ("none", None), ("none", False)):
        assert calls_of(TOOLS, choice, parallel) is None
    assert calls_of(None, None, False) is None
    assert calls_of([], "auto", None) is None


@pytest.mark.parametrize("strict", [tool("a", strict=True), {**tool("a"), "strict": True}])
def test_a_strict_tool_is_called_rightly_in_any_case(strict: dict[str, Any]) -> None:
    structure = calls_of([*TOOLS, strict], None, None)
    assert structure is not None
    assert not must_call(structure)
    assert [tool["strict"] for tool in json.loads(structure.source)["tools"]] == [False, False, True]


def test_calls_are_forbidden_by_none_alone() -> None:
    assert [forbids_calls(c) for c in (None, "auto", "required", NAMED, "none")] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        (None, "required", "tool_choice"),
        ([], NAMED, "tool_choice"),
        (TOOLS, "sometimes", "tool_choice"),
        (TOOLS, {"type": "function"}, "tool_choice"),
        (TOOLS, {"type": "allowed_tools", "name": "now"}, "tool_choice"),
        (TOOLS, 3, "tool_choice"),
        ([{"type": "function"}], "required", "tools"),
        ([*TOOLS, tool("a", [])], "required", "tools"),
        ([tool("a", {"x": float("nan")})], "required", "tools"),
    ],
)
def test_what_is_no_choice_is_refused(tools: Any, choice: Any, param: str) -> None:
    with pytest.raises(UsageError) as error:
        calls_of(tools, choice, None)
    assert error.value.param == param
