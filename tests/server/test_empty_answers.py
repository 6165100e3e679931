"""Answers that say nothing: told in `warnings`, in every dialect, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .world import HELLO, Running, scripted_session, serving

# The seed chooses the script: 0 ends at once, 1 says something, 2 only thinks, 3 calls a tool.
SILENT, SPEAKING, THINKING, CALLING = range(4)
SCRIPTS = ("", "Yes.", "<|channel>thought\nHm<channel|>", "<|tool_call>call:f{}<tool_call|>")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 24},
    "/api/chat": {"messages": HELLO},
    "/api/generate": {"prompt": "Hello"},
}
CHATS = [path for path in BODIES if path != "/v1/completions"]


@pytest.fixture(scope="module")
def talking() -> Iterator[Running]:
    with serving(scripted_session(*SCRIPTS)) as running:
        yield running


def asked(server: Running, path: str, seed: int, *, stream: bool = False, **more: Any) -> httpx.Response:
    body = {**BODIES[path], "stream": stream, **more}
    if path.startswith("/api"):
        body["options"] = {"seed": seed}
    else:
        body["seed"] = seed
    with server.client() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def warned(answer: dict[str, Any]) -> list[dict[str, str]]:
    return [told for told in answer.get("warnings") or () if told.get("code") == "empty_answer"]


def objects(response: httpx.Response) -> list[dict[str, Any]]:
    """All that a stream holds, and what its events hold of the answer."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if '{"' in line]
    found = [json.loads(line) for line in lines]
    inner = [event[name] for event in found for name in ("response", "message") if name in event]
    return [*found, *(part for part in inner if isinstance(part, dict))]


@pytest.mark.parametrize("path", BODIES)
def test_an_empty_answer_is_told_and_counted(talking: Running, path: str) -> None:
    before = talking.metric("empty_answers_total")
    (told,) = warned(asked(talking, path, SILENT).json())
    assert "the answer is empty" in told["message"] and "seed" in told["message"]
    assert any(warned(answer) for answer in objects(asked(talking, path, SILENT, stream=True)))
    assert talking.metric("empty_answers_total") == before + 2


@pytest.mark.parametrize("path", BODIES)
def test_answers_with_text_are_not(talking: Running, path: str) -> None:
    before = talking.metric("empty_answers_total")
    assert "warnings" not in asked(talking, path, SPEAKING).json()
    assert not any("warnings" in answer for answer in objects(asked(talking, path, SPEAKING, stream=True)))
    assert talking.metric("empty_answers_total") == before


@pytest.mark.parametrize("path", CHATS)
def test_thoughts_are_no_answer_and_calls_are_one(talking: Running, path: str) -> None:
    assert warned(asked(talking, path, THINKING).json())
    assert not warned(asked(talking, path, CALLING).json())


@pytest.mark.parametrize("path", BODIES)
def test_it_is_told_beside_other_warnings(talking: Running, path: str) -> None:
    answer = asked(talking, path, SILENT, sparkle=1).json()
    others = [told for told in answer["warnings"] if told.get("code") != "empty_retried"]
    assert [told["param"] for told in others] == ["sparkle", ""]
    streamed = objects(asked(talking, path, SILENT, stream=True, sparkle=1))
    told = [t["param"] for answer in streamed for t in answer.get("warnings") or ()]
    assert {"sparkle", ""} <= set(told)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_of_several_answers_the_empty_ones_are_named(talking: Running, path: str) -> None:
    (told,) = warned(asked(talking, path, SILENT, n=2).json())
    assert told["message"].startswith("answer 0 is empty")
    ends = [answer for answer in objects(asked(talking, path, SILENT, n=2, stream=True)) if warned(answer)]
    assert [answer["choices"][0]["index"] for answer in ends] == [0]
    assert ends[0]["choices"][0]["finish_reason"] == "stop"


def test_an_answer_cut_at_its_beginning_was_to_be_empty(talking: Running) -> None:
    answer = asked(talking, "/v1/chat/completions", SPEAKING, stop="Yes").json()
    assert answer["choices"][0]["message"]["content"] == "" and "warnings" not in answer


def test_echoed_prompts_are_no_answers(talking: Running) -> None:
    answer = asked(talking, "/v1/completions", SILENT, echo=True).json()
    assert answer["choices"][0]["text"] == "Hello" and warned(answer)
