"""tool_choice in Python: guaranteed whatever the weights, and forbidden where it says none."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from canvaslm.errors import UsageError
from canvaslm.session import Session
from tests.server.world import HELLO, scripted_session, tiny_session

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "count", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "count"}}
CALL = "Yes.<|tool_call>call:now{}<tool_call|>"


@pytest.fixture(scope="module")
def session() -> Session:
    return tiny_session()


def test_a_named_tool_is_called_with_arguments_of_its_schema(session: Session) -> None:
    for seed in range(3):
        reply = session.generate(HELLO, tools=TOOLS, tool_choice=NAMED, max_new_tokens=60, seed=seed)
        (call,) = reply.tool_calls
        assert (call.name, call.healed, reply.finish_reason) == ("count", False, "tool_calls")
        jsonschema.validate(call.arguments, SCHEMA)


def test_required_thinking_and_not(session: Session) -> None:
    for thinking in (False, True):
        reply = session.generate(
            HELLO, tools=TOOLS, tool_choice="required", thinking=thinking, max_new_tokens=80, seed=1
        )
        assert {call.name for call in reply.tool_calls} <= {"count", "now"}
        assert reply.tool_calls


def test_none_shows_no_tools_and_takes_no_call() -> None:
    session = scripted_session(CALL)
    free = session.generate(HELLO, tools=TOOLS, max_new_tokens=60, seed=0)
    assert [call.name for call in free.tool_calls] == ["now"]
    reply = session.generate(HELLO, tools=TOOLS, tool_choice="none", max_new_tokens=60, seed=0)
    assert not reply.tool_calls
    assert reply.usage.prompt_tokens < free.usage.prompt_tokens
    bare = session.generate(HELLO, max_new_tokens=60, seed=0)
    assert reply.usage.prompt_tokens == bare.usage.prompt_tokens


def test_none_forbids_the_marker_to_the_model(session: Session) -> None:
    call = session.tokenizer.marker_id("<|tool_call>")
    assert call is not None
    request = session.prepare(HELLO, tools=TOOLS, tool_choice="none", logit_bias={call: 3.0, 7: 1.0})
    assert dict(request.rules.biases) == {7: 1.0, call: float("-inf")}


def test_two_wishes_are_refused_where_both_must_hold(session: Session) -> None:
    with pytest.raises(UsageError, match="cannot both hold") as error:
        session.prepare(HELLO, tools=TOOLS, tool_choice="required", schema=SCHEMA)
    assert error.value.param == "tool_choice"
    free = session.prepare(HELLO, tools=TOOLS, parallel_tool_calls=False, schema=SCHEMA)
    assert free.constraint is session.prepare(HELLO, schema=SCHEMA).constraint
