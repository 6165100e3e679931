"""Requests made up from the OpenAPI schema: never a 500, and every error in its envelope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from canvaslm.server.dialects.registry import envelope_of
from canvaslm.server.openapi import schema_of_server
from canvaslm.server.problems import Problem

from ..waiting import HUNG
from .world import Running, serving, tiny_session

SCHEMA = schemathesis.openapi.from_dict(schema_of_server())
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SHORT = {"max_tokens": 16, "max_completion_tokens": 16, "max_output_tokens": 16, "max_denoising_steps": 4}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(tiny_session(), read_timeout=HUNG, any_model=True) as running:
        yield running


def shorten(body: Any) -> None:
    """Numbers that are valid and would take hours are made small."""
    if isinstance(body, dict):
        for name, largest in SHORT.items():
            if isinstance(body.get(name), int) and body[name] > largest:
                body[name] = largest
        if isinstance(body.get("options"), dict):
            body["options"].pop("num_predict", None)
        if isinstance(body.get("n"), int) and body["n"] > 2:
            body["n"] = 2


@SCHEMA.parametrize()
@settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
def test_requests_made_up_from_the_schema(case: Any, server: Running) -> None:
    shorten(case.body)
    response = case.call(base_url=server.url, timeout=HUNG)
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        worded = envelope_of(case.path)(Problem(response.status_code, "x"))
        assert response.json().keys() == worded.keys()
