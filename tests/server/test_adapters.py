"""Adapters over HTTP: by name in every dialect, by number, loaded and unloaded while others are answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import pytest

from canvaslm.errors import NotFound
from canvaslm.server import create_app
from canvaslm.session import Session
from canvaslm.weights.adapters.find import AdapterPlace
from canvaslm.weights.adapters.peft_write import write_peft
from tests.adapters import random_adapter

from ..waiting import StepGate, wait_for
from .world import HELLO, Running, program, serving, tiny_folder, tiny_session

CHAT: dict[str, Any] = {"messages": HELLO, "seed": 3, "max_tokens": 20}
QUESTION = {"type": "choice", "choices": [{"value": "red"}, {"value": "green"}], "instructions": "Which?"}
SYSTEM_ONE = {"state": "A state", "questions": {"q": {"type": "noul", "instructions": "Is it?"}}}
EDIT = {"messages": [{"role": "user", "content": "a <|code_to_edit|>b<|/code_to_edit|> c"}]}
APPLY = {
    "messages": [
        {
            "role": "user",
            "content": "<|original_code|>a<|/original_code|> <|update_snippet|>b<|/update_snippet|>",
        }
    ]
}
# path, body, and where its answer is
DIALECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/chat/completions": (CHAT, lambda a: a["choices"][0]["message"]["content"]),
    "/v1/completions": ({"prompt": "Hello", "seed": 3}, lambda a: a["choices"][0]["text"]),
    "/v1/responses": ({"input": "Hello", "seed": 3}, lambda a: a["output"][0]["content"]),
    "/v1/messages": (CHAT, lambda a: a["content"]),
    "/api/chat": (
        {"messages": HELLO, "stream": False, "options": {"seed": 3}}, lambda a: a["message"]["content"]
    ),
    "/api/generate": (
        {"prompt": "Hello", "stream": False, "options": {"seed": 3}}, lambda a: a["response"]
    ),
    "/infill": (
        {"input_prefix": "a", "input_suffix": "b", "seed": 3, "n_predict": 6}, lambda a: a["content"]
    ),
    "/v1/fim/completions": (
        {"prompt": "a", "suffix": "b", "seed": 3, "max_tokens": 6}, lambda a: a["choices"][0]["text"]
    ),
    "/v1/edit/completions": ({**EDIT, "seed": 3, "max_tokens": 6}, lambda a: a["choices"][0]["text"]),
    "/v1/apply/completions": ({**APPLY, "seed": 3, "max_tokens": 6}, lambda a: a["choices"][0]["text"]),
    "/v1/decisions": ({"input": "A state", "questions": [QUESTION]}, lambda a: a["answers"]),
    "/v1/systemone": (SYSTEM_ONE, lambda a: a["answers"]),
}  # fmt: skip


def _session(folder: Path) -> Session:
    """With adapters "one" and "two", and folders of them and of "three"."""
    session = tiny_session()
    model = session.engine.runner.model
    for seed, name in enumerate(("one", "two", "three"), 1):
        write_peft(random_adapter(model, seed=seed), folder / name, model.config)
    for name in ("one", "two"):
        session.adapters.load(name, folder / name)
    return session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    return tmp_path / "adapters"


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    with serving(_session(folder), adapter_folder=folder) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def _said(client: httpx.Client, model: str | None, **more: Any) -> str:
    named = {} if model is None else {"model": model}
    response = client.post("/v1/chat/completions", json={**CHAT, **named, **more})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("path", DIALECTS)
def test_every_dialect_answers_with_the_adapter_that_it_names(client: httpx.Client, path: str) -> None:
    body, read = DIALECTS[path]
    told = {}
    for model in ("tiny", "one", "two", None, "", "tiny:latest", "owner/tiny", "one:latest"):
        response = client.post(path, json={**body, **({} if model is None else {"model": model})})
        assert response.status_code == 200, response.text
        told[model] = read(response.json())
        name = response.json()["model"].removesuffix(":latest")
        assert name == (model if model in ("one", "two") else "one" if model == "one:latest" else "tiny")
    plain = told["tiny"]
    assert plain != told["one"] and told["one"] != told["two"] and told["two"] != plain
    assert told[None] == told[""] == told["tiny:latest"] == told["owner/tiny"] == plain
    assert told["one:latest"] == told["one"]


# Other things that the same paths do.
ANSWERED = [
    ("/v1/completions", {"prompt": "a", "suffix": "b", "seed": 3, "max_tokens": 6}, ("choices", 0, "text")),
    (
        "/v1/completions",
        {"prompt": "Hello", "echo": True, "logprobs": 1, "max_tokens": 0},
        ("choices", 0, "logprobs", "token_logprobs"),
    ),
    (
        "/api/generate",
        {"prompt": "a", "suffix": "b", "stream": False, "options": {"seed": 3, "num_predict": 6}},
        ("response",),
    ),
]


@pytest.mark.parametrize(("path", "body", "place"), ANSWERED)
def test_what_is_filled_in_and_scored_is_so_with_the_adapter_that_is_named(
    client: httpx.Client, path: str, body: dict[str, Any], place: tuple[Any, ...]
) -> None:
    told = []
    for model in ("tiny", "one", "two", "tiny"):
        response = client.post(path, json={**body, "model": model})
        assert response.status_code == 200, response.text
        told.append(reduce(lambda found, key: found[key], place, response.json()))
    plain, one, two, again = told
    assert plain != one and one != two and two != plain and again == plain


@pytest.mark.parametrize("path", [*DIALECTS, "/v1/messages/count_tokens", "/api/show"])
def test_an_unknown_model_is_404_in_the_dialects_words(client: httpx.Client, path: str) -> None:
    body = DIALECTS[path][0] if path in DIALECTS else {"messages": HELLO}
    response = client.post(path, json={**body, "model": "gpt-9"})
    message = "model 'gpt-9' not found: known are tiny, one, two"
    assert response.status_code == 404
    error = response.json()
    if path.startswith("/v1/messages"):
        assert error == {"type": "error", "error": {"type": "not_found_error", "message": message}}
    elif path.startswith("/api"):
        assert error == {"error": message}
    elif path == "/v1/systemone":
        assert error["detail"][0]["msg"] == message
    else:
        assert error["error"]["message"] == message
        assert (error["error"]["param"], error["error"]["code"]) == ("model", "model_not_found")


def test_an_empty_request_of_ollama_is_asked_for_its_model_too(client: httpx.Client) -> None:
    for path in ("/api/chat", "/api/generate"):
        assert client.post(path, json={"model": "one"}).json()["model"] == "one"
        assert client.post(path, json={"model": "other"}).status_code == 404


def test_any_model_stands_for_the_model(folder: Path) -> None:
    with serving(_session(folder), any_model=True) as running, running.client() as client:
        assert _said(client, "gpt-9") == _said(client, None) != _said(client, "one")


def test_rows_of_all_are_written_together_as_alone(client: httpx.Client) -> None:
    asked = ["tiny", "one", "two"] * 3
    alone = {name: _said(client, name) for name in ("tiny", "one", "two")}
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda name: _said(client, name), asked))
    assert together == [alone[name] for name in asked]


def test_fingerprints_tell_adapters_apart(client: httpx.Client) -> None:
    def fingerprint(model: str) -> str:
        made = client.post("/v1/chat/completions", json={**CHAT, "model": model}).json()
        return str(made["system_fingerprint"])

    assert len({fingerprint(name) for name in ("tiny", "one", "two")}) == 3
    assert fingerprint("one") == fingerprint("one")


def test_the_lists_have_the_model_and_its_adapters(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [(m["id"], m["root"], m["parent"]) for m in models] == [
        ("tiny", "tiny", None), ("one", "one", "tiny"), ("two", "two", "tiny"),
    ]  # fmt: skip
    assert client.get("/v1/models/two").json() == models[2]
    tags = client.get("/api/tags").json()["models"]
    assert [(t["name"], t["details"]["parent_model"]) for t in tags] == [
        ("tiny:latest", ""), ("one:latest", "tiny:latest"), ("two:latest", "tiny:latest"),
    ]  # fmt: skip
    assert len({tag["digest"] for tag in tags}) == 3
    shown = client.post("/api/show", json={"model": "one"}).json()
    assert "ADAPTER one" in shown["modelfile"] and shown["details"]["parent_model"] == "tiny:latest"


def test_numbers_and_scales_as_llama_server_has_them(client: httpx.Client) -> None:
    plain, one = _said(client, None), _said(client, "one")
    assert client.get("/lora-adapters").json() == [
        {"id": 0, "name": "one", "path": "one", "scale": 0.0},
        {"id": 1, "name": "two", "path": "two", "scale": 0.0},
    ]
    assert _said(client, None, lora=[{"id": 0, "scale": 1.0}]) == one
    assert _said(client, None, lora=[{"id": 0, "scale": 0.0}]) == plain == _said(client, None, lora=[])
    both = _said(client, None, lora=[{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.5}])
    assert both not in (plain, one)
    assert client.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}]).json() == {"success": True}
    assert client.get("/lora-adapters").json()[0]["scale"] == 1.0
    assert _said(client, None) == one and _said(client, None, lora=[]) == plain
    assert _said(client, "two") != one
    client.post("/lora-adapters", json=[])
    assert _said(client, None) == plain


def test_numbers_that_are_none_and_two_wishes_at_once_are_refused(client: httpx.Client) -> None:
    wrong = {"lora": [{"id": 7, "scale": 1.0}]}
    response = client.post("/v1/chat/completions", json={**CHAT, **wrong})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "lora: there is no adapter with id 7: known are 0, 1"
    assert client.post("/lora-adapters", json=wrong["lora"]).status_code == 400
    assert client.post("/lora-adapters", json={"id": 0}).status_code == 400
    twice = {"model": "one", "lora": [{"id": 0, "scale": 1.0}]}
    response = client.post("/v1/chat/completions", json={**CHAT, **twice})
    assert response.status_code == 400 and response.json()["error"]["param"] == "lora"


def _load(client: httpx.Client, name: str, path: str, **more: Any) -> httpx.Response:
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **more})


def _unload(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/unload_lora_adapter", json={"lora_name": name})


def test_loading_and_unloading_as_vllm_has_them(client: httpx.Client) -> None:
    loaded = _load(client, "late", "three")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'late' added successfully.")
    late = _said(client, "late")
    assert late not in (_said(client, None), _said(client, "one"))
    taken = _load(client, "late", "one")
    assert taken.status_code == 400 and "already" in taken.json()["error"]["message"]
    assert _load(client, "late", "one", load_inplace=True).status_code == 200
    assert _said(client, "late") == _said(client, "one")
    assert "removed" in _unload(client, "late").text
    assert client.post("/v1/chat/completions", json={**CHAT, "model": "late"}).status_code == 404
    assert _unload(client, "late").status_code == 404
    assert _load(client, "again", "three").status_code == 200  # with a number of its own
    assert [one["id"] for one in client.get("/lora-adapters").json()] == [0, 1, 3]
    assert _said(client, "again") == late


def test_hostile_paths_are_refused_and_nothing_is_said_of_what_is_outside(
    client: httpx.Client, folder: Path
) -> None:
    outside = folder.parent / "outside"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (outside / name).write_bytes((folder / "three" / name).read_bytes())
    (folder / "link").symlink_to(outside)
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "mixed").mkdir()
    (folder / "mixed" / "adapter_config.json").write_bytes((outside / "adapter_config.json").read_bytes())
    (folder / "mixed" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    refused = {
        "../outside": 403, "../nothing": 403, "one/../../outside": 403, "one/../three": 403, "link": 403,
        "link/.": 403, ".": 403, "": 400, " ": 400, "/": 400, str(outside): 400, str(folder / "three"): 400,
        "C:\\x": 400, "\\\\host\\x": 400, "a\0b": 400, "~": 404, "nothing": 404, "circle": 404,
        "x" * 5000: 404, "mixed": 400, "%2e%2e/outside": 404, "org/name": 404,
    }  # fmt: skip
    for path, status in refused.items():
        response = _load(client, "bad", path)
        assert response.status_code == status, (path[:50], response.text)
        assert str(folder.parent) not in response.text
    assert client.get("/v1/models/bad").status_code == 404
    for name in ("tiny", "tiny:latest", "owner/tiny", "", "a\nb", "x" * 200):
        assert _load(client, name, "three").status_code == 400


def test_one_from_a_hub_is_listed_by_its_id(folder: Path) -> None:
    session = _session(folder)
    session.adapters.load_found("hub", AdapterPlace(folder / "three", "org/three"))
    with serving(session, adapter_folder=folder) as running, running.client() as client:
        assert client.get("/v1/models/hub").json()["root"] == "org/three"
        assert client.get("/lora-adapters").json()[2]["path"] == "org/three"


def test_a_damaged_adapter_is_400_without_the_servers_paths(client: httpx.Client, folder: Path) -> None:
    (folder / "three" / "adapter_config.json").write_text("{")
    response = _load(client, "bad", "three")
    assert response.status_code == 400 and str(folder) not in response.text


def test_without_a_folder_nothing_is_loaded_or_unloaded(folder: Path) -> None:
    with serving(_session(folder)) as running, running.client() as client:
        for response in (_load(client, "late", "three"), _unload(client, "one")):
            assert response.status_code == 403 and "--adapter-dir" in response.json()["error"]["message"]
        assert _said(client, "one") != _said(client, None)
    with pytest.raises(NotFound, match="no such folder"):
        create_app(tiny_session(), adapter_folder=folder / "nothing")


def test_what_is_written_is_finished_with_the_adapter_that_is_unloaded(
    server: Running, client: httpx.Client
) -> None:
    wanted = _said(client, "one")
    gate = StepGate(server.app.state.service.session, free=2)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(_said, client, "one")
        gate.wait_held()
        assert _unload(client, "one").status_code == 200
        gate.open()
        assert running.result() == wanted


def test_loading_and_unloading_under_traffic_drops_no_request(client: httpx.Client) -> None:
    wanted = {name: _said(client, name) for name in ("tiny", "one", "two")}
    wrong: list[object] = []
    done = threading.Event()

    def ask(name: str) -> None:
        while not done.is_set():
            try:
                if _said(client, name) != wanted[name]:
                    wrong.append(name)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert _load(client, "late", "three").status_code == 200
            assert _said(client, "late") not in wanted.values()
            assert _unload(client, "late").status_code == 200
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_one_that_was_dropped_for_memory_is_read_again(folder: Path) -> None:
    session = _session(folder)
    session.adapters.limit = session.adapters.nbytes
    with serving(session, adapter_folder=folder) as running, running.client() as client:
        wanted = {name: _said(client, name) for name in ("one", "two")}
        assert _load(client, "late", "three").status_code == 200
        assert sum(one.loaded for one in session.adapters.shelf) == 2
        assert {name: _said(client, name) for name in wanted} == wanted
        assert len(client.get("/v1/models").json()["data"]) == 4
    assert session.adapters.nbytes <= session.adapters.limit


def test_the_program_serves_adapters(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "tiny-model")
    _session(tmp_path / "adapters")
    one, late = f"one={tmp_path}/adapters/one", str(tmp_path / "adapters")
    with (
        program(str(model), "--adapter", one, "--adapter-dir", late, "--adapter-memory", "64") as running,
        running.client() as client,
    ):
        wait_for(lambda: client.get("/health").status_code == 200)
        assert _said(client, "one") != _said(client, None)
        assert _load(client, "late", "three").status_code == 200
        assert client.post("/v1/chat/completions", json={**CHAT, "model": "x"}).status_code == 404
        assert any("adapters one (" in line for line in running.log)
