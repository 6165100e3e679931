"""/api/create and /api/delete: adapters of the served model, from the allowed folder, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from canvaslm.weights.adapters.peft_write import write_peft
from tests.adapters import random_adapter
from tests.server.world import serving, tiny_session
from tests.tiny import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With adapters "one" and "two", and "other", which is of another model."""
    made, other = tmp_path / "adapters", tiny_model(0, hidden_size=32)
    model = tiny_session().engine.runner.model
    for seed, name in enumerate(("one", "two"), 1):
        write_peft(random_adapter(model, seed=seed), made / name, model.config)
    write_peft(random_adapter(other), made / "other", other.config)
    (tmp_path / "outside").mkdir()
    return made


@pytest.fixture
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(tiny_session(), adapter_folder=folder) as running, running.client() as client:
        yield client


def _create(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/api/create", json={"model": "late", "from": "tiny", **body})


def _delete(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.request("DELETE", "/api/delete", json=body)


def _said(client: httpx.Client, model: str) -> Any:
    body = {"model": model, "prompt": "Hello", "stream": False, "options": {"seed": 3}}
    response = client.post("/api/generate", json=body)
    return response.json()["response"] if response.status_code == 200 else response.status_code


def test_an_adapter_is_created_answers_is_listed_and_deleted(client: httpx.Client) -> None:
    made = _create(client, adapters={"one": "sha256:0"})
    assert made.status_code == 200 and made.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in made.text.splitlines()] == [
        {"status": "reading adapter"}, {"status": "success"},
    ]  # fmt: skip
    one = _said(client, "late")
    assert one not in (404, _said(client, "tiny")) and _said(client, "late:latest") == one
    tags = client.get("/api/tags").json()["models"]
    assert [tag["name"] for tag in tags] == ["tiny:latest", "late:latest"]
    shown = client.post("/api/show", json={"model": "late"}).json()
    assert shown["details"]["parent_model"] == "tiny:latest" and "ADAPTER late" in shown["modelfile"]

    again = _create(client, model="late:latest", adapters=["two"], stream=False)  # in its place
    assert again.json() == {"status": "success"}
    assert _said(client, "late") not in (one, _said(client, "tiny"))

    assert _delete(client, model="late:latest").status_code == 200
    assert _said(client, "late") == 404
    gone = _delete(client, name="late")
    assert (gone.status_code, gone.json()) == (404, {"error": "model 'late' not found"})


@pytest.mark.parametrize(
    "body",
    [
        {"modelfile": "# mine\nFROM tiny:latest\n\nadapter ./one\n", "from": None},
        {"adapters": {"one/adapter_config.json": "a", "one/adapter_model.safetensors": "b"}},
        {"adapters": ["./one"], "from": "owner/tiny", "quantize": "", "files": None, "parameters": {}},
        {"model": None, "name": "late", "adapters": ["one"]},
    ],
)
def test_other_ways_to_say_it(client: httpx.Client, body: dict[str, Any]) -> None:
    response = _create(client, **body, stream=False)
    assert response.status_code == 200, response.text
    assert _said(client, "late") not in (404, _said(client, "tiny"))


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "adapters: name one adapter; there is none: models are not made here"),
        ({"adapters": ["one", "two"]}, 400, "name one adapter; there are 2"),
        ({"adapters": ["one"], "from": "llama3"}, 404, "from: model 'llama3' not found"),
        ({"adapters": ["one"], "from": None}, 400, "from is required"),
        ({"adapters": ["one"], "model": ""}, 400, "model is required"),
        ({"adapters": ["one"], "model": "tiny"}, 400, "own name"),
        ({"adapters": ["one"], "quantize": "q4_K_M"}, 400, "quantize is not supported"),
        ({"files": {"a.gguf": "sha256:0"}}, 400, "files is not supported"),
        ({"adapters": ["one"], "system": "You are Mario."}, 400, "system is not supported"),
        ({"adapters": ["one"], "template": "x"}, 400, "template is not supported"),
        ({"adapters": ["one"], "modelfile": "FROM tiny"}, 400, "not both"),
        ({"modelfile": "FROM tiny\nSYSTEM hi", "from": None}, 400, "modelfile: SYSTEM is not supported"),
        ({"modelfile": "ADAPTER one", "from": None}, 400, "FROM is needed once"),
        ({"modelfile": "FROM tiny", "from": None}, 400, "there is none"),
        ({"adapters": ["nothing"]}, 404, "adapters: there is no folder 'nothing'"),
        ({"adapters": ["@sha256:0"]}, 404, "adapters: there is no folder"),
        ({"adapters": ["../outside"]}, 403, "adapters: leads out of the folder"),
        ({"adapters": ["/etc"]}, 400, "without a leading slash"),
        ({"adapters": ["org/name"]}, 404, "there is no folder"),
        ({"adapters": ["other"]}, 400, "does not fit this model"),
        ({"adapters": [7]}, 400, "adapters"),
    ],
)
def test_what_is_not_done_is_said_by_name(
    client: httpx.Client, folder: Path, body: dict[str, Any], status: int, told: str
) -> None:
    response = _create(client, **body)
    assert response.status_code == status, response.text
    assert told in response.json()["error"] and str(folder) not in response.text
    assert len(client.get("/api/tags").json()["models"]) == 1


def test_the_model_itself_is_not_deleted(client: httpx.Client) -> None:
    for body, status in (({"model": "tiny"}, 400), ({"model": ""}, 400), ({}, 400), ({"model": "x"}, 404)):
        assert _delete(client, **body).status_code == status
    assert _said(client, "tiny") != 404


def test_without_a_folder_nothing_is_created_or_deleted(folder: Path) -> None:
    session = tiny_session()
    session.adapters.load("start", folder / "one")
    with serving(session) as running, running.client() as client:
        for response in (_create(client, adapters=["one"]), _delete(client, model="start")):
            assert response.status_code == 403 and "--adapter-dir" in response.json()["error"]


def test_pages_of_other_sites_may_not_delete(client: httpx.Client) -> None:
    assert _create(client, adapters=["one"]).status_code == 200
    for headers in ({"origin": "https://example.org"}, {"sec-fetch-site": "cross-site"}):
        asked = client.request("DELETE", "/api/delete", json={"model": "late"}, headers=headers)
        assert asked.status_code == 403
    assert _said(client, "late") != 404
