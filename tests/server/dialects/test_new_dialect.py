"""How a dialect is added: a router and a line in the registry. This one is called "shout"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from canvaslm.server.choices import gather
from canvaslm.server.dialects import registry
from canvaslm.server.fields import Open
from canvaslm.server.problems import Problem
from canvaslm.server.sending import JsonAnswer, Stream, unless_gone, wording_errors
from canvaslm.server.service import Answers, GenerationRequest, Ready

from ..world import serving, tiny_session

router = APIRouter()


class ShoutBody(Open):
    say: str = Field(min_length=1)
    luck: int | None = None
    longest: int | None = None
    stream: bool = False


@router.post("/shout/say")
async def say(body: ShoutBody, http: Request, service: Ready) -> Response:
    wanted = GenerationRequest(
        messages=[{"role": "user", "content": body.say}],
        params={"seed": body.luck, "max_new_tokens": body.longest},
        names={"max_new_tokens": "longest"},
    )
    answers = await service.start(wanted)
    if body.stream:
        chunks = wording_errors(parts(answers), lambda problem: str(problem).encode())
        return Stream(chunks, answers.close, limits=service.limits, media_type="text/plain", pulse=b"")
    (choice,) = await unless_gone(http, gather(answers, 1))
    return JsonAnswer({"shouted": choice.text.upper()})


async def parts(answers: Answers) -> AsyncIterator[bytes]:
    async for part in answers:
        if part.text:
            yield part.text.upper().encode()


def envelope(problem: Problem) -> dict[str, Any]:
    return {"sorry": str(problem), "about": problem.param}


@pytest.fixture(scope="module")
def shouting() -> Iterator[httpx.Client]:
    shout = registry.Dialect("shout", (router,), ("/shout",), envelope)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "DIALECTS", (*registry.DIALECTS, shout))
        with serving(tiny_session()) as running, running.client() as client:
            yield client


def test_it_answers(shouting: httpx.Client) -> None:
    reply = tiny_session().generate("hello", seed=3)
    body = {"say": "hello", "luck": 3}
    assert shouting.post("/shout/say", json=body).json() == {"shouted": reply.text.upper()}
    assert shouting.post("/shout/say", json={**body, "stream": True}).text == reply.text.upper()


def test_errors_are_worded_its_own_way(shouting: httpx.Client) -> None:
    response = shouting.post("/shout/say", json={"say": "hello", "longest": 0})
    assert response.status_code == 400
    assert response.json()["about"] == "longest"
    assert "longest" in response.json()["sorry"]
    assert "sorry" in shouting.get("/shout/nothing").json()


def test_the_others_are_as_they_were(shouting: httpx.Client) -> None:
    answer = shouting.post("/v1/completions", json={"prompt": "Once", "max_tokens": -2}).json()
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "/shout/say" in shouting.get("/openapi.json").json()["paths"]
