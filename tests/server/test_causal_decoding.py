"""Causal decoding over HTTP: each dialect takes it where it takes other parameters, streams token by token,
and tells reasons and usage as for canvases."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from canvaslm.session import Session

from .world import HELLO, chunks_of, tiny_session

CAUSAL: dict[str, Any] = {"decoding": "causal", "seed": 5}
TOP: dict[str, Any] = {"top_p": 0.3}
Body = dict[str, Any]
# Of each dialect: route, a body with a limit of tokens, and what of the answer is its text and its reason.
DIALECTS: dict[str, tuple[str, Callable[[int, Body], Body], Callable[[Any], tuple[str, str]]]] = {
    "chat": (
        "/v1/chat/completions",
        lambda most, more: {"messages": HELLO, "max_tokens": most, **more},
        lambda a: (a["choices"][0]["message"]["content"], a["choices"][0]["finish_reason"]),
    ),
    "responses": (
        "/v1/responses",
        lambda most, more: {"input": "Hello", "max_output_tokens": most, **more},
        lambda a: (
            "".join(part["text"] for item in a["output"] for part in item["content"]),
            "length" if a["status"] == "incomplete" else "stop",
        ),
    ),
    "anthropic": (
        "/v1/messages",
        lambda most, more: {"messages": HELLO, "max_tokens": most, **more},
        lambda a: (
            "".join(part["text"] for part in a["content"]),
            {"max_tokens": "length", "end_turn": "stop"}[a["stop_reason"]],
        ),
    ),
    "ollama": (
        "/api/chat",
        lambda most, more: {
            "messages": HELLO, "stream": False, "options": {"num_predict": most, **more},
        },
        lambda a: (a["message"]["content"], a["done_reason"]),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def session() -> Session:
    return tiny_session()


def expected(session: Session, most: int, **more: Any) -> tuple[str, str]:
    reply = session.generate("Hello", max_new_tokens=most, **{**CAUSAL, **more})
    assert {report.stop for report in reply.canvases} == {"causal"}
    return reply.text, reply.finish_reason


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("more", [{}, TOP, {"top_p": 0.0}], ids=["plain", "top_p", "none"])
def test_dialects_write_token_by_token(
    client: httpx.Client, session: Session, dialect: str, more: Body
) -> None:
    route, body, read = DIALECTS[dialect]
    response = client.post(route, json=body(6, {**CAUSAL, **more}))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert read(answer) == expected(session, 6, **more)
    assert "top_p" not in json.dumps(answer.get("warnings", []))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_it_top_p_is_told_to_be_idle(client: httpx.Client, dialect: str) -> None:
    route, body, _ = DIALECTS[dialect]
    told = client.post(route, json=body(6, TOP)).json()["warnings"]
    assert [warning["param"] for warning in told if "decoding" in warning["message"]] == ["top_p"]
    assert "warnings" not in client.post(route, json=body(6, {"top_p": 1.0, "seed": 5})).json()


@pytest.mark.parametrize("dialect", ["anthropic", "ollama"])
def test_top_k_counts_with_it_alone(client: httpx.Client, session: Session, dialect: str) -> None:
    route, body, read = DIALECTS[dialect]
    answer = client.post(route, json=body(6, {**CAUSAL, "top_k": 2})).json()
    assert read(answer) == expected(session, 6, top_k=2)
    assert "warnings" not in answer
    (told,) = client.post(route, json=body(6, {"top_k": 2, "seed": 5})).json()["warnings"]
    assert told["param"] == "top_k"


def test_streams_go_token_by_token(client: httpx.Client, session: Session) -> None:
    body = {"messages": HELLO, "max_tokens": 6, **CAUSAL, "stream": True}
    body["stream_options"] = {"include_usage": True}
    *chunks, last = chunks_of(client.post("/v1/chat/completions", json=body))
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    reply = session.generate("Hello", max_new_tokens=6, **CAUSAL)
    assert "".join(text for text in texts if text) == reply.text
    assert sum(bool(text) for text in texts) > 2
    assert chunks[-1]["choices"][0]["finish_reason"] == reply.finish_reason
    assert last["usage"]["completion_tokens"] == reply.usage.completion_tokens == len(reply.tokens)
    assert chunks[-1]["timings"]["diffusion"]["n_steps"] == 0


@pytest.mark.parametrize(
    "more", [{"verify": "greedy"}, {"verify": "threshold", "verify_threshold": 0.5, "verify_steps": 2}]
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_verify(client: httpx.Client, session: Session, dialect: str, more: Body) -> None:
    route, body, read = DIALECTS[dialect]
    response = client.post(route, json=body(12, {"seed": 5, **more}))
    assert response.status_code == 200, response.text
    reply = session.generate("Hello", max_new_tokens=12, seed=5, **more)
    assert read(response.json()) == (reply.text, reply.finish_reason)
