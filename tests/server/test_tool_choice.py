"""tool_choice in every dialect, through the vendors' own clients, on a model that writes nonsense: what is
guaranteed is guaranteed whatever the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import ollama
import openai
import pytest

from tests.waiting import HUNG

from .world import HELLO, Running, scripted_session, serving, tiny_session

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOT_REGULAR = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
NONE: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def function(name: str, schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


TOOLS: Any = [function("weather", SCHEMA), function("now", NONE)]
SCHEMAS = {"weather": SCHEMA, "now": NONE}
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
CUSTOM: Any = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
ROOM = 120  # tokens


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(tiny_session()) as running:
        yield running


def chat(server: Running, seed: int = 0, **body: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=HUNG)
    given = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "max_tokens": ROOM, "seed": seed, **body}
    return client.chat.completions.create(**given)


def check(name: str, arguments: Any) -> None:
    jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("seed", range(6))
def test_openai_required(server: Running, seed: int) -> None:
    answer = chat(server, seed, tool_choice="required")
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        check(call.function.name, json.loads(call.function.arguments))


@pytest.mark.parametrize("seed", range(3))
def test_openai_named_streamed_and_its_result_fed_back(server: Running, seed: int) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    chunks = list(chat(server, seed, tool_choice=named, stream=True))
    (call,) = [c for chunk in chunks for choice in chunk.choices for c in choice.delta.tool_calls or ()]
    assert call.function.name == "weather"
    check("weather", json.loads(call.function.arguments))
    made = {"id": call.id, "type": "function", "function": call.function.model_dump()}
    turns = [*HELLO, {"role": "assistant", "tool_calls": [made]}]
    turns.append({"role": "tool", "tool_call_id": call.id, "content": '{"sun": true}'})
    last = chat(server, seed, messages=turns, tool_choice="none")
    assert last.usage.prompt_tokens > 0
    assert not last.choices[0].message.tool_calls


def test_one_call_where_they_may_not_be_parallel(server: Running) -> None:
    for seed in range(4):
        answer = chat(server, seed, tool_choice="required", parallel_tool_calls=False)
        assert len(answer.choices[0].message.tool_calls) == 1


def test_a_call_comes_before_the_context_is_full(server: Running) -> None:
    """More tokens are asked for than the context holds: the call still fits into what there is."""
    answer = chat(server, 1, tool_choice="required", max_tokens=400)
    assert answer.usage.total_tokens <= 512
    assert answer.choices[0].message.tool_calls


def test_responses(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=HUNG)
    for choice in ("required", {"type": "function", "name": "weather"}):
        body: Any = {"model": "tiny", "input": "Hello", "tools": FLAT, "tool_choice": choice}
        answer = client.responses.create(**body, max_output_tokens=ROOM, extra_body={"seed": 1})
        calls = [item for item in answer.output if item.type == "function_call"]
        assert calls
        for call in calls:
            check(call.name, json.loads(call.arguments))
        assert json.loads(answer.model_dump_json())["tool_choice"] == choice
        assert answer.parallel_tool_calls is True


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_anthropic(server: Running, choice: Any) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=HUNG)
    body: Any = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": ROOM,
        "tools": CUSTOM,
        "tool_choice": choice,
    }
    answer = client.messages.create(**body, extra_body={"seed": 2})
    assert answer.stop_reason == "tool_use"
    calls = [block for block in answer.content if block.type == "tool_use"]
    for call in calls:
        check(call.name, call.input)
    assert choice["type"] == "any" or [call.name for call in calls] == ["weather"]
    result: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "sun"} for call in calls]
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": result}]
    last = client.messages.create(**{**body, "messages": turns, "tool_choice": {"type": "none"}})
    assert not [block for block in last.content if block.type == "tool_use"]


def test_anthropic_one_call_at_most(server: Running) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=HUNG)
    for seed in range(4):
        body: Any = {"model": "tiny", "messages": HELLO, "max_tokens": ROOM, "tools": CUSTOM}
        body |= {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
        answer = client.messages.create(**body, extra_body={"seed": seed})
        assert len([block for block in answer.content if block.type == "tool_use"]) == 1


def test_ollama(server: Running) -> None:
    """The client has no field for it: ours is sent beside its own."""
    body = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "stream": False, "tool_choice": "required"}
    with server.client() as client:
        answer = client.post("/api/chat", json={**body, "options": {"seed": 3, "num_predict": ROOM}})
    assert answer.status_code == 200, answer.text
    read = ollama.ChatResponse.model_validate(answer.json())
    assert read.message.tool_calls
    for call in read.message.tool_calls:
        check(call.function.name, dict(call.function.arguments))
    results = [
        {"role": "tool", "tool_name": c.function.name, "content": "ok"} for c in read.message.tool_calls
    ]
    sdk = ollama.Client(host=server.url, timeout=HUNG)
    last = sdk.chat("tiny", [*HELLO, read.message, *results], tools=TOOLS, options={"num_predict": 8})
    assert last.done


def test_strict_tools_are_called_rightly_or_not_at_all(server: Running) -> None:
    strict = [function("weather", SCHEMA, strict=True)]
    for seed in range(8):
        for call in chat(server, seed, tools=strict).choices[0].message.tool_calls or ():
            check("weather", json.loads(call.function.arguments))


def test_no_call_comes_where_none_may() -> None:
    text = "Yes.<|tool_call>call:now{}<tool_call|>"
    with serving(scripted_session(text)) as server, server.client() as client:
        body = {"messages": HELLO, "tools": TOOLS, "max_tokens": ROOM, "seed": 0}
        free = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        assert free["finish_reason"] == "tool_calls"
        answer = client.post("/v1/chat/completions", json={**body, "tool_choice": "none"}).json()["choices"][
            0
        ]
        assert "tool_calls" not in answer["message"]
        assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ("chat/completions", {"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        (
            "chat/completions",
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "odd"}}},
            "tool_choice",
        ),
        ("chat/completions", {"tools": [function("odd", NOT_REGULAR)], "tool_choice": "required"}, "tools.0"),
        ("chat/completions", {"tools": [function("odd", NOT_REGULAR, strict=True)]}, "tools.0"),
        ("chat/completions", {"tools": TOOLS, "tool_choice": "required", "max_tokens": 4}, "max_tokens"),
        ("messages", {"tools": CUSTOM, "tool_choice": {"type": "sometimes"}}, "tool_choice"),
        ("messages", {"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_what_cannot_be_guaranteed_is_refused(
    server: Running, path: str, body: dict[str, Any], param: str
) -> None:
    with server.client() as client:
        answer = client.post(f"/v1/{path}", json={"messages": HELLO, "max_tokens": ROOM, **body})
    assert answer.status_code == 400, answer.text
    if path != "messages":
        assert answer.json()["error"]["param"] == param


def test_a_schema_beyond_the_automaton_leaves_arguments_free_in_auto_and_says_so(server: Running) -> None:
    tools = [function("odd", NOT_REGULAR), *TOOLS]
    with server.client() as client:
        body = {"messages": HELLO, "tools": tools, "max_tokens": ROOM, "parallel_tool_calls": False}
        answer: httpx.Response = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    told = [told for told in answer.json()["warnings"] if told["code"] == "free_arguments"]
    assert len(told) == 1 and "'odd'" in told[0]["message"]
