"""Many clients of every kind for a while: what was accepted ends, answers are right,
numbers add up, memory stays."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..waiting import HUNG, wait_for
from .test_program import wait_ready
from .world import Running, program, tiny_folder

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MIB = 2**20


def bodies() -> list[dict[str, Any]]:
    """Requests whose answers are known: prompts that share beginnings, several
    sizes, stop strings, choices."""
    rng = random.Random(1)
    made = []
    for i in range(10):
        words = " ".join(
            rng.choice(["one", "two", "Paris", "sort", "capital"]) for _ in range(4 + 20 * (i % 3))
        )
        body: dict[str, Any] = {"messages": [{"role": "user", "content": f"Do {words}"}], "seed": i}
        body |= {"max_tokens": rng.choice([8, 16, 40]), "n": 1 + i % 2, "stop": ["e"] if i % 5 == 4 else None}
        made.append(body)
    return made


@dataclass
class Crowd:
    """Clients that share what they have seen."""

    url: str
    known: list[tuple[dict[str, Any], list[str]]]
    end: float
    seen: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    async def client(self, seed: int) -> None:
        rng = random.Random(seed)
        deeds = [
            self.whole,
            self.whole,
            self.stream,
            self.stream,
            self.leave,
            self.hurry,
            self.malformed,
            self.oversized,
        ]
        while time.monotonic() < self.end:
            async with httpx.AsyncClient(base_url=self.url, timeout=HUNG) as http:
                for _ in range(rng.randint(1, 4)):
                    await rng.choice(deeds)(http, rng)

    async def whole(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        body, texts = rng.choice(self.known)
        response = await http.post(CHAT, json=body)
        if self.refused(response):
            return
        answer = response.json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == texts
        self.tokens += answer["usage"]["completion_tokens"]
        self.seen["complete"] += body["n"]

    async def stream(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        body, texts = rng.choice(self.known)
        wanted: dict[str, Any] = {**body, "stream": True, "stream_options": {"include_usage": True}}
        if rng.random() < 0.3:
            wanted["stream_options"]["include_diffusion"] = True
        response = await http.post(CHAT, json=wanted)
        if self.refused(response):
            return
        parts = [""] * body["n"]
        lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: {")]
        for chunk in map(json.loads, lines):
            for choice in chunk["choices"]:
                parts[choice["index"]] += choice["delta"].get("content") or ""
        assert parts == texts
        self.tokens += json.loads(lines[-1])["usage"]["completion_tokens"]
        self.seen["complete"] += body["n"]

    async def leave(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Goes away in the middle of a stream."""
        body = {
            **rng.choice(self.known)[0],
            "stream": True,
            "max_tokens": 200,
            "diffusing": rng.random() < 0.5,
        }
        async with http.stream("POST", CHAT, json=body) as response:
            self.seen["left"] += body["n"] if response.status_code == 200 else 0
            async for _ in response.aiter_bytes():
                if rng.random() < 0.3:
                    break

    async def hurry(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Waits for a whole answer no longer than a moment."""
        body = {**rng.choice(self.known)[0], "max_tokens": 300}
        try:
            response = await http.post(CHAT, json=body, timeout=rng.uniform(0.02, 0.2))
        except httpx.TimeoutException:
            self.seen["hurried"] += body["n"]
        else:
            self.seen["hurried"] += body["n"] if response.status_code == 200 else 0

    async def malformed(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        content, status = rng.choice(
            [("{", 400), ("[]", 400), ('{"messages": []}', 400), ('{"messages": 5}', 400), ("x" * 5000, 400)]
        )
        response = await http.post(CHAT, content=content, headers=JSON)
        assert response.status_code == status and response.json()["error"]["message"]
        response = await http.post(CHAT, content="{}", headers={"content-type": "text/plain"})
        assert response.status_code == 415

    async def oversized(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        response = await http.post(CHAT, content=b" " * (2 * MIB), headers=JSON)
        assert response.status_code == 413
        long = [{"role": "user", "content": "word " * 5000}]
        response = await http.post(CHAT, json={"messages": long})
        assert self.refused(response) or response.json()["error"]["code"] == "context_length_exceeded"

    def refused(self, response: httpx.Response) -> bool:
        """Whether the queue was full."""
        if response.status_code == 429:
            self.seen["refused"] += 1
            return True
        assert response.status_code in (200, 400), response.text
        return False


def memory(server: Running) -> float:
    """Resident memory of the server's process in MiB."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def outcomes(server: Running) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics", timeout=HUNG).text
    lines = [line for line in text.splitlines() if line.startswith("canvaslm_requests_total{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


def soak(folder: Path, seconds: float, clients: int) -> Counter[str]:
    """Runs the crowd and checks what must hold afterwards."""
    flags = (
        "--max-body",
        "1",
        "--max-queue",
        "6",
        "--max-rows",
        "6",
        "--prefix-memory",
        "8",
        "--no-access-log",
    )
    with program(str(folder), *flags) as server:
        wait_ready(server)
        with server.client() as http:
            answers = [(body, http.post(CHAT, json=body).json()) for body in bodies()]
        known = [
            (body, [choice["message"]["content"] for choice in answer["choices"]]) for body, answer in answers
        ]
        before = server.metric("tokens_predicted_total"), sum(outcomes(server).values())

        def run(seconds: float) -> Crowd:
            crowd = Crowd(server.url, known, time.monotonic() + seconds)

            async def all_clients() -> None:
                await asyncio.gather(*(crowd.client(seed) for seed in range(clients)))

            asyncio.run(all_clients())
            wait_for(lambda: server.metric("requests_processing") == server.metric("requests_deferred") == 0)
            return crowd

        crowd = run(seconds / 2)
        used = memory(server)
        ended = outcomes(server)
        done = crowd.seen["complete"]
        assert sum(ended.values()) == server.metric("requests_accepted_total")
        assert "failed" not in ended
        assert (
            done
            <= ended["stop"] + ended["length"] - before[1]
            <= done + crowd.seen["left"] + crowd.seen["hurried"]
        )
        assert server.metric("tokens_predicted_total") - before[0] >= crowd.tokens
        again = run(seconds / 2)
        assert memory(server) < used + 16 + 0.1 * used
        with server.client() as http:
            for body, texts in known:
                after = http.post(CHAT, json=body).json()
                assert [choice["message"]["content"] for choice in after["choices"]] == texts
        return crowd.seen + again.seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("soak") / "tiny-model")


def test_a_short_soak(folder: Path) -> None:
    seen = soak(folder, 10, 16)
    assert seen["complete"] > 10 and seen["left"] > 3 and seen["hurried"] > 3, seen


@pytest.mark.slow
def test_a_long_soak(folder: Path) -> None:
    seen = soak(folder, 180, 32)
    assert seen["complete"] > 200 and seen["refused"] > 0, seen
