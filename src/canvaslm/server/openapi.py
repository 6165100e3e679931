"""The OpenAPI schema of the server as it is published, made without a model."""

from __future__ import annotations

from typing import Any

from .app import create_app


def schema_of_server() -> dict[str, Any]:
    """The schema of an application with the default limits. For docs/http.md and its test."""

    def never() -> Any:
        raise AssertionError("the schema needs no model")

    schema: dict[str, Any] = create_app(never).openapi()
    return schema


__all__ = ["schema_of_server"]
