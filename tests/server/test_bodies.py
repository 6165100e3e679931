"""Bodies wrong in many places cost no more than their first fault, and lists have a stated length."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from canvaslm.server import bodies
from canvaslm.server.bodies import BodyRoute, no_json, read
from canvaslm.server.dialects.anthropic.schema import MessagesRequest
from canvaslm.server.dialects.llama_server.routes import ApplyTemplateRequest, DetokenizeRequest
from canvaslm.server.dialects.ollama.schema import OllamaChatRequest
from canvaslm.server.dialects.openai.responses_schema import ResponsesRequest
from canvaslm.server.dialects.openai.schema import ChatRequest, CompletionRequest
from canvaslm.server.dialects.registry import DIALECTS
from canvaslm.server.limits import MAX_BLOCKS, MAX_DEPTH, MAX_MESSAGES, MAX_TOOLS
from canvaslm.server.problems import Problem

from .world import HELLO

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


def post(client: httpx.Client, content: dict[str, Any] | bytes) -> httpx.Response:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post("/v1/chat/completions", content=data, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("field", "most", "body"),
    [
        ("messages", MAX_MESSAGES, {"messages": HELLO * (MAX_MESSAGES + 1)}),
        ("tools", MAX_TOOLS, {"messages": HELLO, "tools": [{}] * (MAX_TOOLS + 1)}),
        ("content", MAX_BLOCKS, {"messages": [{"role": "user", "content": [{}] * (MAX_BLOCKS + 1)}]}),
    ],
)
def test_too_many_items_are_refused_by_name(
    client: httpx.Client, field: str, most: int, body: dict[str, Any]
) -> None:
    answer = post(client, body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert field in error["param"] and str(most) in error["message"]
    assert error["code"] == ("context_length_exceeded" if field == "messages" else "invalid_value")


def levels(count: int) -> bytes:
    return b'{"messages":' + b"[" * (count - 1) + b"]" * (count - 1) + b"}"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b"]" * 500_000,
        b'{"a":' * 100_000,
        levels(MAX_DEPTH + 1),
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": ' + b"1" * 5000 + b"}",
        '{"a": "b"}'.encode("utf-16"),
        b'{"a": 1}' + b" " * 100_000 + b"}",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_whatever_is_no_json_is_told_alike(client: httpx.Client, content: bytes) -> None:
    answer = post(client, content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_json")
    assert error["message"] == str(no_json())


def test_what_is_read_of_json_is_stated() -> None:
    assert read(b'\xef\xbb\xbf{"a": 1, "a": 2}') == {"a": 2}  # the last of two keys counts
    assert read(rb'["\ud800", "\\", "\"[["]') == ["\ud800", "\\", '"[[']
    assert read(levels(MAX_DEPTH)) == json.loads(levels(MAX_DEPTH))


MISLEADING = st.text(st.sampled_from('[]{},\\":€a'))
VALUES = st.recursive(
    st.none() | MISLEADING,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MISLEADING, inner, max_size=4),
)


def count(value: Any) -> tuple[int, int, int]:
    """Of a value: lists and objects; those and commas; levels."""
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [count(one) for one in (value.values() if isinstance(value, dict) else value)]
    containers = 1 + sum(one[0] for one in inner)
    return (
        containers,
        1 + sum(one[1] for one in inner) + max(len(value) - 1, 0),
        1 + max((one[2] for one in inner), default=0),
    )


@given(VALUES, st.integers(1, 40))
def test_what_stands_in_strings_is_not_counted(value: Any, piece: int) -> None:
    value = [value, 1, '"[{,\\']
    wanted = dict(zip(("MAX_CONTAINERS", "MAX_VALUES", "MAX_DEPTH"), count(value), strict=True))
    text = json.dumps(value, ensure_ascii=False).encode()
    for lowered in (None, *wanted):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies, "_SLICE", piece)
            for name, most in wanted.items():
                patch.setattr(bodies, name, most - (name == lowered))
            if lowered is None:
                assert read(text) == value
            else:
                with pytest.raises(Problem) as caught:
                    read(text)
                assert caught.value.code == ("invalid_json" if lowered == "MAX_DEPTH" else "invalid_value")


def test_every_route_with_a_body_reads_it_so() -> None:
    every = [route for dialect in DIALECTS for router in dialect.routers for route in router.routes]
    routes = [route for route in every if isinstance(route, APIRoute) and route.body_field]
    assert len(routes) >= 10
    assert [route.path for route in routes if not isinstance(route, BodyRoute)] == []
