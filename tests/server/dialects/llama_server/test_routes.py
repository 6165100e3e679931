"""llama-server's routes."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from ....waiting import HUNG, wait_for
from ...test_bridge import LONG
from ...world import HELLO, Running, paced, request_bytes, serving, tiny_session


def test_health_and_props(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    props = client.get("/props").json()
    assert props["total_slots"] == 8 and props["model_alias"] == "tiny"
    assert props["default_generation_settings"]["params"]["max_denoising_steps"] == 6
    assert props["bos_token"] == "<bos>" and "{%" in props["chat_template"]


def test_text_to_tokens_and_back(client: httpx.Client) -> None:
    text = "Grüße, 世界! <turn|>"
    tokens = client.post("/tokenize", json={"content": text}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"content": text}
    pieces = client.post(
        "/tokenize", json={"content": text, "with_pieces": True, "add_special": True}
    ).json()["tokens"]
    assert [piece["id"] for piece in pieces] == [2, *tokens]
    assert (
        b"".join(p.encode() if isinstance(p := x["piece"], str) else bytes(p) for x in pieces[1:]).decode()
        == text
    )
    assert client.post("/tokenize", json={"content": ""}).json() == {"tokens": []}


@pytest.mark.parametrize("tokens", [[-1], [10**6], ["x"], [1.5]])
def test_ids_that_are_none(client: httpx.Client, tokens: Any) -> None:
    response = client.post("/detokenize", json={"tokens": tokens})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tokens")


def test_a_template_applied(client: httpx.Client) -> None:
    prompt = client.post("/apply-template", json={"messages": HELLO}).json()["prompt"]
    assert prompt == "<bos><|turn>user\nHello<turn|>\n<|turn>model\n"


def test_slots_show_what_runs_and_no_prompts() -> None:
    with serving(paced(0.05, max_rows=2)) as server, server.client() as client:
        raw = server.connect()
        raw.sendall(request_bytes({**LONG, "stream": True}))
        wait_for(lambda: server.app.state.service.bridge.running)
        slots = client.get("/slots").json()
        assert [slot["is_processing"] for slot in slots] == [True, False]
        assert slots[0]["n_prompt_tokens"] > 0 and slots[0]["state"] in ("encode", "denoise")
        assert "Hello" not in str(slots)
        raw.close()


def metrics_of(server: Running) -> dict[str, float]:
    """Every sample by its name and labels."""
    text = httpx.get(f"{server.url}/metrics", timeout=HUNG).text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_metrics_add_up() -> None:
    with serving(tiny_session()) as server, server.client() as client:
        answers = [
            client.post("/v1/chat/completions", json={"messages": HELLO, "seed": i, "n": 1 + i % 2}).json()
            for i in range(4)
        ]
        found = metrics_of(server)
        usage = [answer["usage"] for answer in answers]
        assert found["canvaslm_tokens_predicted_total"] == sum(u["completion_tokens"] for u in usage)
        assert found["canvaslm_requests_accepted_total"] == 6
        assert found['canvaslm_requests_total{outcome="length"}'] == 6
        assert found["canvaslm_diffusion_canvases_total"] == 18
        steps = sum(t["diffusion"]["n_steps"] for t in (answer["timings"] for answer in answers))
        assert (
            found["canvaslm_diffusion_steps_total"]
            == found["canvaslm_diffusion_steps_per_canvas_sum"]
            == steps
        )
        assert found["canvaslm_diffusion_steps_per_canvas_count"] == 18
        for name in (
            "time_to_first_token_seconds",
            "time_to_first_draft_seconds",
            "e2e_request_latency_seconds",
        ):
            assert found[f"canvaslm_{name}_count"] == 6
        for name in ("prompt_tokens_total", "prompt_seconds_total", "tokens_predicted_seconds_total"):
            assert found[f"canvaslm_{name}"] > 0
        assert found["canvaslm_requests_processing"] == found["canvaslm_requests_deferred"] == 0
        assert re.match("text/plain; version=0.0.4", client.get("/metrics").headers["content-type"])


def test_two_applications_count_apart() -> None:
    with serving(tiny_session()) as one, serving(tiny_session()) as two:
        httpx.post(f"{one.url}/v1/chat/completions", json={"messages": HELLO}, timeout=HUNG)
        assert one.metric("requests_accepted_total") == 1 and two.metric("requests_accepted_total") == 0
