"""Answers that have to be something: every dialect's ways to say so, errors by the client's names, and rows
that are free beside rows that are not."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .test_token_rules import ROUTES, post, text
from .world import HELLO, Running, serving, tiny_session

PATTERN = r"[ab]{3,9}\.[0-9]{2}"
GIVEN: list[dict[str, Any]] = [
    {"structured_outputs": {"regex": PATTERN}},
    {"guided_regex": PATTERN},
    {"structured_outputs": {"choice": ["ab.12", "bbb.00"], "json": None}},
    {"guided_choice": ["ab.12", "bbb.00"]},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(tiny_session()) as running:
        yield running


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(("path", "body", "limit"), ROUTES)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_dialect_answers_as_asked(
    server: Running, path: str, body: dict[str, Any], limit: str, given: dict[str, Any], seed: int
) -> None:
    said = text(post(server, path, body, **{**given, "seed": seed, limit: 16}))
    if "regex" in str(given):
        assert re.fullmatch(PATTERN, said), said
    else:
        assert said in ("ab.12", "bbb.00")


@pytest.mark.parametrize(("path", "body", "limit"), ROUTES)
def test_masks_are_heard_everywhere(server: Running, path: str, body: dict[str, Any], limit: str) -> None:
    said = text(
        post(server, path, body, **{"guided_regex": PATTERN, "mask": "denoise", "seed": 1, limit: 16})
    )
    assert re.fullmatch(PATTERN, said), said


def test_a_mask_of_a_grammar_is_refused(server: Running) -> None:
    pytest.importorskip("llguidance")
    body = {"messages": HELLO, "grammar": 'root ::= "ab" | "b"', "mask": "denoise"}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "mask"
        assert "leave out mask" in answer.json()["error"]["message"]
        body["mask"] = "off"
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_words_are_avoided(server: Running) -> None:
    with server.client() as client:
        free = ask(client, 1)
        letter = next(letter for letter in free if letter.isalpha())
        assert letter not in ask(client, 1, bad_words=[letter])
        body = {"messages": HELLO, "bad_words": [""]}
        assert client.post("/v1/chat/completions", json=body).json()["error"]["param"] == "bad_words"


def test_a_stream_is_the_same_answer(server: Running) -> None:
    body = {"messages": HELLO, "seed": 3, "guided_regex": "[a-c]{20,40}", "max_tokens": 48}
    with server.client() as client:
        whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
    pieces = re.findall(r'"content":"([abc]*)"', streamed.text)
    assert "".join(pieces) == whole["message"]["content"]
    assert whole["finish_reason"] == "stop"


def ask(client: httpx.Client, seed: int, **fields: Any) -> str:
    body = {"messages": HELLO, "seed": seed, "max_tokens": 24, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_free_rows_keep_their_bytes_beside_rows_that_are_not(server: Running) -> None:
    with server.client() as client:
        alone = [ask(client, seed) for seed in range(6)]
        sure = [ask(client, seed, guided_regex=PATTERN) for seed in range(6)]
    found: dict[tuple[bool, int], str] = {}

    def run(seed: int, fields: dict[str, Any]) -> None:
        with server.client() as client:
            found[bool(fields), seed] = ask(client, seed, **fields)

    choices: list[dict[str, Any]] = [{}, {"guided_regex": PATTERN}]
    threads = [threading.Thread(target=run, args=(seed, fields)) for seed in range(6) for fields in choices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[False, seed] for seed in range(6)] == alone
    assert [found[True, seed] for seed in range(6)] == sure
    assert all(re.fullmatch(PATTERN, said) for said in sure)


def test_two_wishes_of_one_dialect_are_refused(server: Running) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_object"}}, "guided_regex": "a"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9, "guided_regex": "a",
                          "output_config": {"format": {"type": "json_schema", "schema": {}}}}),
        ("/api/chat", {"messages": HELLO, "format": "json", "options": {"guided_regex": "a"}}),
    ]  # fmt: skip
    with server.client() as client:
        for path, body in cases:
            answer = client.post(path, json=body)
            assert answer.status_code == 400
            assert "cannot both hold" in answer.text
