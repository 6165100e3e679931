"""Bodies wrong in many places cost no more than their first fault, and lists have a stated length."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from canvaslm.server import create_app
from canvaslm.server.dialects.anthropic.schema import MessagesRequest
from canvaslm.server.dialects.llama_server.routes import ApplyTemplateRequest, DetokenizeRequest
from canvaslm.server.dialects.ollama.schema import OllamaChatRequest
from canvaslm.server.dialects.openai.responses_schema import ResponsesRequest
from canvaslm.server.dialects.openai.schema import ChatRequest, CompletionRequest
from canvaslm.server.limits import MAX_BLOCKS, MAX_MESSAGES, MAX_TOOLS

from .world import HELLO, tiny_session

WRONG: list[Any] = [None] * 5000
TURN = {"role": "user", "content": WRONG}
CASES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ChatRequest, {"messages": WRONG}),
    (ChatRequest, {"messages": [TURN]}),
    (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": WRONG}]}),
    (ChatRequest, {"messages": HELLO, "tools": WRONG}),
    (ChatRequest, {"messages": HELLO, "stop": WRONG}),
    (ChatRequest, {"messages": HELLO, "modalities": WRONG}),
    (CompletionRequest, {"prompt": WRONG}),
    (CompletionRequest, {"prompt": [WRONG] * 100}),
    (ResponsesRequest, {"input": WRONG}),
    (MessagesRequest, {"max_tokens": 1, "messages": WRONG}),
    (MessagesRequest, {"max_tokens": 1, "messages": [TURN]}),
    (MessagesRequest, {"max_tokens": 1, "messages": HELLO, "system": WRONG}),
    (MessagesRequest, {"max_tokens": 1, "messages": HELLO, "stop_sequences": WRONG}),
    (OllamaChatRequest, {"messages": WRONG}),
    (OllamaChatRequest, {"messages": HELLO, "options": {"stop": WRONG}}),
    (DetokenizeRequest, {"tokens": WRONG}),
    (ApplyTemplateRequest, {"messages": WRONG}),
]


@pytest.mark.parametrize(("schema", "body"), CASES)
def test_a_list_stops_at_its_first_fault(schema: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    assert caught.value.error_count() <= 4  # one for each kind of value that a field takes


def post(content: dict[str, Any] | bytes) -> httpx.Response:
    async def scene() -> httpx.Response:
        app = create_app(tiny_session())
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            while (await client.get("/health")).status_code == 503:
                await asyncio.sleep(0.01)
            if isinstance(content, bytes):
                headers = {"content-type": "application/json"}
                return await client.post("/v1/chat/completions", content=content, headers=headers)
            return await client.post("/v1/chat/completions", json=content)

    return asyncio.run(scene())


@pytest.mark.parametrize(
    ("field", "most", "body"),
    [
        ("messages", MAX_MESSAGES, {"messages": HELLO * (MAX_MESSAGES + 1)}),
        ("tools", MAX_TOOLS, {"messages": HELLO, "tools": [{}] * (MAX_TOOLS + 1)}),
        ("content", MAX_BLOCKS, {"messages": [{"role": "user", "content": [{}] * (MAX_BLOCKS + 1)}]}),
    ],
)
def test_too_many_items_are_refused_by_name(field: str, most: int, body: dict[str, Any]) -> None:
    answer = post(body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert field in error["param"] and str(most) in error["message"]
    assert error["code"] == ("context_length_exceeded" if field == "messages" else "invalid_value")


@pytest.mark.parametrize("content", [b"{", b'{"a": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000])
def test_whatever_is_no_json_is_told_alike(content: bytes) -> None:
    answer = post(content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_json")
    assert error["message"] == "the body is not valid JSON"
