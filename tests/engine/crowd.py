"""Requests run together, and what each of them says."""

from __future__ import annotations

from canvaslm.engine import Engine
from canvaslm.model import Model
from canvaslm.types import Committed, Failed, Request


def outputs(model: Model, requests: list[Request]) -> list[list[int]]:
    """The tokens of each, in an engine of their own. None of them fails."""
    engine = Engine(model)
    ids = [engine.submit(request) for request in requests]
    tokens: dict[int, list[int]] = {i: [] for i in ids}
    while engine.has_work:
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Committed):
                tokens[event.request_id] += event.tokens
    return [tokens[i] for i in ids]


__all__ = ["outputs"]
