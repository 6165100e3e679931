"""logit_bias, allowed_token_ids and min_tokens, in every dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .test_no_limit import tokens
from .world import HELLO, Running, serving, tiny_session

ROUTES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": HELLO}, "max_tokens"),
    ("/v1/completions", {"prompt": "Hello"}, "max_tokens"),
    ("/v1/responses", {"input": "Hello"}, "max_output_tokens"),
    ("/v1/messages", {"messages": HELLO}, "max_tokens"),
    ("/api/chat", {"messages": HELLO, "stream": False}, "num_predict"),
    ("/api/generate", {"prompt": "Hello", "stream": False}, "num_predict"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(tiny_session()) as running:
        yield running


def post(server: Running, path: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    given = {"seed": 1, "max_denoising_steps": 4, **fields}
    with server.client() as client:
        response = client.post(path, json={**body, **({"options": given} if path[:4] == "/api" else given)})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        choice = answer["choices"][0]
        return str(choice.get("text") or choice["message"]["content"])
    if "output" in answer:
        return str(answer["output"][-1]["content"][0]["text"])
    if "content" in answer:
        return str(answer["content"][-1]["text"])
    return str(answer.get("response") or answer["message"]["content"])


@pytest.mark.parametrize(("path", "body", "limit"), ROUTES)
def test_every_dialect_keeps_to_the_tokens_allowed(
    server: Running, path: str, body: dict[str, Any], limit: str
) -> None:
    tokenizer = server.app.state.service.session.tokenizer
    letters = [token for letter in "abc" for token in tokenizer.encode(letter)]
    answer = post(server, path, body, allowed_token_ids=letters, min_tokens=12, **{limit: 12})
    assert tokens(answer)[1] == 12
    assert text(answer)
    assert set(text(answer)) <= set("abc")
    without = post(
        server, path, body, allowed_token_ids=letters, min_tokens=12, logit_bias={str(letters[0]): -100},
        **{limit: 12},
    )  # fmt: skip
    assert text(without)
    assert set(text(without)) <= set("bc")
