"""Anthropic's conversations as chat messages."""

from __future__ import annotations

from typing import Any

import pytest

from canvaslm.server.dialects.anthropic.schema import Conversation, MessagesRequest
from canvaslm.server.problems import Problem

ADD = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}


def turns(*messages: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return Conversation.model_validate({"messages": list(messages), **more}).turns()


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def call(key: str = "t1", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": key, "name": "add", "input": arguments}


def test_a_text_is_a_turn() -> None:
    assert turns({"role": "user", "content": "Hi"}) == [{"role": "user", "content": "Hi"}]


def test_a_system_prompt_comes_first_as_text_or_blocks() -> None:
    hi = {"role": "user", "content": "Hi"}
    assert turns(hi, system="Be brief.") == [{"role": "system", "content": "Be brief."}, hi]
    cached = text("Be brief.", cache_control={"type": "ephemeral"})
    assert turns(hi, system=[cached, text("Be kind.")])[0]["content"] == "Be brief.\nBe kind."


def test_turns_of_one_role_in_a_row_are_one() -> None:
    made = turns(user(text("a"), text("b")), user(text("c")))
    assert made == [{"role": "user", "content": "a\nb\nc"}]


def test_a_tool_call_and_its_result() -> None:
    made = turns(
        user(text("1 + 2?")),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Use the tool.", "signature": "x"},
                {"type": "redacted_thinking", "data": "?"},
                text("Let me see."),
                call(a=1, b=2),
            ],
        },
        user(text("Well?"), {"type": "tool_result", "tool_use_id": "t1", "content": [text("3")]}),
    )
    assert made == [
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Use the tool.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "t1", "name": "add"},
        {"role": "user", "content": "Well?"},
    ]


@pytest.mark.parametrize(
    ("content", "is_error", "expected"),
    [
        ("no such file", True, "Error: no such file"),
        ("Error: no such file", True, "Error: no such file"),
        ("fine", False, "fine"),
        (None, None, ""),
    ],
)
def test_a_failed_tool_says_so(content: str | None, is_error: bool | None, expected: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": is_error}
    made = turns(user(text("go")), {"role": "assistant", "content": [call()]}, user(result))
    assert made[-1]["content"] == expected


def test_a_plain_text_document_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "All of it."}
    assert turns(user({"type": "document", "source": source}))[0]["content"] == "All of it."


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (
            {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
            "images are not supported yet",
        ),
        ({"type": "document", "source": {"type": "base64", "data": ""}}, "'document'"),
        ({"type": "server_tool_use", "id": "x"}, "'server_tool_use'"),
        ({"text": "untyped"}, "'None'"),
        ({"type": "text", "text": 5}, "text must be a string"),
        ({"type": "tool_result", "content": "3"}, "tool_use_id must be a string"),
        ({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}, "images"),
        ({"type": "tool_result", "tool_use_id": "t", "content": 3}, "content must be"),
        ({"type": "tool_result", "tool_use_id": "t", "content": ["3"]}, "send text only"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(block: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        turns(user(text("look"), block))
    assert caught.value.status == 400
    assert str(caught.value).startswith("messages.0.content.1")


@pytest.mark.parametrize("bad", [{"input": "{}"}, {"name": None}, {"id": 7}])
def test_a_malformed_call_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Problem, match=r"messages\.0\.content\.0"):
        turns({"role": "assistant", "content": [{**call(), **bad}]})


def test_tools_as_templates_have_them() -> None:
    body = Conversation.model_validate({"messages": [user()], "tools": [ADD, {**ADD, "type": "custom"}]})
    wanted = {"name": "add", "description": "Adds.", "parameters": ADD["input_schema"]}
    assert body.functions() == [{"type": "function", "function": wanted}] * 2
    off = body.model_copy(update={"tool_choice": {"type": "none"}})
    assert off.functions() is None


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "web_search_20250305", "name": "web_search"}, "web_search_20250305"),
        ({"name": "add"}, "input_schema"),
        ({"input_schema": {}}, "name"),
    ],
)
def test_tools_that_anthropic_runs_are_refused(tool: dict[str, Any], words: str) -> None:
    body = Conversation.model_validate({"messages": [user()], "tools": [ADD, tool]})
    with pytest.raises(Problem, match=rf"tools\.1: .*{words}"):
        body.functions()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", {"type": "several"}),
        ("tool_choice", {"name": "add"}),
        ("thinking", {"type": "sometimes"}),
        ("chat_template", "{{ 1 }}"),
        ("messages", [user(), {"role": "assistant", "content": "The answer is ("}]),
    ],
)
def test_the_impossible_is_refused(field: str, value: Any) -> None:
    body = Conversation.model_validate({"messages": [user()], field: value})
    with pytest.raises(Problem) as caught:
        body.refuse()
    assert (caught.value.status, caught.value.param) == (400, field)


@pytest.mark.parametrize(
    ("thinking", "thinks", "shows"),
    [
        (None, False, True),
        ({"type": "enabled", "budget_tokens": 1024}, True, True),
        ({"type": "adaptive", "display": "omitted"}, True, False),
        ({"type": "disabled"}, False, True),
    ],
)
def test_thinking(thinking: dict[str, Any] | None, thinks: bool, shows: bool) -> None:
    body = Conversation.model_validate({"messages": [user()], "thinking": thinking})
    body.refuse()
    assert (body.thinks(), body.shows_thinking) == (thinks, shows)


def test_fields_without_effect_are_told_and_usual_ones_are_not() -> None:
    body = MessagesRequest.model_validate(
        {
            "messages": [user()], "max_tokens": 8, "metadata": {"user_id": "u"}, "service_tier": "auto",
            "context_management": {}, "top_k": 40, "container": "c",
        }
    )  # fmt: skip
    assert {told["param"] for told in body.ignored()} == {"top_k", "container"}
