"""Flags of `canvaslm serve`: keys, addresses, names. The running program is in
tests/server/test_program.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from canvaslm.cli.options import Loading, Truncation
from canvaslm.cli.serve import (
    Opening,
    check_exposure,
    hosts_of,
    is_loopback,
    listen,
    read_keys,
    split,
)
from canvaslm.cli.serve_options import Budget
from canvaslm.errors import NotFound, UsageError
from canvaslm.server.guard import Rules


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n")
    assert read_keys(None, None) == ()
    assert read_keys(None, "three ") == ("three",)
    assert read_keys(str(file), "three") == ("three", "one", "two")
    with pytest.raises(NotFound):
        read_keys(str(tmp_path / "missing"), None)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="text"):
        read_keys(str(file), None)
    for path, variable in ((None, ""), (None, "  ")):
        with pytest.raises(UsageError, match="empty"):
            read_keys(path, variable)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, ())


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.9", "example.org", "127.0.0.1.evil.example", ""]
)
def test_others_do(host: str) -> None:
    with pytest.raises(UsageError, match="key"):
        check_exposure(host, ())
    check_exposure(host, ("key",))


def test_names_the_server_answers_to() -> None:
    inside = Rules.of(hosts_of("127.0.0.1", split("box.local, other")), (), None)
    assert (
        inside.allows_host("box.local:8642")
        and inside.allows_host("other")
        and inside.allows_host("localhost")
    )
    assert not inside.allows_host("192.168.0.9") and not inside.allows_host("evil.example")
    outside = Rules.of(hosts_of("0.0.0.0", []), (), "key")
    assert outside.allows_host("192.168.0.9:1") and outside.allows_host(socket.gethostname())
    assert not outside.allows_host("evil.example")


def test_requests_that_say_no_temperature_have_the_servers() -> None:
    opening = Opening(Loading(), Budget(default_temperature=0.25))
    with listen("127.0.0.1", 0) as opening.listener:
        session = opening()
    assert session.params.temperature == 0.25
    assert session.merge(None, {"temperature": 1.0}).temperature == 1.0


def test_a_top_k_is_the_default_of_requests() -> None:
    opening = Opening(Loading(), Budget(), Truncation(top_k=64, top_k_tail_correction=True).chosen())
    with listen("127.0.0.1", 0) as opening.listener:
        session = opening()
    assert (session.params.top_k, session.params.top_k_tail_correction) == (64, True)
    assert session.merge(None, {"top_k": 0}).top_k == 0


def test_an_address_that_cannot_be_had() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])
