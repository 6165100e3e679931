"""Servers that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from .world import Running, serving, tiny_session


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A tiny server with the default options."""
    with serving(tiny_session()) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
