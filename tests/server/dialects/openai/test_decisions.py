"""POST /v1/decisions: OpenAI's body, System One's at the same path, and what is wrong with either."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from canvaslm import choice, predicate, score

from ...world import HELLO, Running, serving, tiny_session

STATE = "user: Where is my parcel?"
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "name": "refund", "instructions": "The customer asks for a refund."},
    {
        "type": "choice",
        "instructions": [{"type": "input_text", "text": "Tone?"}, {"type": "input_json", "data": {"a": 1}}],
        "choices": [{"value": "true", "description": "the text"}, {"value": True}, {"value": "calm"}],
    },
    {"type": "score", "name": "urgency", "instructions": "How urgent?",
     "levels": [{"label": "can wait"}, {"label": "today", "description": "within hours"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(tiny_session(max_rows=4)) as running:
        yield running


def ask(server: Running, status: int = 200, path: str = "/v1/decisions", **body: Any) -> Any:
    sent = {"model": "tiny", "input": STATE, "questions": QUESTIONS, **body}
    answer = httpx.post(
        f"{server.url}{path}", json={k: v for k, v in sent.items() if v is not ...}, timeout=60
    )
    assert answer.status_code == status, answer.text
    return answer.json()


def test_answers_are_those_of_the_session(server: Running) -> None:
    found = ask(server)
    with tiny_session() as session:
        expected = session.decide(
            STATE,
            [
                predicate("The customer asks for a refund."),
                choice('Tone?\n{"a": 1}', {"true": "the text", True: None, "calm": None}),
                score("How urgent?", {"can wait": None, "today": "within hours"}),
            ],
        )
    first, second, third = found["answers"]
    assert first == {"type": "predicate", "name": "refund", "probability": expected[0].probability}
    assert second["choice"] == expected[1].best and second["confidence"] == expected[1].sureness
    assert [p["value"] for p in second["probabilities"]] == ["true", True, "calm"]
    assert [p["probability"] for p in second["probabilities"]] == list(expected[1].probabilities)
    assert second["name"] is None and second["confidence"] < max(expected[1].probabilities)
    assert [(p["value"], p["label"]) for p in third["probabilities"]] == [(0, "can wait"), (1, "today")]
    assert third["score"] == pytest.approx(third["probabilities"][1]["probability"])
    assert [one["label_mass"] for one in found["diagnostics"]] == [one.label_mass for one in expected]
    assert found["model"] == "tiny" and "warnings" not in found
    usage = found["usage"]
    assert usage["input_tokens"] == usage["total_tokens"] == expected.usage.prompt_tokens
    assert usage["output_tokens"] == 0 and usage["input_tokens_details"]["cached_tokens"] == 0


def test_openais_own_package_reads_them(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        made = client.decisions.create(
            model="tiny",
            input=[{"role": "user", "content": "Hello"}],
            questions=QUESTIONS,  # type: ignore[arg-type]
            prompt_cache_key="k",
            safety_identifier="s",
        )
        first, second, third = made.answers
        assert first.type == "predicate" and 0 <= first.probability <= 1
        assert second.type == "choice" and sum(p.probability for p in second.probabilities) == pytest.approx(
            1
        )
        assert third.type == "score" and third.probabilities[1].label == "today"
        with pytest.raises(openai.BadRequestError) as caught:
            client.decisions.create(model="tiny", input=STATE, questions=[{"type": "choice"}])  # type: ignore[list-item]
        assert caught.value.param == "questions[0].instructions"


def test_more_questions_than_rows_and_places(server: Running) -> None:
    many = [{"type": "predicate", "instructions": f"It is {n}."} for n in range(100)]
    found = ask(server, questions=many)["answers"]
    again = ask(server, questions=many[::-1])["answers"]
    assert len(found) == 100 and found == again[::-1]


def test_options(server: Running) -> None:
    plain, more = ask(server), ask(server, samples=3, permute=True, steps=2, instructions="Judge:", thing=1)
    assert plain["answers"] != more["answers"] and more["warnings"][0]["param"] == "thing"
    joint = ask(server, joint=True, questions=QUESTIONS[:1])
    assert len(joint["answers"]) == 1
    assert ask(server, samples=17, status=400)["error"]["param"].startswith("samples")


def test_a_conversation_with_calls(server: Running) -> None:
    items: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
    ]
    said = ("system: Be kind.", "user: Weather?", "call of weather: {}", "result of weather: sunny")
    text = "\n\n".join([*said, "assistant: Sunny."])
    assert ask(server, input=items)["answers"] == ask(server, input=text)["answers"]
    error = ask(server, input=items[3:], status=400)["error"]
    assert error["param"] == "input[0].call_id" and "belongs to no call" in error["message"]


def test_system_ones_body_is_answered_here_too(server: Running) -> None:
    body: dict[str, Any] = {
        "input": ...,
        "state": STATE,
        "questions": {"a": {"type": "noul", "instructions": "Is it?"}},
    }
    assert ask(server, **body)["answers"] == ask(server, path="/v1/systemone", **body)["answers"]
    error = ask(server, 400, **{**body, "questions": {"a": {"type": "x"}}})["error"]
    assert error["param"] == "questions.a.type"


def _with(**changes: Any) -> dict[str, Any]:
    return {"questions": [QUESTIONS[0], {**QUESTIONS[1], **changes}]}


LONG = {"type": "input_json", "data": [0] * 10_001}
IMAGE = [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ...}, "input"),
        ({"questions": ...}, "questions"),
        ({"questions": []}, "questions"),
        ({"questions": QUESTIONS[:1] * 401}, "questions"),
        ({"input": IMAGE}, "input[0].type"),
        ({"input": [{"role": "user", "content": IMAGE}]}, "input[0].content[0]"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        (_with(type="box"), "questions[1].type"),
        (_with(choices=[{"value": "a"}]), "questions[1].choices"),
        (_with(choices=[{"value": str(n)} for n in range(256)]), "questions[1].choices"),
        (_with(choices=[{"value": "a"}, {"value": "a"}]), "questions[1].choices"),
        (_with(choices=[{"value": "a"}, {"value": 3}]), "questions[1].choices[1].value"),
        (_with(instructions=None), "questions[1].instructions"),
        (_with(instructions=IMAGE), "questions[1].instructions[0]"),
        (_with(instructions=[LONG]), "questions[1].instructions[0].data"),
        (_with(name=3), "questions[1].name"),
        ({"questions": [{**QUESTIONS[2], "levels": [{"label": "x"}] * 11}]}, "questions[0].levels"),
        ({"questions": [{"id": "a", "type": "yes_no", "question": "Is it?"}]}, "questions[0]"),
        ({"questions": [{"id": "a", "type": "choice", "question": "?", "options": ["a"]}]}, "questions[0]"),
        ({"input": "word " * 2000}, "input"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: Running, body: dict[str, Any], param: str) -> None:
    error = ask(server, 400, **body)["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_they_run_beside_chats_and_change_nothing(server: Running) -> None:
    alone = ask(server)["answers"]

    async def together() -> list[Any]:
        async with httpx.AsyncClient(timeout=60) as client:
            chat = {"model": "tiny", "messages": HELLO, "max_tokens": 40}
            bodies = [("chat/completions", chat), ("decisions", {"input": STATE, "questions": QUESTIONS})] * 4
            calls = [client.post(f"{server.url}/v1/{path}", json=body) for path, body in bodies]
            return await asyncio.gather(*calls)

    answers = asyncio.run(together())
    assert all(one.json()["answers"] == alone for one in answers[1::2])
