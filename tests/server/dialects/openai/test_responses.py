"""The responses interface: items, typed events, what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ...world import HELLO, Running, scripted_session, serving
from .test_chat import CALL

URL = "/v1/responses"
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Events whose names and types agree, numbered from 0."""
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


@pytest.fixture(scope="module")
def known() -> Any:
    with serving(
        scripted_session("Plain text.", f"<|channel>thought\nHm.<channel|>Calling.{CALL}")
    ) as running:
        yield running


def test_text_in_text_out(client: httpx.Client) -> None:
    chat = client.post("/v1/chat/completions", json={"messages": HELLO, "seed": 5}).json()
    answer = client.post(URL, json={"input": "Hello", "seed": 5}).json()
    (item,) = answer["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert answer["status"] == "incomplete" and answer["incomplete_details"] == {
        "reason": "max_output_tokens"
    }
    assert answer["usage"]["output_tokens"] == 24
    assert answer["store"] is False


def test_instructions_are_a_system_message(client: httpx.Client) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *HELLO]
    chat = client.post("/v1/chat/completions", json={"messages": turns, "seed": 5}).json()
    answer = client.post(URL, json={"input": HELLO, "instructions": "Be brief.", "seed": 5}).json()
    assert answer["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert answer["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_items_of_all_kinds(known: Running) -> None:
    with known.client() as client:
        body = {
            "input": "x",
            "seed": 1,
            "tools": [TOOL],
            "max_output_tokens": 200,
            "reasoning": {"effort": "high"},
        }
        answer = client.post(URL, json=body).json()
        thought, message, call = answer["output"]
        assert thought["type"] == "reasoning" and thought["content"][0]["text"] == "Hm."
        assert message["content"][0]["text"] == "Calling."
        assert call["name"] == "add" and json.loads(call["arguments"]) == {"a": 1, "b": 2}
        assert answer["status"] == "completed"
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
        again = client.post(
            URL, json={"input": [{"role": "user", "content": "x"}, *answer["output"], output]}
        )
        assert again.status_code == 200, again.text


def test_events_add_up_to_the_answer(known: Running) -> None:
    with known.client() as client:
        body = {"input": "x", "seed": 1, "tools": [TOOL], "max_output_tokens": 200}
        events = events_of(client.post(URL, json={**body, "stream": True}))
        kinds = [event["type"].removeprefix("response.") for event in events]
        kinds = [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
        item = ["output_item.added", "content_part.added"]
        ending = ["content_part.done", "output_item.done"]
        assert kinds == [
            "created", "in_progress",
            *item, "reasoning_text.delta", "reasoning_text.done", *ending,
            *item, "output_text.delta", "output_text.done", *ending,
            "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]  # fmt: skip
        final = events[-1]["response"]["output"]
        assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == final
        assert [item["type"] for item in final] == ["reasoning", "message", "function_call"]
        assert len({event["output_index"] for event in events if "output_index" in event}) == 3


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("background", {"background": True}),
        ("text.format", {"text": {"format": {"type": "magic"}}}),
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("input", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input", {"input": []}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("max_output_tokens", {"max_output_tokens": 2**24 + 1}),
    ],
)
def test_what_cannot_be_is_refused_by_name(client: httpx.Client, param: str, body: dict[str, Any]) -> None:
    response = client.post(URL, json={"input": "Hello", **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
