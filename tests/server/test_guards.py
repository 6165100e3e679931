"""Thoughts with a budget, answers made to go on or that repeat themselves, as the dialects word them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from canvaslm.server.dialects.anthropic.schema import MessagesRequest
from canvaslm.server.dialects.ollama.schema import OllamaChatRequest
from canvaslm.server.dialects.openai.responses_schema import ResponsesRequest
from canvaslm.server.dialects.openai.schema import ChatRequest
from canvaslm.server.fields import BUDGETS
from canvaslm.server.problems import Problem

from .world import HELLO, Running, chunks_of, scripted_session, serving

CLOSED, AGAIN, LOOP = "thinking_budget", "empty_retried", "repetition"
THOUGHT = (
    "<|channel>thought\nOne two three four five six seven eight nine ten eleven twelve.<channel|>Yes.<turn|>"
)


def chat(**body: Any) -> dict[str, Any]:
    return ChatRequest.model_validate({"messages": HELLO, **body}).sampling()


def responses(**body: Any) -> dict[str, Any]:
    return ResponsesRequest.model_validate({"input": "Hello", **body}).params()


def messages(**body: Any) -> dict[str, Any]:
    return MessagesRequest.model_validate({"messages": HELLO, "max_tokens": 9, **body}).sampling()


def ollama(**body: Any) -> dict[str, Any]:
    return OllamaChatRequest.model_validate({"messages": HELLO, **body}).params(512)


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        (chat(), None),
        (chat(reasoning_effort="low"), BUDGETS["low"]),
        (chat(reasoning_effort="medium"), BUDGETS["medium"]),
        (chat(reasoning_effort="high"), None),
        (chat(reasoning_effort="low", thinking_budget=7), 7),
        (chat(reasoning_effort="low", thinking_budget=-1), -1),
        (chat(thinking_token_budget=8), 8),
        (chat(thinking_budget_tokens=9.0), 9),
        (chat(thinking={"type": "enabled", "budget_tokens": 30}), 30),
        (responses(reasoning={"effort": "low"}), BUDGETS["low"]),
        (responses(reasoning={"effort": "none"}), None),
        (responses(reasoning={"effort": "high"}, thinking_budget=4), 4),
        (messages(thinking={"type": "enabled", "budget_tokens": 1024}), 1024),
        (messages(thinking={"type": "adaptive"}, output_config={"effort": "medium"}), BUDGETS["medium"]),
        (messages(thinking={"type": "disabled"}), None),
        (ollama(think="low"), BUDGETS["low"]),
        (ollama(think=True), None),
        (ollama(think="low", options={"thinking_budget": 5}), 5),
    ],
)
def test_a_budget_is_a_number_or_a_level(given: dict[str, Any], budget: int | None) -> None:
    assert given.get("thinking_budget") == budget


@pytest.mark.parametrize("budget", ["30", True, -2, 2**25, [1]])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(Problem, match=r"thinking\.budget_tokens") as caught:
        messages(thinking={"type": "enabled", "budget_tokens": budget})
    assert (caught.value.status, caught.value.param) == (400, "thinking")


@pytest.fixture(scope="module")
def talking() -> Iterator[Running]:
    with serving(scripted_session(THOUGHT, "<turn|>", "a b " * 200)) as running:
        yield running


PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 200},
    "/api/chat": {"messages": HELLO, "stream": False},
}


def ask(talking: Running, path: str, seed: int, **body: Any) -> dict[str, Any]:
    limit = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens"}.get(path)
    chosen = {**({limit: 200} if limit else {}), "seed": seed, **body}
    if path == "/api/chat":
        chosen = {"options": {"num_predict": 200, **chosen}}
    values = {**PATHS[path], **chosen}
    with talking.client() as client:
        answer = client.post(path, json=values)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def details(answer: dict[str, Any]) -> list[str]:
    holder = answer["choices"][0] if "choices" in answer else answer
    told = [found["code"] for found in answer.get("warnings", ())]
    reasons = [found["reason"] for found in holder.get("finish_details", ())]
    assert [code for code in told if code in (CLOSED, AGAIN, LOOP)] == reasons
    return reasons


@pytest.mark.parametrize("path", PATHS)
def test_what_happened_to_an_answer_is_told(talking: Running, path: str) -> None:
    assert details(ask(talking, path, 0)) == []
    assert details(ask(talking, path, 0, thinking_budget=9)) == [CLOSED]
    assert details(ask(talking, path, 1)) == [AGAIN]
    assert details(ask(talking, path, 1, retry_empty=False)) == []
    assert details(ask(talking, path, 2)) == [LOOP]


def test_a_thought_is_closed_at_its_budget(talking: Running) -> None:
    answer = ask(talking, "/v1/chat/completions", 0, thinking_budget=9)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 9
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"].startswith("One") and message["content"].endswith("Yes.")
    whole = ask(talking, "/v1/chat/completions", 0, thinking_budget=60)
    assert whole["choices"][0]["message"]["content"] == "Yes."


def test_an_answer_ends_on_repetition_only_when_asked(talking: Running) -> None:
    whole = ask(talking, "/v1/messages", 2)
    assert (whole["stop_reason"], whole["usage"]["output_tokens"]) == ("max_tokens", 200)
    cut = ask(talking, "/v1/messages", 2, stop_on_repetition=True)
    assert cut["stop_reason"] == "max_tokens" and cut["usage"]["output_tokens"] < 150
    assert details(cut) == [LOOP]


def test_a_stream_tells_it_with_what_ends_it(talking: Running) -> None:
    body = {"messages": HELLO, "seed": 0, "max_tokens": 200, "stream": True, "thinking_budget": 9}
    with talking.client() as client:
        *_, last = chunks_of(client.post("/v1/chat/completions", json=body))
    (choice,) = last["choices"]
    assert (choice["finish_reason"], choice["finish_details"][0]["reason"]) == ("stop", CLOSED)
