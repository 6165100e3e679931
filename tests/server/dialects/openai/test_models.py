"""The list of models."""

from __future__ import annotations

import httpx


def test_the_model_and_its_context(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["object"] == "model"
    assert model["max_model_len"] == 512
    assert client.get("/v1/models/tiny").json() == model


def test_another_model_is_404(client: httpx.Client) -> None:
    response = client.get("/v1/models/gpt-9")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
