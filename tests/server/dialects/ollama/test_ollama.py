"""Ollama's interface with its own client, and on the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import ollama
import pytest

from canvaslm.bench.parts import is_denoising
from canvaslm.server.dialects.ollama.models import is_ours, named, tag_of
from canvaslm.server.dialects.ollama.schema import GenerateRequest, OllamaChatRequest, OllamaOptions

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

THOUGHTFUL = "<|channel>thought\nSix.\n<channel|>It is six."
CALLING = "I add.<|tool_call>call:add{a:1,b:[2,3]}<tool_call|><|tool_call>call:now{}<tool_call|>"
COUNTING = "One, two, three, four."
ADD: Any = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
TOOLS: Any = [ADD, {"type": "function", "function": {"name": "now", "parameters": {}}}]
ROUTES = [("/api/generate", {"prompt": "Hello"}), ("/api/chat", {"messages": HELLO})]


def sdk(server: Running, **headers: str) -> ollama.Client:
    return ollama.Client(host=server.url, headers=headers, timeout=HUNG)


def options(seed: int, **more: Any) -> dict[str, Any]:
    return {"seed": seed, "num_predict": 200, **more}


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture(scope="module")
def scripted() -> Iterator[Running]:
    """By its seed: 0 thinks, 1 calls tools, 2 counts."""
    with serving(scripted_session(THOUGHTFUL, CALLING, COUNTING)) as running:
        yield running


# -- the client ----------------------------------------------------------------------------------------------


def test_the_client_gets_the_sessions_answer(server: Running) -> None:
    reply = tiny_session().generate(HELLO, seed=5, max_new_tokens=16)
    given = {"seed": 5, "num_predict": 16}
    chat = sdk(server).chat("tiny", HELLO, options=given)
    generated = sdk(server).generate("tiny", "Hello", options=given)
    assert chat.message.content == generated.response == reply.text
    for answer in (chat, generated):
        assert (answer.model, answer.done, answer.done_reason) == ("tiny", True, "length")
        assert answer.prompt_eval_count == reply.usage.prompt_tokens
        assert answer.eval_count == reply.usage.completion_tokens == 16


def test_durations_are_nanoseconds() -> None:
    """Against denoising steps that take 50 ms at least, and against the client's clock."""
    session = tiny_session()
    run = session.engine.runner.run
    steps = 0

    def slowly(rows: list[Any]) -> Any:
        nonlocal steps
        if is_denoising(rows):
            steps += 1
            time.sleep(0.05)
        return run(rows)

    session.engine.runner.run = slowly  # type: ignore[method-assign]
    with serving(session) as running:
        begin = time.perf_counter()
        answer = sdk(running).chat("tiny", HELLO, options=options(5))
        wall = (time.perf_counter() - begin) * 1e9
    assert answer.total_duration and answer.eval_duration and answer.prompt_eval_duration
    assert 0 < answer.prompt_eval_duration <= answer.total_duration < wall
    assert steps * 0.05e9 < answer.eval_duration <= answer.total_duration
    assert answer.created_at and answer.created_at.endswith("Z")
    assert datetime.now(UTC) - datetime.fromisoformat(answer.created_at) < timedelta(hours=1)


def test_the_clients_stream_adds_up_to_the_whole(scripted: Running) -> None:
    client = sdk(scripted)
    for seed in range(3):
        whole = client.chat("tiny", HELLO, tools=TOOLS, options=options(seed))
        parts = list(client.chat("tiny", HELLO, tools=TOOLS, options=options(seed), stream=True))
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
        assert "".join(part.message.thinking or "" for part in parts) == (whole.message.thinking or "")
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert calls == list(whole.message.tool_calls or ())
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert (parts[-1].done_reason, parts[-1].eval_count) == (whole.done_reason, whole.eval_count)


def test_generate_streams_too(scripted: Running) -> None:
    parts = list(sdk(scripted).generate("tiny", "Count", options=options(2), stream=True))
    assert "".join(part.response or "" for part in parts) == COUNTING
    assert len(parts) > 2 and parts[-1].done_reason == "stop"


def test_thoughts_have_a_field_of_their_own(scripted: Running) -> None:
    client = sdk(scripted)
    chat = client.chat("tiny", HELLO, think=True, options=options(0))
    assert (chat.message.thinking, chat.message.content) == ("Six.", "It is six.")
    generated = client.generate("tiny", "2 x 3?", think="high", options=options(0))
    assert (generated.thinking, generated.response) == ("Six.", "It is six.")


def test_a_round_with_tools(scripted: Running) -> None:
    client = sdk(scripted)
    first = client.chat("tiny", HELLO, tools=TOOLS, options=options(1))
    assert first.message.content == "I add." and first.done_reason == "stop"
    calls = list(first.message.tool_calls or ())
    assert [(c.function.name, dict(c.function.arguments)) for c in calls] == [
        ("add", {"a": 1, "b": [2, 3]}),
        ("now", {}),
    ]
    results = [
        {"role": "tool", "tool_name": "add", "content": "6"},
        {"role": "tool", "tool_name": "now", "content": "noon"},
    ]
    last = client.chat("tiny", [*HELLO, first.message, *results], tools=TOOLS, options=options(2))
    assert last.message.content == COUNTING
    assert last.prompt_eval_count and first.prompt_eval_count
    assert last.prompt_eval_count > first.prompt_eval_count


def test_calls_of_what_is_no_tool_are_text(scripted: Running) -> None:
    with scripted.client() as client:
        body = {"messages": HELLO, "tools": [ADD], "stream": False, "options": options(1)}
        answer = client.post("/api/chat", json={"model": "tiny", **body}).json()
    assert answer["message"]["content"] == "I add.<|tool_call>call:now{}<tool_call|>"
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["add"]
    assert [told["code"] for told in answer["warnings"]] == ["unknown_tool"]


def test_log_probabilities(scripted: Running) -> None:
    answer = sdk(scripted).chat("tiny", HELLO, logprobs=True, top_logprobs=2, options=options(2))
    assert answer.logprobs
    assert "".join(token.token for token in answer.logprobs) == COUNTING
    assert all(token.logprob <= 0 and len(token.top_logprobs or ()) == 2 for token in answer.logprobs)


def test_the_client_sees_the_model(server: Running) -> None:
    client, session = sdk(server), tiny_session()
    (listed,) = client.list().models
    assert listed.model == "tiny:latest" and listed.details and listed.details.quantization_level == "F32"
    model = session.engine.runner.model
    count = sum(parameter.numel() for parameter in model.parameters())
    count += sum(value.numel() for name, value in model.named_buffers() if name.endswith("layer_scalar"))
    assert listed.size and listed.size >= 4 * count
    assert listed.digest and len(listed.digest) == 64
    shown = client.show("tiny")
    info = shown.modelinfo or {}
    assert info["general.parameter_count"] == count
    assert info[f"{info['general.architecture']}.context_length"] == session.engine.max_context == 512
    assert shown.capabilities == ["completion", "insert", "tools", "thinking"]
    assert shown.template and shown.template.startswith(session.template.sources["default"])
    (running,) = client.ps().models
    assert (running.model, running.digest, running.size_vram) == (listed.model, listed.digest, 0)
    assert running.expires_at and running.expires_at.year == 9999


def test_the_clients_errors(server: Running) -> None:
    client = sdk(server)
    with pytest.raises(ollama.ResponseError, match="'llama3' not found") as missing:
        client.show("llama3")
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="is never closed") as bad:
        client.chat("tiny", HELLO, options={"guided_regex": "("})
    assert bad.value.status_code == 400
    for act in (lambda: client.pull("x"), lambda: client.embed("tiny", "x"), lambda: client.delete("x")):
        with pytest.raises(ollama.ResponseError) as nothing:
            act()
        assert nothing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not fit the context"):
        client.chat("tiny", [{"role": "user", "content": "word " * 600}])


def test_the_clients_key() -> None:
    with serving(tiny_session(), api_key="secret") as running:
        assert sdk(running, authorization="Bearer secret").chat("tiny", HELLO).done
        with pytest.raises(ollama.ResponseError, match="API key") as caught:
            sdk(running).list()
        assert caught.value.status_code == 401
        assert httpx.get(running.url, timeout=HUNG).text == "Ollama is running"


# -- the wire ------------------------------------------------------------------------------------------------


def test_it_says_that_it_runs(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.text) == (200, "Ollama is running")
    assert answer.headers["content-type"].startswith("text/plain")
    assert client.head("/").status_code == 200


def test_the_version_is_the_interfaces(client: httpx.Client) -> None:
    from canvaslm import __version__

    version = client.get("/api/version").json()
    assert version["canvaslm"] == __version__
    assert [int(part) for part in version["version"].split(".")] >= [0, 12]  # what clients look for


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_lines_are_the_default(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    body = {**body, "options": {"seed": 5}}
    lines = lines_of(client.post(path, json=body))
    assert lines[-1]["done"] and not any(line["done"] for line in lines[:-1])
    assert lines[-1]["seed"] == 5
    key = "response" if path == "/api/generate" else "message"
    assert all(set(line) >= {"model", "created_at", "done", key} for line in lines)
    whole = client.post(path, json={**body, "stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["eval_count"] == lines[-1]["eval_count"]


@pytest.mark.parametrize(
    ("path", "body"), [("/api/generate", {}), ("/api/chat", {}), ("/api/chat", {"messages": []})]
)
def test_an_empty_request_only_loads(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    for alive, reason in ((None, "load"), ("5m", "load"), (-1, "load"), (0, "unload"), ("0s", "unload")):
        answer = client.post(path, json={**body, "keep_alive": alive}).json()
        assert (answer["done"], answer["done_reason"]) == (True, reason)


def test_a_raw_prompt_is_taken_as_it_is(client: httpx.Client) -> None:
    body = {"prompt": "Hello", "raw": True, "stream": False, "options": {"seed": 5}}
    answer = client.post("/api/generate", json=body).json()
    session = tiny_session()
    assert answer["prompt_eval_count"] == len(session.encode("Hello", raw=True))
    completion = client.post("/v1/completions", json={"prompt": "Hello", "seed": 5}).json()
    assert answer["response"] == completion["choices"][0]["text"]


def test_a_system_prompt(client: httpx.Client) -> None:
    body = {"prompt": "Hello", "system": "Be brief.", "stream": False, "options": {"seed": 5}}
    answer = client.post("/api/generate", json=body).json()
    assert answer["prompt_eval_count"] == len(tiny_session().encode("Hello", system="Be brief."))


def test_stop_strings(scripted: Running) -> None:
    with scripted.client() as client:
        for stop in (", three", ["nine", ", three"]):
            body = {"prompt": "Count", "stream": False, "options": options(2, stop=stop)}
            answer = client.post("/api/generate", json=body).json()
            assert (answer["response"], answer["done_reason"]) == ("One, two", "stop")


def test_options_reach_the_engine(client: httpx.Client) -> None:
    def text(**given: Any) -> str:
        body = {"prompt": "Hello", "stream": False, "options": {"seed": 5, **given}}
        return str(client.post("/api/generate", json=body).json()["response"])

    assert text(temperature=20) == text(t_min=8.0, t_max=16.0) != text()
    assert text(num_ctx=2048, num_gpu=1, keep_alive="1m") == text()


def test_options_without_a_limit_fill_the_context() -> None:
    given = {"num_predict": -1, "seed": -7}
    assert OllamaOptions.model_validate(given).params(512) == {"max_new_tokens": 512}
    assert OllamaOptions.model_validate({"num_predict": 9}).params(512) == {"max_new_tokens": 9}
    assert OllamaOptions.model_validate({}).params(512) == {}


def test_options_without_effect_are_told(client: httpx.Client) -> None:
    given = {"seed": 5, "num_predict": 8, "top_k": 40, "num_ctx": 4096, "sparkle": 1}
    answer = client.post("/api/generate", json={"prompt": "x", "stream": False, "options": given}).json()
    told = {warning["param"]: warning["message"] for warning in answer["warnings"]}
    assert set(told) == {"top_k", "sparkle"}
    assert "top_k_start" in told["top_k"] and "unknown" in told["sparkle"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "yaml"}, "format is no JSON"),
        ({"template": "{{ .Prompt }}"}, "templates in requests are not run"),
        ({"options": {"chat_template": "x"}}, "templates in requests are not run"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"num_predict": 2**70}}, "options.num_predict"),
        ({"options": {"stop": ["x"] * 65}}, "options.stop"),
        ({"options": {"max_denoising_steps": 0}}, "options.max_denoising_steps"),
        ({"options": 5}, "options"),
        ({"think": "sometimes"}, "think"),
        ({"keep_alive": []}, "keep_alive"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, path: str, body: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    for streamed in (True, False):
        response = client.post(path, json={**body, "stream": streamed, **change})
        assert response.status_code == 400, response.text
        assert set(response.json()) == {"error"} and words in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "images are not supported yet"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "/api/chat"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "s"}, "raw"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("/api/chat", {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ("/api/show", {}, "model is required"),
    ],
)
def test_the_impossible_is_refused(client: httpx.Client, path: str, body: dict[str, Any], words: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert set(response.json()) == {"error"} and words in response.json()["error"]


def test_empty_fields_are_no_wishes() -> None:
    GenerateRequest.model_validate(
        {"prompt": "x", "template": "", "suffix": "", "images": [], "context": [], "format": "", "system": ""}
    ).refuse()
    OllamaChatRequest.model_validate({"messages": [], "format": None, "options": None, "tools": []}).refuse()


def test_errors_before_any_route_have_the_envelope_too() -> None:
    with serving(tiny_session(), max_body=1000) as running, running.client() as client:
        big = client.post("/api/chat", json={"messages": [{"role": "user", "content": "x" * 2000}]})
        form = client.post("/api/generate", content='{"prompt": "x"}', headers={"content-type": "text/plain"})
        wrong = client.get("/api/chat")
    for response, status in ((big, 413), (form, 415), (wrong, 405)):
        assert response.status_code == status
        assert list(response.json()) == ["error"] and isinstance(response.json()["error"], str)


def test_a_failure_in_a_stream_is_its_last_line() -> None:
    session = tiny_session()
    run = session.engine.runner.run

    def failing(rows: list[Any]) -> Any:
        if rows[0].sequence.reports:
            raise RuntimeError("secret of the machine room")
        return run(rows)

    session.engine.runner.run = failing  # type: ignore[method-assign]
    with serving(session) as running, running.client() as client:
        lines = lines_of(client.post("/api/chat", json={"messages": HELLO, "options": {"seed": 5}}))
        with pytest.raises(ollama.ResponseError, match="failed"):
            list(sdk(running).chat("tiny", HELLO, options={"seed": 5}, stream=True))
    assert set(lines[-1]) == {"error"} and "secret" not in lines[-1]["error"]
    assert not any(line.get("done") for line in lines)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_stops_its_request_within_a_step(streamed: bool) -> None:
    session = tiny_session()
    session.eos_token_ids = ()
    gate = StepGate(session, free=14)
    body = {"messages": HELLO, "stream": streamed, "options": {"seed": 5, "num_predict": -1}}
    with serving(session) as running:
        request = request_bytes(body, "/api/chat")
        leave_during_a_step(running, gate, request, seen=b'"content":"' if streamed else b"", orders=1)
        wait_for(lambda: 'outcome="cancelled"} 1.0' in httpx.get(f"{running.url}/metrics", timeout=HUNG).text)
        assert gate.steps == 15  # the one in progress was the last


def test_a_silent_stream_has_no_empty_lines() -> None:
    with serving(paced(0.03), keep_alive=0.01) as running:
        parts = list(sdk(running).chat("tiny", HELLO, options={"seed": 5}, stream=True))
    assert parts[-1].done


def test_the_checkpoints_own_format_is_reported() -> None:
    """Weights packed for our kernels are no tensors, and unpacked ones have another
    type: the file's word counts."""
    session = tiny_session()
    session.format = "Q4_K_M"
    with serving(session) as running:
        client = sdk(running)
        (listed,) = client.list().models
        shown = client.show("tiny")
    assert listed.details and shown.details
    assert listed.details.quantization_level == shown.details.quantization_level == "Q4_K_M"


# -- names ---------------------------------------------------------------------------------------------------


def test_names_have_tags() -> None:
    assert tag_of("demo") == "demo:latest" and tag_of("demo:q4") == "demo:q4"
    assert tag_of("host:5000/demo") == "host:5000/demo:latest"
    assert is_ours("demo", "demo") and is_ours("demo:latest", "demo") and not is_ours("demo:q4", "demo")
    assert named("demo:latest", "demo") == "demo:latest"
    assert named("gpt", "demo") == named(None, "demo") == "demo"
