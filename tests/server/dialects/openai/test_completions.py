"""Completions: texts and token ids without a template."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from canvaslm.text.doubt import mean_causal

from ...world import chunks_of, tiny_session

URL = "/v1/completions"


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json={"prompt": "Once", "seed": 5, **body})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def test_the_answer_is_that_of_the_session(client: httpx.Client) -> None:
    session = tiny_session()
    reply = session.generate("Once", raw=True, seed=5)
    answer = ask(client)
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == session.tokenizer.decode(reply.tokens)
    assert answer["usage"]["prompt_tokens"] == reply.usage.prompt_tokens


def test_token_ids_are_taken_as_they_are(client: httpx.Client) -> None:
    ids = [2, *client.post("/tokenize", json={"content": "Once"}).json()["tokens"]]
    assert ask(client, prompt=ids)["choices"] == ask(client)["choices"]
    assert ask(client, prompt=[ids])["choices"] == ask(client)["choices"]


def test_choices_are_numbered_prompt_by_prompt(client: httpx.Client) -> None:
    both = ask(client, prompt=["Once", "Twice"], n=2)
    singles = [ask(client, prompt=p, seed=s)["choices"][0]["text"] for p in ("Once", "Twice") for s in (5, 6)]
    assert [choice["text"] for choice in both["choices"]] == singles
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    once, twice = (ask(client, prompt=p)["usage"]["prompt_tokens"] for p in ("Once", "Twice"))
    assert both["usage"]["prompt_tokens"] == once + twice
    assert both["usage"]["completion_tokens"] == 96


def test_echo_puts_each_prompt_before_its_answers(client: httpx.Client) -> None:
    ids = client.post("/tokenize", json={"content": "Once"}).json()["tokens"]
    for prompt in (["Once", "Twice"], [ids, [*ids, *ids]]):
        plain, echoed = (ask(client, prompt=prompt, n=2, echo=echo) for echo in (False, True))
        starts = (
            ["Once", "Once", "Twice", "Twice"] if prompt[0] == "Once" else ["Once"] * 2 + ["OnceOnce"] * 2
        )
        texts = [start + c["text"] for start, c in zip(starts, plain["choices"], strict=True)]
        assert [c["text"] for c in echoed["choices"]] == texts
        assert echoed["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]


@pytest.mark.parametrize("draft", [None, "text"])
def test_a_stream_echoes_once(client: httpx.Client, draft: str | None) -> None:
    body = {"prompt": "Once", "seed": 5, "stream": True, "echo": True}
    whole = ask(client, echo=True)["choices"][0]["text"]
    assert whole.startswith("Once")
    if draft is None:
        chunks = chunks_of(client.post(URL, json=body))
        assert "".join(c["choices"][0]["text"] for c in chunks) == whole
    else:
        chunks = chunks_of(client.post(URL, json={**body, "diffusing": True}))
        texts = [c["choices"][0]["text"] for c in chunks if c["choices"][0]["text"]]
        assert all(text.startswith("Once") for text in texts)
        assert texts[-1] == whole


def test_a_stream_is_the_answer_in_parts(client: httpx.Client) -> None:
    body = {
        "prompt": "Once",
        "seed": 5,
        "stream": True,
        "logprobs": 2,
        "stream_options": {"include_usage": True},
    }
    *chunks, last = chunks_of(client.post(URL, json=body))
    whole = ask(client, logprobs=2)["choices"][0]
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["text"]
    parts = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    for column in ("tokens", "token_logprobs", "text_offset"):
        assert [entry for part in parts for entry in part[column]] == whole["logprobs"][column]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 24


def test_logprobs_in_columns(client: httpx.Client) -> None:
    choice = ask(client, logprobs=2, max_tokens=8)["choices"][0]
    columns = choice["logprobs"]
    assert len(columns["tokens"]) == len(columns["token_logprobs"]) == len(columns["top_logprobs"])
    assert all(len(best) <= 2 for best in columns["top_logprobs"])
    for token, offset in zip(columns["tokens"], columns["text_offset"], strict=True):
        if "\ufffd" not in choice["text"]:
            assert choice["text"][offset:].startswith(token)


def test_doubt_adds_columns(client: httpx.Client) -> None:
    plain = ask(client, logprobs=0)["choices"][0]
    choice = ask(client, doubt=True)["choices"][0]
    assert choice["text"] == plain["text"]
    columns = choice["logprobs"]
    ranks, causal = columns.pop("causal_ranks"), columns.pop("causal_logprobs")
    assert columns == plain["logprobs"]
    assert len(ranks) == len(causal) == len(columns["tokens"])
    assert min(ranks) >= 1 and max(causal) <= 0
    body = {"prompt": "Once", "seed": 5, "stream": True, "doubt": True}
    chunks = chunks_of(client.post(URL, json=body))
    parts = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [value for part in parts for value in part["causal_logprobs"]] == causal


def test_drafts_replace(client: httpx.Client) -> None:
    chunks = chunks_of(
        client.post(URL, json={"prompt": "Once", "seed": 5, "stream": True, "diffusing": True})
    )
    assert chunks[-1]["choices"][0]["text"] == ask(client)["choices"][0]["text"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("best_of", {"best_of": 2, "n": 3}),
        ("best_of", {"best_of": 3, "stream": True}),
        ("best_of", {"best_of": 3, "suffix": "x"}),
        ("best_of", {"best_of": 129}),
        ("prompt", {"prompt": [10**6]}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": {"a": 1}}),
        ("logprobs", {"logprobs": 21}),
        ("n", {"prompt": ["a"] * 100, "n": 2}),
    ],
)
def test_what_cannot_be_is_refused_by_name(client: httpx.Client, param: str, body: dict[str, Any]) -> None:
    response = client.post(URL, json={"prompt": "Once", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"].split(".")[0] == param


def test_a_seed_of_ours_survives_readers_that_know_only_doubles(client: httpx.Client) -> None:
    for _ in range(4):
        answer = client.post(URL, json={"prompt": "Once", "max_tokens": 4}).json()
        assert answer["seed"] == int(float(answer["seed"])) < 2**53


def test_the_best_of_several_answers(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n of best_of answers of which the reader thinks best, for each prompt; all are paid for."""
    worths: list[float] = []

    def noted(reads: Any) -> float:
        worths.append(mean_causal(reads))
        return worths[-1]

    monkeypatch.setattr("canvaslm.server.dialects.openai.completions.mean_causal", noted)
    body = {"prompt": ["Once", "Twice"], "seed": 5, "max_tokens": 6}
    written = client.post(URL, json={**body, "n": 4}).json()
    best = client.post(URL, json={**body, "n": 2, "best_of": 4}).json()
    assert len(worths) == 8
    for prompt in range(2):
        texts = [choice["text"] for choice in written["choices"][4 * prompt : 4 * prompt + 4]]
        each = worths[4 * prompt : 4 * prompt + 4]
        order = sorted(range(4), key=lambda i: -each[i])
        got = [choice["text"] for choice in best["choices"][2 * prompt : 2 * prompt + 2]]
        assert got == [texts[i] for i in order[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == written["usage"]
    assert best["choices"][0]["logprobs"] is None
