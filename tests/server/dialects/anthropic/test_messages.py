"""/v1/messages with Anthropic's own client, and on the wire."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from canvaslm.session import Session

from ....waiting import HUNG, StepGate, wait_for
from ...world import (
    HELLO,
    Running,
    leave_during_a_step,
    paced,
    request_bytes,
    scripted_session,
    serving,
    tiny_session,
)

URL = "/v1/messages"
BODY: dict[str, Any] = {"model": "tiny", "max_tokens": 16, "messages": HELLO}
ADD: Any = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}
THOUGHTFUL = "<|channel>thought\nSix.\n<channel|>It is six."
TOOLS: Any = [ADD, {"name": "now", "input_schema": {"type": "object"}}]
CALLING = "I add.<|tool_call>call:add{a:1,b:[2,3]}<tool_call|><|tool_call>call:now{}<tool_call|>"


def sdk(server: Running, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.url, **{"api_key": "none", "max_retries": 0, "timeout": HUNG, **options}
    )


def seeded(seed: int = 5, **more: Any) -> dict[str, Any]:
    return {"seed": seed, **more}


@pytest.fixture(scope="module")
def scripted() -> Iterator[Running]:
    """By its seed: 0 thinks, 1 calls tools, 2 says little."""
    with serving(scripted_session(THOUGHTFUL, CALLING, "One, two, three, four.")) as running:
        yield running


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """A stream's events; each is named as its data says."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    events = []
    for part in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    return events_of(client.post(URL, json={**BODY, "stream": True, **body}))


# -- the client ----------------------------------------------------------------------------------------------


def test_the_client_gets_the_sessions_answer(server: Running) -> None:
    reply = tiny_session().generate(HELLO, seed=5, max_new_tokens=16)
    answer = sdk(server).messages.create(**BODY, extra_body=seeded())
    assert "".join(block.text for block in answer.content if block.type == "text") == reply.text
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tiny")
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer.usage.output_tokens == reply.usage.completion_tokens == 16
    read = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + read == reply.usage.prompt_tokens
    assert answer._request_id is not None and answer._request_id.startswith("req_")


def test_the_clients_stream_adds_up_to_the_whole(scripted: Running) -> None:
    client = sdk(scripted)
    for seed in range(3):
        request: Any = {**BODY, "max_tokens": 200, "tools": TOOLS, "extra_body": seeded(seed)}
        whole = client.messages.create(**request)
        with client.messages.stream(**request) as events:
            text = "".join(events.text_stream)
            streamed = events.get_final_message()
        ids = {"id", "signature"}
        plain = [block.model_dump(exclude=ids) for block in whole.content]
        assert [block.model_dump(exclude=ids) for block in streamed.content] == plain
        assert text == "".join(block.text for block in whole.content if block.type == "text")
        assert streamed.stop_reason == whole.stop_reason
        assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_thoughts_are_a_block_of_their_own(scripted: Running) -> None:
    answer = sdk(scripted).messages.create(
        **{**BODY, "max_tokens": 2000},
        thinking={"type": "enabled", "budget_tokens": 1024},
        extra_body=seeded(0),
    )
    thought, text = answer.content
    assert thought.type == "thinking" and thought.thinking == "Six."
    assert text.type == "text" and text.text == "It is six."
    assert answer.stop_reason == "end_turn"
    details: Any = answer.usage.output_tokens_details
    assert 0 < details.thinking_tokens < answer.usage.output_tokens


def test_thoughts_can_be_left_out(scripted: Running) -> None:
    answer = sdk(scripted).messages.create(
        **{**BODY, "max_tokens": 200},
        thinking={"type": "adaptive", "display": "omitted"},
        extra_body=seeded(0),
    )
    assert [block.type for block in answer.content] == ["text"]


def test_a_round_with_tools(scripted: Running) -> None:
    client = sdk(scripted)
    request: Any = {**BODY, "max_tokens": 200, "tools": TOOLS}
    first = client.messages.create(**request, extra_body=seeded(1))
    assert first.stop_reason == "tool_use"
    text, add, now = first.content
    assert text.type == "text" and text.text == "I add."
    assert add.type == now.type == "tool_use"
    assert (add.name, add.input) == ("add", {"a": 1, "b": [2, 3]})
    assert (now.name, now.input) == ("now", {})
    assert add.id.startswith("toolu_") and add.id != now.id
    results: Any = [
        {"type": "tool_result", "tool_use_id": add.id, "content": "6"},
        {"type": "tool_result", "tool_use_id": now.id, "content": [{"type": "text", "text": "noon"}]},
    ]
    more: Any = [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    greeting: Any = HELLO
    last = client.messages.create(**{**request, "messages": [*greeting, *more]}, extra_body=seeded(2))
    assert last.stop_reason == "end_turn"
    read = last.usage.cache_read_input_tokens or 0
    counted = client.messages.count_tokens(model="tiny", messages=[*greeting, *more], tools=TOOLS)
    assert counted.input_tokens == last.usage.input_tokens + read


def test_calls_of_what_is_no_tool_are_text(scripted: Running) -> None:
    with scripted.client() as client:
        for streamed in (False, True):
            body = {
                **BODY,
                "messages": HELLO,
                "max_tokens": 200,
                "tools": [ADD],
                "seed": 1,
                "stream": streamed,
            }
            answer = client.post("/v1/messages", json=body).text
            assert "<tool_call|>" in answer and '"unknown_tool"' in answer
            assert answer.count('"tool_use"') == 2  # the call of `add`, and why the turn ended


def test_tokens_are_counted_as_the_session_counts_them(server: Running) -> None:
    session, client = tiny_session(), sdk(server)
    greeting: Any = HELLO
    for system in (None, "Be brief."):
        given: Any = {} if system is None else {"system": system}
        counted = client.messages.count_tokens(model="tiny", messages=greeting, **given)
        assert counted.input_tokens == len(session.encode(HELLO, system=system))
    thinking = client.messages.count_tokens(
        model="tiny",
        messages=greeting,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert thinking.input_tokens == len(session.encode(HELLO, thinking=True))


def test_the_clients_keys() -> None:
    with serving(tiny_session(), api_key="secret") as running:
        for key in ({"api_key": "secret"}, {"api_key": None, "auth_token": "secret"}):
            assert sdk(running, **key).messages.create(**BODY).type == "message"
        with pytest.raises(anthropic.AuthenticationError) as caught:
            sdk(running, api_key="wrong").messages.create(**BODY)
        assert caught.value.type == "authentication_error"
        with running.client(headers={"x-api-key": "secret", "anthropic-version": "1999-01-01"}) as client:
            assert client.post(f"{URL}?beta=true", json=BODY).status_code == 200


def test_the_clients_errors(server: Running) -> None:
    client = sdk(server)
    image: Any = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="images are not supported yet") as bad:
        client.messages.create(**{**BODY, "messages": [{"role": "user", "content": [image]}]})
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.batches.retrieve("batch_1")
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**{**BODY, "messages": [{"role": "user", "content": "word " * 600}]})


# -- the wire ------------------------------------------------------------------------------------------------


def test_events_come_in_order(scripted: Running) -> None:
    with scripted.client() as client:
        events = stream(client, max_tokens=200, seed=1, tools=TOOLS)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["seed"]) == ([], None, 1)
    assert start["usage"]["input_tokens"] > 0
    opened: list[int] = []
    closed: list[int] = []
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert opened == closed  # blocks never interleave
            opened.append(event["index"])
        elif event["type"] == "content_block_stop":
            closed.append(event["index"])
        else:
            assert event["type"] == "content_block_delta" and event["index"] == opened[-1]
            assert opened[-1] not in closed
    assert opened == closed == [0, 1, 2]
    json_text = "".join(
        e["delta"]["partial_json"] for e in events if e.get("delta",
            {}).get("type") == "input_json_delta" and e["index"] == 1
    )  # fmt: skip
    assert json.loads(json_text) == {"a": 1, "b": [2, 3]}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["timings"]["diffusion"]["n_blocks"] > 0


def test_thinking_deltas_end_with_a_signature(scripted: Running) -> None:
    with scripted.client() as client:
        events = stream(client, max_tokens=200, seed=0, thinking={"type": "enabled"})
    deltas = [e["delta"]["type"] for e in events if e["type"] == "content_block_delta" and e["index"] == 0]
    assert deltas[-1] == "signature_delta" and set(deltas[:-1]) == {"thinking_delta"}


def test_a_stop_sequence_is_named(scripted: Running) -> None:
    with scripted.client() as client:
        body = {**BODY, "max_tokens": 200, "seed": 2, "stop_sequences": ["nine", ", three"]}
        answer = client.post(URL, json=body).json()
        assert answer["content"] == [{"type": "text", "text": "One, two"}]
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", ", three")
        ending = stream(client, **body)[-2]
        assert ending["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": ", three"}


def test_a_full_context_is_no_reached_limit() -> None:
    with serving(endless_session()) as running, running.client() as client:
        body = {**BODY, "max_tokens": 10_000, "seed": 5, "max_denoising_steps": 1}
        assert client.post(URL, json=body).json()["stop_reason"] == "model_context_window_exceeded"


def test_unknown_fields_are_tolerated_and_told(client: httpx.Client) -> None:
    body = {**BODY, "seed": 5, "betas": ["x"], "metadata": {"user_id": "u"}, "top_k": 5, "sparkle": True}
    answer = client.post(URL, json=body, headers={"anthropic-version": "2030-01-01"}).json()
    assert {told["param"] for told in answer["warnings"]} == {"top_k", "sparkle"}
    plain = client.post(URL, json={**BODY, "seed": 5}).json()
    assert "warnings" not in plain and plain["content"] == answer["content"]


def test_parameters_reach_the_engine(client: httpx.Client) -> None:
    def content(**more: Any) -> Any:
        return client.post(URL, json={**BODY, "seed": 5, **more}).json()["content"]

    assert content(temperature=20) == content(t_min=8.0, t_max=16.0) != content()
    assert content(temperature=1.0) == content()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"tool_choice": {"type": "tool", "name": "sub"}, "tools": [ADD]}, "there is no tool 'sub'"),
        ({"system": [{"type": "image"}]}, "system.0: images"),
        ({"system": 3}, "system"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, change: dict[str, Any], words: str) -> None:
    for streamed in (False, True):
        response = client.post(URL, json={**BODY, "stream": streamed, **change})
        assert response.status_code == 400, response.text
        answer = response.json()
        assert set(answer) == {"type", "error"} and answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert words in answer["error"]["message"]


def test_errors_before_any_route_have_the_envelope_too() -> None:
    with serving(tiny_session(), max_body=1000) as running, running.client() as client:
        cases = [
            (client.post(URL, json={**BODY, "system": "x" * 2000}), 413, "request_too_large"),
            (client.post(URL, content="{", headers={"content-type": "application/json"}), 400,
             "invalid_request_error"),
            (client.post(URL, content="{}", headers={"content-type": "text/plain"}), 415,
             "invalid_request_error"),
            (client.get(URL), 405, "invalid_request_error"),
            (client.post(f"{URL}/nothing", json={}), 404, "not_found_error"),
            (client.post(URL, json=BODY, headers={"host": "evil.example"}), 421, "invalid_request_error"),
        ]  # fmt: skip
    for response, status, kind in cases:
        assert response.status_code == status
        assert response.json()["type"] == "error" and response.json()["error"]["type"] == kind


def test_a_full_queue_and_a_loading_model() -> None:
    session = endless_session(max_rows=1)
    gate = StepGate(session, free=10)
    with serving(session, max_queue=0) as running, running.client() as client:
        with client.stream("POST", URL, json={**BODY, "max_tokens": 400, "stream": True}) as first:
            chunks = first.iter_bytes()  # dropped, it would hang up
            next(chunks)
            gate.wait_held()
            second = httpx.post(f"{running.url}{URL}", json=BODY, timeout=HUNG)
            gate.open()
        assert (second.status_code, second.json()["error"]["type"]) == (429, "rate_limit_error")
        assert second.headers["retry-after"] == "1"

    asked = threading.Event()

    def never() -> Session:
        asked.wait(HUNG)
        raise RuntimeError("no model")

    with serving(never) as running, running.client() as client:
        early = client.post(URL, json=BODY)
        asked.set()
    assert (early.status_code, early.json()["error"]["type"]) == (503, "overloaded_error")


def test_a_failure_in_a_stream_is_an_event() -> None:
    session = tiny_session()
    run = session.engine.runner.run

    def failing(rows: list[Any]) -> Any:
        if rows[0].sequence.reports:
            raise RuntimeError("secret of the machine room")
        return run(rows)

    session.engine.runner.run = failing  # type: ignore[method-assign]
    with serving(session) as running, running.client() as client:
        events = stream(client, seed=5)
        with (
            pytest.raises(anthropic.APIStatusError) as caught,
            sdk(running).messages.stream(**BODY, extra_body={"seed": 5}) as lines,
        ):
            lines.get_final_message()
    assert caught.value.type == "api_error"
    assert events[-1]["type"] == "error" and events[-1]["error"]["type"] == "api_error"
    assert "secret" not in json.dumps(events)
    assert "message_stop" not in [event["type"] for event in events]


def endless_session(max_rows: int = 8) -> Session:
    """No token ends an answer."""
    session = tiny_session(max_rows=max_rows)
    session.eos_token_ids = ()
    return session


def metrics(running: Running) -> str:
    return httpx.get(f"{running.url}/metrics", timeout=HUNG).text


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_stops_its_request_within_a_step(streamed: bool) -> None:
    session = endless_session()
    gate = StepGate(session, free=14)
    with serving(session) as running:
        request = request_bytes({**BODY, "max_tokens": 400, "stream": streamed, "seed": 5}, URL)
        seen = b"content_block_delta" if streamed else b""
        leave_during_a_step(running, gate, request, seen=seen, orders=1)
        wait_for(lambda: 'canvaslm_requests_total{outcome="cancelled"} 1.0' in metrics(running))
        assert gate.steps == 15  # the one in progress was the last
        assert not session.engine.scheduler.running


def test_a_silent_stream_pings() -> None:
    session = paced(0.03)
    session.eos_token_ids = ()
    with serving(session, keep_alive=0.02) as running, running.client() as client:
        events = stream(client, seed=5)
    assert [event["type"] for event in events].count("ping") > 2
