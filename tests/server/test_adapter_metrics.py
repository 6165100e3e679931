"""What /metrics says of adapters."""

from __future__ import annotations

import math
from pathlib import Path

import httpx

from canvaslm.weights.adapters.peft_write import write_peft
from tests.adapters import random_adapter

from ..waiting import HUNG
from .world import HELLO, Running, serving, tiny_session


def _found(server: Running) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics", timeout=HUNG).text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("canvaslm_adapter"))
    return {name.removeprefix("canvaslm_"): float(value) for name, value in pairs}


def test_adapters_are_counted_by_name(tmp_path: Path) -> None:
    session = tiny_session()
    model, shelf = session.engine.runner.model, session.adapters
    for seed, name in enumerate(("one", "two"), 1):
        write_peft(random_adapter(model, seed=seed), tmp_path / name, model.config)
    shelf.load("one", tmp_path / "one")
    with serving(session, adapter_folder=tmp_path) as server, server.client() as client:
        found = _found(server)
        assert (found["adapters_known"], found["adapters_loaded"], found["adapter_loads_total"]) == (1, 1, 1)
        assert found["adapter_bytes"] == shelf.nbytes > 0 and found["adapter_bytes_limit"] == math.inf
        assert found['adapter_requests_total{adapter="one"}'] == 0

        shelf.limit = shelf.nbytes
        body = {"messages": HELLO, "seed": 3, "max_tokens": 8}
        loaded = client.post("/v1/load_lora_adapter", json={"lora_name": 't"wo', "lora_path": "two"})
        assert loaded.status_code == 200
        for name, status in (('t"wo', 200), ("one", 200), ("one", 200), ("tiny", 200), ("other", 404)):
            assert client.post("/v1/chat/completions", json={**body, "model": name}).status_code == status
        found = _found(server)
        assert (found["adapters_known"], found["adapters_loaded"]) == (2, 1)
        assert (found["adapter_loads_total"], found["adapter_evictions_total"]) == (3, 2)
        assert found["adapter_bytes"] <= found["adapter_bytes_limit"] == shelf.limit
        asked = {name: value for name, value in found.items() if "{" in name}
        assert asked == {
            'adapter_requests_total{adapter="one"}': 2,
            'adapter_requests_total{adapter="t\\"wo"}': 1,
        }

        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "one"}).status_code == 200
        assert 'adapter_requests_total{adapter="one"}' not in _found(server)


def test_without_adapters_there_are_noughts() -> None:
    with serving(tiny_session()) as server:
        found = _found(server)
    assert found.pop("adapter_bytes_limit") == math.inf
    assert found and not any(found.values())
