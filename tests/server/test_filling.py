"""Text between two others over HTTP, in each dialect: whole and streamed, errors, usage, seeds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import canvaslm
from canvaslm.server.dialects.inception.schema import FimRequest
from canvaslm.server.dialects.llama_server.infill import InfillRequest
from canvaslm.server.dialects.ollama.schema import GenerateRequest
from canvaslm.server.dialects.openai.schema import CompletionRequest

from .world import Running, serving, tiny_session

BEFORE, BEHIND = "def triple(", " * 3"
EDITED = """<|current_file_content|>
current_file_path: count.txt
34 35
<|code_to_edit|>
36<|cursor|> 38
<|/code_to_edit|>
38 39
<|/current_file_content|>
<|edit_diff_history|>
<|/edit_diff_history|>"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with canvaslm.load() as session, serving(session) as running:
        yield running


@pytest.fixture
def client(demo: Running) -> Iterator[httpx.Client]:
    with demo.client() as client:
        yield client


def _events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events, the end mark left out."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _wanted() -> str:
    with canvaslm.load() as session:
        return session.infill(BEFORE, BEHIND, seed=3).holes[0]


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/infill", InfillRequest, {"input_prefix": "a", "input_suffix": "b"}),
        ("/v1/completions", CompletionRequest, {"prompt": "a", "suffix": "b"}),
        ("/v1/fim/completions", FimRequest, {"prompt": "a", "suffix": "b"}),
        ("/api/generate", GenerateRequest, {"model": "demo", "prompt": "a", "suffix": "b"}),
    ],
)
def test_texts_are_put_together_beside_the_loop_that_answers(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, kind: Any, body: dict[str, Any]
) -> None:
    readers: list[str] = []
    made = kind.filling

    def noted(self: Any) -> Any:
        readers.append(threading.current_thread().name)
        return made(self)

    monkeypatch.setattr(kind, "filling", noted)
    assert client.post(path, json={**body, "max_denoising_steps": 1}).status_code == 200
    assert readers and all(name.startswith("canvaslm-prompts") for name in readers)


def test_every_dialect_gives_what_python_gives(client: httpx.Client) -> None:
    wanted = _wanted()
    openai_like = {"prompt": BEFORE, "suffix": BEHIND, "seed": 3}
    completion = client.post("/v1/completions", json=openai_like).json()
    assert completion["choices"][0]["text"] == wanted
    assert completion["choices"][0]["finish_reason"] == "stop" and completion["seed"] == 3
    fim = client.post("/v1/fim/completions", json={**openai_like, "random_seed": 3}).json()
    (choice,) = fim["choices"]
    assert choice["text"] == choice["message"]["content"] == wanted
    llama = {"input_prefix": BEFORE[:5], "prompt": BEFORE[5:], "input_suffix": BEHIND, "seed": 3}
    infill = client.post("/infill", json=llama).json()
    assert infill["content"] == wanted and infill["stop"] and infill["stop_type"] == "eos"
    ollama = {"prompt": BEFORE, "suffix": BEHIND, "stream": False, "options": {"seed": 3}}
    assert client.post("/api/generate", json=ollama).json()["response"] == wanted
    counted = completion["usage"]
    assert counted["prompt_tokens"] > 0 and counted["completion_tokens"] > 0
    assert infill["tokens_predicted"] == counted["completion_tokens"]


def test_streams_add_up_to_the_same(client: httpx.Client) -> None:
    wanted = _wanted()
    body = {"prompt": BEFORE, "suffix": BEHIND, "seed": 3, "stream": True}
    chunks = _events(client.post("/v1/completions", json=body))
    assert "".join(c["choices"][0]["text"] for c in chunks) == wanted
    fim = _events(client.post("/v1/fim/completions", json=body))
    assert "".join(c["choices"][0]["text"] for c in fim) == wanted
    assert "".join(c["choices"][0]["delta"]["content"] for c in fim) == wanted
    assert fim[-1]["choices"][0]["finish_reason"] == "stop" and fim[-1]["usage"]["completion_tokens"]
    llama = {"input_prefix": BEFORE, "input_suffix": BEHIND, "seed": 3, "stream": True}
    pieces = _events(client.post("/infill", json=llama))
    assert "".join(p["content"] for p in pieces) == wanted
    assert [p["stop"] for p in pieces] == [False] * (len(pieces) - 1) + [True]
    lines = client.post("/api/generate", json={**body, "options": {"seed": 3}}).text.splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == wanted


def test_drafts_of_the_hole_are_streamed(client: httpx.Client) -> None:
    body = {"prompt": BEFORE, "suffix": BEHIND, "seed": 3, "stream": True, "diffusing": True}
    texts = [c["choices"][0]["text"] for c in _events(client.post("/v1/completions", json=body))]
    assert len(texts) > 1 and texts[-1] == _wanted()
    assert not any(BEHIND in text for text in texts)


def test_the_openai_sdk_fills_in(demo: Running) -> None:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none") as sdk:
        answer = sdk.completions.create(model="demo", prompt=BEFORE, suffix=BEHIND, seed=3, max_tokens=30)
    assert answer.choices[0].text == _wanted() and answer.usage


def test_a_prompt_without_a_suffix_goes_on(client: httpx.Client) -> None:
    body = {"prompt": "11 12 13", "max_tokens": 6, "seed": 1}
    (choice,) = client.post("/v1/fim/completions", json=body).json()["choices"]
    assert choice["finish_reason"] in ("stop", "length") and choice["text"]


def test_an_edit_answers_with_the_marked_part_in_a_fence(client: httpx.Client) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": EDITED}], "seed": 1}
    message = client.post("/v1/edit/completions", json=body).json()["choices"][0]["message"]
    assert message["content"].startswith("```\n") and message["content"].endswith("\n\n```")
    assert "34 35" not in message["content"]
    streamed = _events(client.post("/v1/edit/completions", json={**body, "stream": True}))
    assert "".join(c["choices"][0]["delta"]["content"] for c in streamed) == message["content"]


def test_a_change_is_applied_to_the_whole_code(client: httpx.Client) -> None:
    asked = "<|original_code|>\na = 1\n<|/original_code|>\n<|update_snippet|>\na = 2\n<|/update_snippet|>"
    body = {"messages": [{"role": "user", "content": asked}], "max_tokens": 20, "seed": 0}
    answer = client.post("/v1/apply/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] > 0 and answer["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/completions", {"prompt": [1, 2], "suffix": "x"}, "suffix", "one prompt that is a text"),
        ("/v1/completions", {"prompt": "a", "suffix": "x", "n": 2}, "n", "not possible where text"),
        ("/v1/completions", {"prompt": "a", "suffix": "x", "logprobs": 1}, "logprobs", "not possible"),
        ("/v1/fim/completions", {"prompt": "a", "suffix": "x", "logit_bias": {"5": 1}}, "logit_bias", "not"),
        ("/v1/fim/completions", {"prompt": "a", "guided_regex": "b"}, "guided_regex", "not possible"),
        ("/infill", {"input_prefix": "a", "grammar": 'root ::= "b"'}, "grammar", "not possible"),
        ("/v1/fim/completions", {"suffix": "x"}, "prompt", "required"),
        ("/infill", {"input_prefix": "a\ud800", "input_suffix": "b"}, "input_prefix", "surrogate"),
        ("/infill", {"input_prefix": "a " * 40_000, "input_suffix": "b"}, "input_prefix", "does not fit"),
        ("/v1/edit/completions", {"messages": [{"role": "user", "content": "x"}]}, "messages", "mark what"),
        ("/v1/apply/completions", {"messages": [{"role": "user", "content": "x"}]}, "messages", "original"),
        (
            "/v1/apply/completions",
            {"messages": [{"role": "system", "content": "x"}]},
            "messages",
            "no user's",
        ),
    ],
)
def test_what_cannot_be_is_said(
    client: httpx.Client, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "11 12 13 14 15", "suffix": " 30 31 32", "max_tokens": 4}),
        ("/v1/fim/completions", {"prompt": "11 12 13 14 15", "suffix": " 30 31 32", "max_tokens": 4}),
        ("/infill", {"input_prefix": "11 12 13 14 15", "input_suffix": " 30 31 32", "n_predict": 4}),
        (
            "/api/generate",
            {"prompt": "11 12 13 14 15", "suffix": " 30 31 32", "options": {"num_predict": 4, "seed": 0}},
        ),
    ],
)
def test_a_hole_that_is_cut_is_told(
    client: httpx.Client, path: str, body: dict[str, Any], stream: bool
) -> None:
    response = client.post(path, json={"model": "demo", "seed": 0, "stream": stream, **body})
    assert response.status_code == 200
    last = _last(response, path, stream)
    (warning,) = [w for w in last["warnings"] if w.get("code") == "hole_cut"]
    assert "hole 1 is cut at its limit of 4 tokens: its max, or" in warning["message"]
    ending = last["choices"][0] if "choices" in last else last
    assert (
        "length" in (ending.get("finish_reason"), ending.get("done_reason")) or last["stop_type"] == "limit"
    )
    assert ending["finish_details"][0]["reason"] == "hole_cut"


def _last(response: httpx.Response, path: str, stream: bool) -> Any:
    """The whole answer, or what ends its stream."""
    if not stream:
        return response.json()
    if path == "/api/generate":
        return json.loads(response.text.splitlines()[-1])
    return _events(response)[-1]


def test_a_part_longer_than_a_hole_may_be_is_refused_with_both_numbers(client: httpx.Client) -> None:
    asked = "a\n<|code_to_edit|>\n" + "1 2 3 " * 50 + "\n<|/code_to_edit|>\nb c d e f"
    response = client.post("/v1/edit/completions", json={"messages": [{"role": "user", "content": asked}]})
    assert response.status_code == 400
    assert "at most" in response.json()["error"]["message"] and "4 canvases of 64" in response.text


def test_ollama_words_errors_its_own_way_and_names_its_ability(client: httpx.Client) -> None:
    body = json.dumps({"prompt": "a\ud800", "suffix": "b"})
    refused = client.post("/api/generate", content=body)
    assert refused.status_code == 400 and isinstance(refused.json()["error"], str)
    shown = client.post("/api/show", json={"model": "demo"}).json()
    assert ".Suffix" in shown["template"] and "insert" in shown["capabilities"]


def test_rounds_wait_where_other_requests_have_all_places() -> None:
    with serving(tiny_session(max_rows=1), max_queue=1) as running, running.client() as client:
        for seed in range(3):  # canvases of nonsense: several lengths are as good, and tried
            body = {"prompt": "a b", "suffix": "c d e f g h", "seed": seed, "max_tokens": 3}
            assert client.post("/v1/completions", json=body).status_code == 200
        assert running.app.state.service.bridge.reserved == 0
