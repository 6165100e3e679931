"""`top_k` in every dialect: heard where it is an extra field, told where clients send one by habit."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from canvaslm.server.dialects.anthropic.schema import MessagesRequest
from canvaslm.server.dialects.ollama.schema import OllamaOptions
from canvaslm.server.dialects.openai.schema import ChatRequest

from .world import HELLO

CHAT = ("/v1/chat/completions", {"messages": HELLO})
ASKED: list[tuple[str, dict[str, Any]]] = [
    CHAT,
    ("/v1/completions", {"prompt": "Hello"}),
    ("/v1/responses", {"input": "Hello"}),
]
HABITUAL = [
    ("/v1/messages", {"messages": HELLO, "max_tokens": 24}, None),
    ("/api/chat", {"messages": HELLO, "stream": False}, "options"),
    ("/api/generate", {"prompt": "Hello", "stream": False}, "options"),
]


def answer(
    client: httpx.Client, path: str, body: dict[str, Any], inside: str | None = None, **fields: Any
) -> Any:
    given = {"seed": 5, **fields}
    response = client.post(path, json={**body, inside: given} if inside else {**body, **given})
    assert response.status_code == 200, response.text
    return response.json()


def written(path: str, answer: dict[str, Any]) -> str:
    if path == "/v1/responses":
        return str(answer["output"][-1]["content"])
    return str([choice.get("text") or choice["message"] for choice in answer["choices"]])


def text_of(answer: dict[str, Any]) -> str:
    """Everything that was written, in any dialect."""
    parts = answer.get("choices") or answer.get("output") or answer.get("content")
    return str(parts or answer.get("message") or answer["response"])


def words(answer: dict[str, Any]) -> dict[str, str]:
    return {told["param"]: told["message"] for told in answer.get("warnings") or []}


def chat(client: httpx.Client, **fields: Any) -> str:
    return str(answer(client, *CHAT, **fields)["choices"][0]["message"])


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_extra_fields_are_heard(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    three: Any = ({}, {"top_k": 1}, {"top_k_start": 1, "top_k_end": 1, "top_k": 500})
    whole, cut, annealed = (answer(client, path, body, **fields) for fields in three)
    assert not words(cut) and not words(annealed)
    assert written(path, whole) != written(path, cut) == written(path, annealed)


def test_a_top_k_changes_the_answer_and_none_does_not(client: httpx.Client) -> None:
    whole = chat(client)
    assert chat(client, top_k=0) == chat(client, top_k=-1) == chat(client, top_k=5000) == whole
    assert chat(client, top_k=1) != whole
    assert chat(client, top_k=1) == chat(client, top_k_start=1, top_k_end=1)
    assert chat(client, top_k=1) == chat(client, top_k=1, temperature=0)


@pytest.mark.parametrize(("path", "body", "inside"), HABITUAL)
def test_habits_change_nothing_and_are_told(
    client: httpx.Client, path: str, body: dict[str, Any], inside: str | None
) -> None:
    whole, habit = (answer(client, path, body, inside, **fields) for fields in ({}, {"top_k": 1}))
    assert text_of(whole) == text_of(habit)
    assert "top_k_start" in words(habit)["top_k"]
    asked = answer(client, path, body, inside, top_k_start=1, top_k_end=1)
    assert text_of(asked) != text_of(whole)
    assert not words(asked)


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("top_k", {"top_k": -2}),
        ("top_k", {"top_k": 1.5}),
        ("top_k", {"top_k": "40"}),
        ("top_k", {"top_k": 10**6 + 1}),
        ("top_k_start", {"top_k_start": -1, "top_k_end": 4}),
        ("top_k_end", {"top_k_start": 4}),
        ("top_k_start", {"top_k_end": 4}),
        ("top_k_tail_correction", {"top_k_tail_correction": 1}),
    ],
)
def test_wrong_values_are_refused_by_name(client: httpx.Client, param: str, body: dict[str, Any]) -> None:
    for path, rest in ASKED:
        response = client.post(path, json={**rest, **body})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param, error
        assert error["type"] == "invalid_request_error"


def test_what_schemas_make_of_it() -> None:
    asked = ChatRequest.model_validate({"messages": HELLO, "top_k": 40.0, "top_k_tail_correction": False})
    assert asked.params() == {"top_k": 40, "top_k_tail_correction": False}
    habits = MessagesRequest.model_validate({"messages": HELLO, "max_tokens": 9, "top_k": 40})
    assert habits.params() == {"max_new_tokens": 9}
    assert OllamaOptions.model_validate({"top_k": 40, "top_k_start": 9}).params(64) == {"top_k_start": 9}
