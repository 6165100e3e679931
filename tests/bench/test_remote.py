from __future__ import annotations

import shlex
import sys

import pytest

from canvaslm.bench.client import Client
from canvaslm.bench.document import as_json
from canvaslm.bench.plan import LoadOptions
from canvaslm.bench.prompts import Prompt, general_prompts
from canvaslm.bench.remote import measure_server, request_bodies, server_document, started, wait_ready
from canvaslm.client import Endpoint
from canvaslm.errors import CanvasError, NotFound, UsageError
from tests.server.world import serving, tiny_session

from ..waiting import HUNG
from .fake_server import PLAIN, chunk, faking

PROMPTS = [Prompt(({"role": "user", "content": "a"},)), Prompt(({"role": "user", "content": "b"},), 7)]


def client_of(url: str, model: str = "m") -> Client:
    return Client(Endpoint.parse(url), model)


def test_bodies_hold_every_prompt_every_time_with_another_seed() -> None:
    options = LoadOptions(repeats=2, params={"max_new_tokens": 9, "t_max": 0.7, "seed": 5})
    bodies = request_bodies(PROMPTS, options)
    assert [(b["messages"][0]["content"], b["max_tokens"], b["seed"]) for b in bodies] == [
        ("a", 9, 5), ("b", 7, 6), ("a", 9, 7), ("b", 7, 8)
    ]  # fmt: skip
    assert all(body["t_max"] == 0.7 and "max_new_tokens" not in body for body in bodies)
    assert request_bodies(PROMPTS, LoadOptions(params={"seed": -1}))[0]["seed"] == 0


def test_as_many_requests_as_asked_for_are_in_flight() -> None:
    """In the second run every answer waits until three requests have been in flight at once."""
    options = LoadOptions(concurrency=(1, 3), repeats=3, warmup=1)
    alone = 1 + 6  # requests before those of the second run
    with faking() as fake:

        def crowded() -> bool:
            return len(fake.bodies) <= alone + 1 or fake.most_in_flight == 3

        fake.script = (chunk("a"), crowded, *PLAIN[1:])
        ticks: list[int] = []
        one, three = measure_server(client_of(fake.url), PROMPTS, options, ticks.append)
    assert (one["concurrency"], three["concurrency"]) == (1, 3)
    assert fake.most_in_flight == 3
    assert (one["requests"], one["failed"], one["completion_tokens"]) == (6, 0, 12)
    assert len(fake.bodies) == len(ticks) == options.total(2) == 14
    assert one["wall_s"] > 0


def test_failures_are_counted_not_raised() -> None:
    with faking(status=503) as fake:
        (run,) = measure_server(client_of(fake.url), PROMPTS, LoadOptions(warmup=0))
    assert (run["requests"], run["failed"]) == (2, 2)
    assert run["errors"] == {"HTTP 503: no luck": 2}


def test_our_own_server_tells_all_there_is() -> None:
    with serving(tiny_session()) as server:
        made = server_document(
            client_of(server.url, "tiny"),
            general_prompts()[:2],
            LoadOptions((2,), 2, 1, params={"max_new_tokens": 20}),
        )
    (run,) = made["results"]["runs"]
    assert made["settings"]["stream_options"] == {"include_usage": True, "include_diffusion": True}
    assert (run["requests"], run["failed"]) == (4, 0)
    assert run["completion_tokens"] > 0
    assert all(run["metrics"][name]["count"] for name in run["metrics"])
    assert 1 <= run["metrics"]["steps_per_canvas"]["min"] <= run["metrics"]["steps_per_canvas"]["max"] <= 6
    metrics = run["metrics"]
    assert metrics["first_draft_s"]["min"] <= metrics["first_commit_s"]["min"] <= metrics["request_s"]["min"]
    assert '"kind": "server"' in as_json(made)


def test_waiting_ends_when_health_is_good() -> None:
    with faking(health=[503, 503, 200]) as fake:
        assert wait_ready(Endpoint.parse(fake.url), HUNG) >= 0.1
    with faking(health=[404]) as fake:  # no such page: the list of models will do
        assert wait_ready(Endpoint.parse(fake.url), HUNG) >= 0
    with faking(health=[503]) as fake, pytest.raises(NotFound, match=r"not ready after 0\.2 s"):
        wait_ready(Endpoint.parse(fake.url), 0.2)
    with faking(health=[404], key="k") as fake, pytest.raises(UsageError, match="key"):
        wait_ready(Endpoint.parse(fake.url), HUNG)


def test_a_server_that_was_started_is_stopped() -> None:
    with faking() as fake:
        pass
    port = fake.url.rsplit(":", 1)[1]
    script = (
        "import http.server as h\n"
        "class A(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('content-length', '0'); self.end_headers()\n"
        f"h.HTTPServer(('127.0.0.1', {port}), A).serve_forever()\n"
    )
    with started(shlex.join([sys.executable, "-c", script]), Endpoint.parse(fake.url), HUNG) as server:
        assert server.ready > 0
        assert server.process.poll() is None
        assert (server.memory().peak_rss or 1) > 0
    assert server.process.poll() is not None


def test_a_server_that_cannot_start_is_explained() -> None:
    with (
        faking() as fake,
        pytest.raises(UsageError, match="free port"),
        started("true", Endpoint.parse(fake.url), 1),
    ):
        pass
    here = Endpoint.parse(fake.url)
    bad = f"{sys.executable} -c \"print('no such model'); exit(3)\""
    with pytest.raises(CanvasError, match="code 3: no such model"), started(bad, here, 60):
        pass
    with pytest.raises(NotFound, match="no program not-there"), started("not-there --port 1", here, 1):
        pass
    with pytest.raises(UsageError, match="--start"), started("'", here, 1):
        pass
