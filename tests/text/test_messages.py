from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from canvaslm.errors import UsageError
from canvaslm.text.messages import plain_messages, plain_tools
from canvaslm.types import Message, ToolCall


def test_a_string_is_a_user_message() -> None:
    assert plain_messages("hi") == [{"role": "user", "content": "hi"}]


def test_messages_and_dicts_give_the_same() -> None:
    calls = [{"id": "x", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    dicts: list[Message | Mapping[str, Any]] = [
        {"role": "model", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "r"},
    ]
    objects: list[Message | Mapping[str, Any]] = [
        Message("assistant", "", (ToolCall("f", {"a": 1}),)),
        Message("tool", "r"),
    ]
    plain, other = plain_messages(dicts), plain_messages(objects)
    assert plain[0]["tool_calls"][0] == {
        "type": "function",
        "id": "x",
        "function": {"name": "f", "arguments": {"a": 1}},
    }
    assert plain[1]["tool_call_id"] == "x"
    assert other[1]["tool_call_id"] == other[0]["tool_calls"][0]["id"] == "call_0"


def test_results_without_ids_go_to_calls_in_order_or_by_name() -> None:
    calls = tuple(ToolCall(name, {}) for name in ("f", "g", "f"))
    results = [
        Message("tool", "1", name="g"),
        Message("tool", "2"),
        Message("tool", "3"),
        Message("tool", "4"),
    ]
    ids = [m.get("tool_call_id") for m in plain_messages([Message("assistant", "", calls), *results])]
    assert ids == [None, "call_1", "call_0", "call_2", None]


def test_parts_are_joined_or_kept() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "input_text", "text": "b"}, "c"]
    messages = [{"role": "system", "content": parts}, {"role": "user", "content": parts}]
    assert [m["content"] for m in plain_messages(messages)] == ["a bc", "a bc"]
    kept = plain_messages(messages, keep_parts=True)
    assert kept[0]["content"] == "a bc"
    assert kept[1]["content"] == [{"type": "text", "text": t} for t in ("a ", "b", "c")]


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ("<|channel>thought\nx\n<channel|>answer", "answer"),
        ("a<|channel>x<channel|>b<|channel>y<channel|>c", "abc"),
        ("a<|channel>never closed", "a"),
        ("a <channel|> b", "a <channel|> b"),
    ],
)
def test_earlier_thoughts_are_taken_out_of_answers_only(content: str, left: str) -> None:
    messages = [{"role": "assistant", "content": content}, {"role": "user", "content": content}]
    assert [m["content"] for m in plain_messages(messages)] == [left, content]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        [3],
        ["hi"],
        [{}],
        [{"role": "root", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "image", "url": "file:///etc/passwd"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [3]}],
        [{"role": "user", "content": "x", "name": 3}],
        [{"role": "assistant", "tool_calls": "f"}],
        [{"role": "assistant", "tool_calls": [{}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
    ],
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(UsageError, match="messages") as caught:
        plain_messages(messages)
    assert caught.value.param == "messages"


def test_images_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'image_url' are not supported yet"):
        plain_messages(
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
        )


def test_tools() -> None:
    bare = {"name": "f", "parameters": {"type": "object"}}
    expected = [{"type": "function", "function": {"description": "", **bare}}]
    assert plain_tools([bare]) == plain_tools([{"type": "function", "function": bare}]) == expected
    assert plain_tools([]) is None
    assert plain_tools(None) is None


@pytest.mark.parametrize("tools", [{"name": "f"}, "f", [3], [{}], [{"function": {"name": 3}}], 7])
def test_malformed_tools_are_refused(tools: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plain_tools(tools)
    assert caught.value.param == "tools"
