"""Requests in the forms that clients give them: types left out, HEAD, whole URLs, bodies of two lengths."""

from __future__ import annotations

import json
import logging
import socket

import httpx
import pytest

from ..waiting import StepGate, wait_for
from .test_guard import routes
from .world import HELLO, Running, orders_to_the_engine, request_bytes, serving, tiny_session

CHAT = "/v1/chat/completions"
OLLAMA = {
    "/api/chat": {"messages": HELLO, "stream": False, "options": {"seed": 1}},
    "/api/generate": {"prompt": "Hello", "stream": False, "options": {"seed": 1}},
    "/api/show": {"model": "tiny"},
}
FORM = "application/x-www-form-urlencoded"


def post(client: httpx.Client, path: str, kind: str | None, **headers: str) -> httpx.Response:
    """A POST as `curl -d` makes it; `kind` None leaves the content type out."""
    given = headers if kind is None else {**headers, "content-type": kind}
    return client.post(path, content=json.dumps(OLLAMA.get(path, {"messages": HELLO})), headers=given)


# -- JSON that does not say so -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "", FORM, f"{FORM}; charset=utf-8"])
@pytest.mark.parametrize("path", OLLAMA)
def test_ollamas_clients_need_not_say_that_it_is_json(
    client: httpx.Client, path: str, kind: str | None
) -> None:
    declared, undeclared = post(client, path, "application/json"), post(client, path, kind)
    assert undeclared.status_code == declared.status_code == 200, undeclared.text
    same = ("message", "response", "details")
    assert [undeclared.json().get(n) for n in same] == [declared.json().get(n) for n in same]


def test_what_is_no_json_is_told_as_ever(client: httpx.Client) -> None:
    response = client.post("/api/chat", content="model=tiny&prompt=x", headers={"content-type": FORM})
    assert response.status_code == 400 and "JSON" in response.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
        {"Sec-Fetch-Mode": "navigate"},
        {"sec-fetch-dest": "document"},
    ],
)
@pytest.mark.parametrize("kind", [None, FORM])
def test_a_browsers_form_stays_refused(
    client: httpx.Client, headers: dict[str, str], kind: str | None
) -> None:
    for path in OLLAMA:
        assert post(client, path, kind, **headers).status_code in (403, 415)


def test_our_own_origin_must_declare_it_too(server: Running, client: httpx.Client) -> None:
    assert post(client, "/api/chat", FORM, origin=server.url).status_code == 415
    assert post(client, "/api/chat", "application/json", origin=server.url).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml"])
def test_other_types_and_other_dialects_stay_refused(client: httpx.Client, kind: str) -> None:
    assert post(client, "/api/chat", kind).status_code == 415
    for other in (None, FORM):
        for path in (CHAT, "/v1/messages", "/tokenize", "/apix"):
            assert post(client, path, other).status_code == 415


# -- methods -------------------------------------------------------------------------------------------------


def test_head_is_get_without_a_body(server: Running, client: httpx.Client) -> None:
    gets = [path for method, path in routes(server.app) if method == "GET"]
    assert len(gets) > 10
    for path in (*gets, "/v1/health"):
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code and head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        if path not in ("/metrics", "/slots"):  # these change from one request to the next
            assert head.headers["content-length"] == got.headers["content-length"]
    with server.connect() as raw:  # nothing of a body is left on the wire before the next answer
        raw.sendall(b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        whole = b"".join(iter(lambda: raw.recv(65536), b""))
    assert whole.count(b"HTTP/1.1 200 OK") == 2 and whole.count(b'{"status":"ok"}') == 1


def test_head_of_a_page_of_another_site_is_a_visit_or_refused(client: httpx.Client) -> None:
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.head("/docs", headers=visit).status_code == 200
    assert client.head("/docs", headers={**visit, "sec-fetch-mode": "no-cors"}).status_code == 403


def test_allow_names_what_a_path_takes(server: Running, client: httpx.Client) -> None:
    taken: dict[str, set[str]] = {}
    for method, path in routes(server.app):
        if client.request(method, path, json={}).status_code not in (404, 405):
            taken.setdefault(path, set()).add(method)
    assert len(taken) > 15
    for path, methods in taken.items():
        expected = methods | ({"HEAD"} if "GET" in methods else set())
        response = client.request("TRACK", path)
        assert response.status_code == 405
        assert len(response.headers.get_list("allow")) == 1
        assert set(response.headers["allow"].split(", ")) == expected, path
    assert client.head(CHAT).status_code == 405 and client.head(CHAT).headers["allow"] == "POST"


def test_a_long_method_is_cut_in_the_log(
    server: Running, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "canvaslm.access")
    assert client.request("M" * 5000, "/health").status_code == 405
    wait_for(lambda: any("MMMM" in r.getMessage() for r in caplog.records))
    (line,) = (r.getMessage() for r in caplog.records if "MMMM" in r.getMessage())
    assert "MMMM... /health 405" in line and len(line) < 100


# -- targets and lengths -------------------------------------------------------------------------------------


def raw_answer(server: Running, head: str, body: bytes = b"") -> tuple[int, bytes]:
    """The status and all that comes on a connection that the server closes, or that asks for it."""
    with server.connect() as raw:
        raw.sendall(head.encode() + b"\r\n\r\n" + body)
        whole = b"".join(iter(lambda: raw.recv(65536), b""))
    return int(whole.split()[1]), whole


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/health", 200),
        ("HTTP://127.0.0.1:1/health?x=1", 200),
        ("http://localhost/v1/models/tiny", 200),
        ("http://localhost", 200),
        ("http://localhost/nothing", 404),
        ("http://evil.example/health", 421),
        ("http://evil@localhost/health", 421),
        ("http:///health", 421),
        ("ftp://localhost/health", 404),
    ],
)
def test_a_target_may_be_a_whole_url(server: Running, target: str, status: int) -> None:
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close"
    assert raw_answer(server, head)[0] == status


def test_a_whole_url_does_not_hide_a_foreign_host(server: Running) -> None:
    head = "GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\nConnection: close"
    assert raw_answer(server, head)[0] == 421


def test_two_lengths_of_a_body_are_refused_and_the_connection_closed(server: Running) -> None:
    """Who believes the other one would take what follows for a request of its own."""
    body = json.dumps({"content": "x"}).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(chunked)}\r\nTransfer-Encoding: chunked"
    )
    status, whole = raw_answer(server, head, chunked + smuggled)
    assert status == 400 and whole.count(b"HTTP/1.1 ") == 1
    assert b"ambiguous_length" in whole and b"connection: close" in whole.lower()


def test_who_closes_the_sending_side_has_gone() -> None:
    """As docs/http.md says: nothing tells it from a client that left, whose request must not run on."""
    session = tiny_session()
    session.eos_token_ids = ()
    gate = StepGate(session, free=2)
    with serving(session) as server, server.connect() as raw:
        raw.sendall(request_bytes({"messages": HELLO, "max_tokens": -1}))
        gate.wait_held()
        posted = orders_to_the_engine(server)
        raw.shutdown(socket.SHUT_WR)
        wait_for(lambda: posted)
        gate.open()
        assert raw.recv(65536) == b""
        wait_for(lambda: server.app.state.service.bridge.reserved == 0)
        assert gate.steps == 3  # the one in progress was the last


# -- what is not here ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/api/embeddings", "/embedding"])
def test_embeddings_are_not_here_and_why(client: httpx.Client, path: str) -> None:
    response = client.post(path, json={"model": "tiny", "input": "x"})
    assert response.status_code == 404
    error = response.json()["error"]
    message = error if path.startswith("/api") else error["message"]
    assert "no trained embedding" in message and "/docs" in message
    assert "Embeddings:" in client.get("/docs").text
