"""The generated reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from canvaslm.server.openapi import schema_of_server
from canvaslm.server.reference import fields, kind_of, markdown, operations

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http.md"


def test_the_document_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(schema_of_server()), "run: scripts/http-docs"


def test_every_route_and_field_is_there() -> None:
    schema, text = schema_of_server(), PAGE.read_text(encoding="utf-8")
    assert len(operations(schema)) >= 12
    for method, path, operation in operations(schema):
        assert f"## {method} {path}\n" in text
        assert operation.get("description"), path
        for name, _, _, _ in fields(schema, operation):
            assert f"`{name}`" in text


def test_types_in_words() -> None:
    schema: dict[str, Any] = {"components": {"schemas": {"X": {"properties": {"a": {}, "b": {}}}}}}
    assert (
        kind_of(schema, {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 5}, {"type": "null"}]})
        == "integer 1..5"
    )
    assert (
        kind_of(schema, {"type": "array", "items": {"$ref": "#/components/schemas/X"}})
        == "list of object (a, b)"
    )
    assert kind_of(schema, {"enum": ["x", "y"], "type": "string"}) == '"x" or "y"'
    assert kind_of(schema, {}) == "any"


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert (
        "<script" not in response.text and "http://" not in response.text and "https://" not in response.text
    )
    assert "/v1/chat/completions" in response.text


def test_the_schema_is_public_and_names_the_keys(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "key"}
    worded = [
        path
        for path, methods in schema["paths"].items()
        for op in methods.values()
        if "422" in op["responses"]
    ]
    assert worded == ["/v1/systemone"]  # whose clients expect it, with a body of its own
