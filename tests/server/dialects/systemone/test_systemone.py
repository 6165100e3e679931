"""POST /v1/systemone: its answers by id, and its own form of errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from canvaslm import choice, predicate, score

from ...world import Running, serving, tiny_session

STATE = {"from": "Ann", "text": "Where is my parcel?"}
TRUTH = {"true": "advertising", "false": None}
TONES = {"calm": None, "angry": ["loud"]}
QUESTIONS: dict[str, Any] = {
    "spam": {"type": "noul", "instructions": "Is this spam?", "criteria": TRUTH},
    "the.tone": {"type": "choice", "instructions": {"ask": "Tone?"}, "criteria": TONES},
    "urgency": {"type": "score", "criteria": ["can wait", {"when": "today"}]},
    "only": {"type": "choice", "instructions": "Which?", "criteria": {"one": "there is"}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(tiny_session(max_rows=4), api_key="sk-test") as running:
        yield running


def ask(server: Running, status: int = 200, key: str = "sk-test", **body: Any) -> Any:
    sent = {"model": "tiny", "state": STATE, "questions": QUESTIONS, **body}
    answer = httpx.post(
        f"{server.url}/v1/systemone",
        json={k: v for k, v in sent.items() if v is not ...},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert answer.status_code == status, answer.text
    return answer.json()


def test_answers_are_those_of_the_session(server: Running) -> None:
    found = ask(server)
    with tiny_session() as session:
        expected = session.decide(
            json.dumps(STATE),
            [
                predicate("Is this spam?", true="advertising"),
                choice('{"ask": "Tone?"}', {"calm": None, "angry": '["loud"]'}),
                score("", ["can wait", '{"when": "today"}']),
                choice("Which?", {"one": "there is"}),
            ],
        )
    answers = found["answers"]
    assert list(answers) == list(QUESTIONS)
    assert answers["spam"] == {"type": "noul", "noul": expected[0].probability}
    assert answers["the.tone"] == {
        "type": "choice",
        "choice": expected[1].best,
        "confidence": expected[1].confidence,
        "probabilities": dict(zip(["calm", "angry"], expected[1].probabilities, strict=True)),
    }
    assert answers["urgency"]["legend"] == {"0": "can wait", "1": '{"when": "today"}'}
    assert answers["urgency"]["score"] == pytest.approx(answers["urgency"]["probabilities"]["1"])
    assert answers["urgency"]["confidence"] == expected[2].confidence
    assert answers["only"]["probabilities"] == {"one": 1.0} and answers["only"]["confidence"] == 1.0
    assert found["usage"] == {"input_tokens": expected.usage.prompt_tokens, "output_tokens": 0}
    assert found["diagnostics"]["spam"]["label_mass"] == expected[0].label_mass


def test_renaming_a_question_changes_nothing(server: Running) -> None:
    renamed = {f"{name}!": question for name, question in reversed(QUESTIONS.items())}
    one, other = ask(server)["answers"], ask(server, questions=renamed)["answers"]
    assert {name: one[name[:-1]] for name in renamed} == other


def _question(**fields: Any) -> dict[str, Any]:
    return {"questions": {"a.b": fields}}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"state": ...}, ["state"]),
        ({"state": 3}, ["state"]),
        ({"questions": []}, ["questions"]),
        ({"questions": {}}, ["questions"]),
        ({"questions": {str(n): QUESTIONS["spam"] for n in range(65)}}, ["questions"]),
        (_question(type="box"), ["questions", "a.b", "type"]),
        (_question(type="choice", criteria={}), ["questions", "a.b", "choice", "criteria"]),
        (_question(type="choice", criteria={str(n): None for n in range(256)}),
         ["questions", "a.b", "choice", "criteria"]),
        (_question(type="choice", criteria={"x": 3}), ["questions", "a.b", "choice", "criteria", "x"]),
        (_question(type="score", criteria=["x"] * 11), ["questions", "a.b", "score", "criteria"]),
        (_question(type="score", criteria=["x", None]), ["questions", "a.b", "score", "criteria", 1]),
        (_question(type="noul", instructions=3), ["questions", "a.b", "instructions"]),
        (_question(type="noul", criteria=[]), ["questions", "a.b", "noul", "criteria"]),
        ({"assets": {"i": {"type": "image"}}}, ["assets"]),
        ({"samples": 99}, ["samples"]),
        ({"state": "word " * 2000}, ["state"]),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_place(server: Running, body: dict[str, Any], place: list[Any]) -> None:
    (detail,) = ask(server, 422, **body)["detail"]
    assert detail["loc"] == ["body", *place] and detail["msg"] and detail["type"]


def test_other_errors_have_the_form_too(server: Running) -> None:
    (detail,) = ask(server, 401, key="wrong")["detail"]
    assert detail["type"] and detail["msg"]
    broken = httpx.post(
        f"{server.url}/v1/systemone",
        content=b"{",
        headers={"authorization": "Bearer sk-test", "content-type": "application/json"},
    )
    assert broken.status_code == 422 and broken.json()["detail"][0]["loc"] == ["body"]
