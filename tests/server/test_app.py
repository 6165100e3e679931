"""The application by itself: under any ASGI server, with and without its lifespan."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import canvaslm
from canvaslm.errors import UsageError
from canvaslm.server import create_app
from canvaslm.server.dialects.registry import DIALECTS

from .world import HELLO, tiny_session

BODY = {"messages": HELLO, "seed": 5}


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def test_it_is_public() -> None:
    assert canvaslm.create_app is create_app


def test_it_answers_without_a_lifespan() -> None:
    async def scene() -> str:
        async with client_of(create_app(tiny_session())) as client:
            while (response := await client.post("/v1/chat/completions", json=BODY)).status_code == 503:
                await asyncio.sleep(0.01)
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    assert asyncio.run(scene()) == tiny_session().generate(HELLO, seed=5).text


def test_after_the_lifespan_it_refuses() -> None:
    async def scene() -> tuple[int, int]:
        app = create_app(tiny_session())
        async with app.router.lifespan_context(app), client_of(app) as client:
            while (before := (await client.get("/health")).status_code) == 503:
                await asyncio.sleep(0.01)
        async with client_of(app) as client:
            response = await client.post("/v1/chat/completions", json=BODY)
            assert response.json()["error"]["code"] == "shutting_down"
            return before, response.status_code

    assert asyncio.run(scene()) == (200, 503)


def test_unknown_limits_are_refused() -> None:
    with pytest.raises(TypeError):
        create_app(tiny_session, max_fun=3)
    with pytest.raises(UsageError):
        create_app(tiny_session, api_key="")


def test_no_two_dialects_claim_a_route() -> None:
    claimed = [
        (method, getattr(route, "path"))  # noqa: B009
        for dialect in DIALECTS
        for router in dialect.routers
        for route in router.routes
        for method in getattr(route, "methods", ())
    ]
    assert len(claimed) == len(set(claimed))
