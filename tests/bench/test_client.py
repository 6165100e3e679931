from __future__ import annotations

import json
from typing import Any

import pytest

from canvaslm.bench.client import Client, Reading
from canvaslm.client import Endpoint, Refused, error_message, events, served_model
from canvaslm.errors import CanvasError, NotFound, UsageError

from .fake_server import PLAIN, chunk, faking, usage

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("url", "reads"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("localhost:80", "http://localhost:80"),
        ("https://host.example/api/v1", "https://host.example/api"),
        ("http://[::1]:9/", "http://[::1]:9"),
    ],
)
def test_addresses(url: str, reads: str) -> None:
    assert str(Endpoint.parse(url)) == reads


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999", "http://a:b@x", "http://x/?q=1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        Endpoint.parse(url)


def test_a_key_is_not_shown_and_must_fit_a_header() -> None:
    assert "secret" not in repr(Endpoint.parse("http://x", "secret"))
    with pytest.raises(UsageError, match="API key"):
        Endpoint.parse("http://x", "a\nb")


def lines(*parts: str) -> Any:
    return iter([part.encode() for part in parts])


def test_events_are_read_up_to_done() -> None:
    stream = lines(
        ": hi\n", "\n", 'data: {"a": 1}\n', "event: x\n", 'data:{"b":2}\r\n', "data: [DONE]\n", "data: never"
    )
    assert list(events(stream)) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("data: {", "no JSON"),
        ("data: [1]", "no object"),
        ('data: {"error": {"message": "it broke"}}', "it broke"),
        ("", "broke off"),
    ],
)
def test_streams_that_are_broken(line: str, says: str) -> None:
    with pytest.raises(CanvasError, match=says):
        list(events(lines(line)))


def read(*timed: tuple[float, dict[str, Any]]) -> Reading:
    reading = Reading()
    for at, event in timed:
        reading.take(event, at)
    return reading


def test_a_canvas_server_tells_of_drafts_commits_and_steps() -> None:
    timings = {"queued_ms": 250, "diffusion": {"ms_per_step": 20.5, "n_steps": 9, "n_blocks": 2}}
    sample = read(
        (0.1, chunk()),
        (1.0, {**chunk(), "diffusion": {"state": "denoising", "step": 1}}),
        (2.0, {**chunk(), "diffusion": {"state": "denoising", "step": 2}}),
        (3.0, chunk("Some")),
        (3.1, {**chunk(), "diffusion": {"state": "committed", "step": 4}}),
        (5.0, chunk(" text")),
        (5.5, {**chunk(), "diffusion": {"state": "committed", "step": 5}}),
        (5.6, chunk(finish="length", timings=timings)),
        (5.7, usage(20, prompt=9, cached=3)),
    ).sample(6.0)
    assert (sample.first_draft, sample.first_commit, sample.seconds) == (1.0, 3.0, 6.0)
    assert sample.gaps == pytest.approx((2.4,))
    assert sample.steps == (4.0, 5.0)
    assert (sample.queued, sample.ms_per_step) == (0.25, 20.5)
    assert (sample.prompt_tokens, sample.cached_tokens, sample.completion_tokens) == (9, 3, 20)
    assert sample.finish_reason == "length"


def test_any_other_server_commits_with_every_chunk() -> None:
    sample = read(
        (1.0, chunk("a")), (1.5, chunk("b")), (2.5, chunk("c")), (2.5, chunk(finish="stop"))
    ).sample(3.0)
    assert (sample.first_draft, sample.first_commit, sample.gaps, sample.steps) == (None, 1.0, (0.5, 1.0), ())
    assert (sample.completion_tokens, sample.queued) == (None, None)


def test_steps_that_are_told_as_a_sum_are_spread_evenly() -> None:
    timings = {"diffusion": {"n_steps": 30, "n_blocks": 4}}
    assert read((1.0, chunk("a", timings=timings))).sample(1.0).steps == (7.5,) * 4


def test_thoughts_and_tool_calls_are_text_too() -> None:
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    assert read((0.5, thought), (2.0, chunk("x"))).sample(3.0).first_commit == 0.5


def test_an_answer_is_timed_as_it_comes() -> None:
    """The clock goes on by one whenever it is read. The server holds the second chunk back until the first
    one's time was read, and the rest until the second one's was: a client that took them late would hang."""
    readings = 0

    def now() -> float:
        nonlocal readings
        readings += 1
        return float(readings)

    begun = 2  # the readings of `ask`, before the first chunk
    first, second = (lambda: readings == begun + 1), (lambda: readings == begun + 2)
    with faking(script=(chunk("a"), first, chunk("b"), second, *PLAIN[2:])) as fake:
        client = Client(Endpoint.parse(fake.url), "m", now=now)
        sample = client.ask({"messages": HELLO, "max_tokens": 3})
    assert sample.error is None
    assert (sample.first_commit, sample.gaps) == (1.0, (1.0,))
    assert sample.seconds == readings - begun
    assert fake.bodies[0] == {
        "model": "m", "messages": HELLO, "max_tokens": 3, "stream": True,
        "stream_options": {"include_usage": True, "include_diffusion": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("knows", "left"),
    [
        ({"include_usage", "include_diffusion"}, {"include_usage": True, "include_diffusion": True}),
        ({"include_usage"}, {"include_usage": True}),
        (set(), {}),
    ],
)
def test_a_server_is_asked_for_no_more_than_it_knows(knows: set[str], left: dict[str, bool]) -> None:
    with faking(knows=frozenset(knows)) as fake:
        client = Client(Endpoint.parse(fake.url), "m").negotiated(HELLO)
        assert client.stream_options == left
        assert client.ask({"messages": HELLO}).error is None
    assert ("stream_options" in fake.bodies[-1]) == bool(left)


def test_other_errors_end_the_negotiation() -> None:
    with faking(status=500) as fake, pytest.raises(Refused, match="HTTP 500: no luck"):
        Client(Endpoint.parse(fake.url), "m").negotiated(HELLO)
    assert len(fake.bodies) == 1


def test_what_fails_becomes_a_sample_with_an_error() -> None:
    with faking(status=429) as fake:
        assert Client(Endpoint.parse(fake.url), "m").ask({}).error == "HTTP 429: no luck"
    gone = Client(Endpoint.parse(fake.url), "m").ask({})
    assert gone.error
    assert "refused" in gone.error
    with faking(script=(chunk("a"),)) as fake:
        assert "broke off" in str(Client(Endpoint.parse(fake.url), "m").ask({}).error)


def test_the_key_is_sent() -> None:
    with faking(key="k1") as fake:
        assert served_model(Endpoint.parse(fake.url, "k1")) == "fake-1"
        assert Client(Endpoint.parse(fake.url, "k1"), "m").ask({}).error is None
        with pytest.raises(UsageError, match="another key"):
            served_model(Endpoint.parse(fake.url, "k2"))


def test_no_server_and_no_model_are_said() -> None:
    with faking(models={"data": []}) as fake, pytest.raises(NotFound, match="names no model"):
        served_model(Endpoint.parse(fake.url))
    with pytest.raises(NotFound, match="nothing answers"):
        served_model(Endpoint.parse(fake.url))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"error": "plain"}, "plain"),
        ({"detail": "fastapi"}, "fastapi"),
        ([1], "[1]"),
    ],
)
def test_errors_in_any_envelope(body: Any, says: str) -> None:
    assert error_message(json.dumps(body).encode()) == says
    assert error_message(b"") == "no message"
